//! Where a peer is: its UDP address, and our address that it talks to.

use std::net::{IpAddr, SocketAddr};

/// The outer addresses of a peer's datagrams. It follows the peer: each authenticated datagram
/// sets it anew (paper, section 2.1, "roaming").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our address that the peer's datagrams came to, from which answers should leave. `None`
    /// leaves the choice to routing.
    pub local: Option<LocalAddress>,
}

/// One of our own addresses, with the interface that a datagram for it came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LocalAddress {
    /// Of the same family as the endpoint's remote address.
    pub address: IpAddr,
    /// Interface index; 0 when unknown.
    pub interface: u32,
}

impl From<SocketAddr> for Endpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}
