//! Endpoints: the outer addresses of a peer's datagrams.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The outer addresses of a peer's datagrams. The endpoint follows the peer: each authenticated datagram sets it anew
/// (paper, section 2.1, "roaming").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Our address that the peer sent its datagrams to. Answers should leave from it. `None` leaves the choice to
    /// routing.
    pub local: Option<LocalAddress>,
}

/// One of our own addresses, and the interface on which a datagram for it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocalAddress {
    /// The address, of the same family as the endpoint's remote address.
    pub address: IpAddr,
    /// The interface index; 0 when unknown.
    pub interface: u32,
}

impl From<SocketAddr> for Endpoint {
    /// Leaves the choice of our own address to routing.
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}
