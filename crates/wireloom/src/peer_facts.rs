//! What a device says of its peers, as [`wireloom_plan::health`] takes it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use wireloom_kernel::DeviceState;
use wireloom_plan::health::PeerFacts;
use wireloom_types::PublicKey;

/// All peers of a device.
pub(crate) fn peer_facts(device: &DeviceState) -> BTreeMap<PublicKey, PeerFacts> {
    let peers = device.peers.iter().map(|(key, peer)| {
        let facts = PeerFacts {
            endpoint: peer.endpoint,
            last_handshake: peer.last_handshake.map(since_1970),
            received: peer.received,
            sent: peer.sent,
            persistent_keepalive: peer.persistent_keepalive,
        };
        (*key, facts)
    });
    peers.collect()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
