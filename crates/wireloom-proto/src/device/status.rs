//! What can be read back of a peer.

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

/// What can be read back of a peer.
#[derive(Debug)]
pub struct PeerStatus<'a> {
    /// The peer's name inside the device.
    pub id: PeerId,
    /// The way to it.
    pub path: &'a Arc<PeerPath>,
    /// Its identity.
    pub public_key: &'a PublicKey,
    /// The symmetric key mixed into handshakes: a secret.
    pub preshared_key: Option<&'a PresharedKey>,
    /// Where it was last heard from, or is configured to be.
    pub endpoint: Option<Endpoint>,
    /// Seconds between keepalives.
    pub persistent_keepalive: Option<NonZeroU16>,
    /// Its allowed IPs, in the order of addresses.
    pub allowed_ips: &'a BTreeSet<IpNet>,
    /// When the last handshake was done.
    pub last_handshake: Option<UnixTime>,
    /// Bytes of WireGuard messages received from it, of all types.
    pub received_bytes: u64,
    /// Bytes of WireGuard messages sent to it, of all types.
    pub sent_bytes: u64,
    /// The protocol's version: 1, the only one there is.
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
