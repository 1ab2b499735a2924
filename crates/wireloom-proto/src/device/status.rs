//! Reading a peer's state back.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use wireloom_types::{PresharedKey, PublicKey};

use super::peer::Peer;
use crate::endpoint::Endpoint;
use crate::peer_id::PeerId;
use crate::time::UnixTime;
use crate::transport::peer_path::PeerPath;

/// The state of a peer.
#[derive(Debug)]
pub struct PeerStatus<'a> {
    /// The peer's identifier.
    pub id: PeerId,
    /// What the data path needs to send to the peer.
    pub path: &'a Arc<PeerPath>,
    /// The peer's public key.
    pub public_key: &'a PublicKey,
    /// The preshared key that handshakes mix in, if there is one.
    pub preshared_key: Option<&'a PresharedKey>,
    /// Where the peer last sent from, or is configured to be.
    pub endpoint: Option<Endpoint>,
    /// The interval of persistent keepalives in seconds, if they are on.
    pub persistent_keepalive: Option<NonZeroU16>,
    /// The peer's allowed-IPs, in order and without host bits.
    pub allowed_ips: &'a BTreeSet<IpNet>,
    /// When the last handshake ended.
    pub last_handshake: Option<UnixTime>,
    /// The number of bytes received from the peer in authentic WireGuard messages of all types.
    pub received_bytes: u64,
    /// The number of bytes sent to the peer in WireGuard messages of all types.
    pub sent_bytes: u64,
    /// The version of the protocol, which is always 1.
    pub protocol_version: u32,
}

impl Peer {
    pub(super) fn status(&self) -> PeerStatus<'_> {
        PeerStatus {
            id: self.path.id(),
            path: &self.path,
            public_key: self.path.public_key(),
            preshared_key: self.preshared_key.as_ref(),
            endpoint: self.path.endpoint(),
            persistent_keepalive: self.persistent_keepalive.map(|keepalive| keepalive.interval),
            allowed_ips: &self.allowed_ips,
            last_handshake: self.last_handshake,
            received_bytes: self.path.received_bytes(),
            sent_bytes: self.path.sent_bytes(),
            protocol_version: 1,
        }
    }
}
