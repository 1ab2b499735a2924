//! Routes: the allowed-IPs of all peers, as the data path reads them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::transport::allowed_ips::AllowedIps;
use crate::transport::peer_path::PeerPath;

/// A snapshot of all peers' allowed-IPs. It says which peer gets a packet, and which sources a peer may send from.
#[derive(Debug, Default)]
pub struct Routes(AllowedIps<Arc<PeerPath>>);

impl Routes {
    pub(crate) fn new(table: AllowedIps<Arc<PeerPath>>) -> Self {
        Self(table)
    }

    /// The peer whose allowed-IPs have the longest prefix that contains the address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&Arc<PeerPath>> {
        self.0.lookup(address)
    }

    /// Whether the peer may send packets with this inner source address: [`Self::lookup`] of it returns this peer.
    #[must_use]
    pub fn permits(&self, path: &PeerPath, source: IpAddr) -> bool {
        self.lookup(source).is_some_and(|owner| owner.id() == path.id())
    }
}
