//! The state that a device hands over to its successor: another process of this machine, with the same clocks.
//!
//! The successor goes on where the device stopped: no nonce is used twice and no message accepted twice, whatever is
//! handed over, as long as the device has stopped before [`Device::state`](crate::Device::state) and
//! [`Device::peer_states`](crate::Device::peer_states) are called for the last time. The random generator is not handed
//! over: a successor has a seed of its own.
//!
//! ```text
//!  device, at work   ── DeviceState, PeerStates ──▶ Successor     (the copy)
//!  device, stopped   ── DeviceState, changed PeerStates, staged packets ──▶ Successor ──▶ device, at work
//! ```
//!
//! These types are one version of the format. A field that is added, removed or moved makes another version of it.

use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::endpoint::Endpoint;
use crate::handshake::timestamp::Tai64N;
use crate::time::{Instant, UnixTime};
use crate::transport::role::Role;

pub use crate::device::Successor;

/// A key, or a secret of a handshake.
pub(crate) type Secret = Zeroizing<[u8; 32]>;

/// What belongs to no peer.
#[derive(Serialize, Deserialize)]
pub struct DeviceState {
    pub(crate) private_key: Option<Secret>,
    /// The factor and the summand of each round.
    pub(crate) index_permutation: [(u64, u64); 4],
    /// The generation of each slot of the session table that was ever used.
    pub(crate) index_generations: Vec<u32>,
    pub(crate) timestamps_floor: Option<Tai64N>,
    pub(crate) timestamps_greatest: Option<Tai64N>,
    /// What cookies are made from, and when it was drawn.
    pub(crate) cookie_secret: Option<(Secret, Instant)>,
    pub(crate) next_id: u64,
    pub(crate) timed_out_packets: u64,
}

/// A peer. Its number says when it was added: no two peers of a device have the same one, ever.
#[derive(Serialize, Deserialize)]
pub struct PeerState {
    pub(crate) id: u64,
    pub(crate) public_key: [u8; 32],
    pub(crate) preshared_key: Option<Secret>,
    pub(crate) static_static: Option<Secret>,
    pub(crate) persistent_keepalive: Option<(NonZeroU16, Instant)>,
    pub(crate) allowed_ips: Vec<IpNet>,
    pub(crate) path: PathState,
    pub(crate) cookie: Option<([u8; 16], Instant)>,
    pub(crate) last_mac1: Option<[u8; 16]>,
    pub(crate) previous: Option<SessionState>,
    pub(crate) current: Option<SessionState>,
    pub(crate) next: Option<SessionState>,
    pub(crate) pending: Option<PendingState>,
    pub(crate) attempt: Option<(Instant, Instant)>,
    pub(crate) handshake_sent: Option<Instant>,
    pub(crate) last_handshake: Option<UnixTime>,
    pub(crate) timestamp_sent: Option<Tai64N>,
    /// The greatest timestamp that the peer has sent, and when.
    pub(crate) timestamp_received: Option<(Tai64N, Instant)>,
    pub(crate) keepalive_wanted: bool,
    pub(crate) handshake_wanted: bool,
    pub(crate) wipe_at: Option<Instant>,
    pub(crate) jitter: Duration,
}

/// What the data path knows of a peer.
#[derive(Serialize, Deserialize)]
pub(crate) struct PathState {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) reachable: bool,
    pub(crate) path_mtu: PathMtuState,
    pub(crate) activity: ActivityState,
    /// What the device has not heard of yet, as bits.
    pub(crate) news: u8,
}

/// The path MTU of a peer, packed as it is there.
#[derive(Serialize, Deserialize)]
pub(crate) struct PathMtuState {
    pub(crate) configured: u16,
    pub(crate) learnt: u64,
    pub(crate) probing: u64,
}

/// The causes of a peer's timers.
#[derive(Serialize, Deserialize)]
pub(crate) struct ActivityState {
    pub(crate) unanswered_since: Option<Instant>,
    pub(crate) keepalive_owed_since: Option<Instant>,
    pub(crate) last_received: Option<Instant>,
    pub(crate) last_traffic: Option<Instant>,
    pub(crate) last_minute: Option<Instant>,
}

/// A session.
#[derive(Serialize, Deserialize)]
pub(crate) struct SessionState {
    pub(crate) local_index: u32,
    pub(crate) remote_index: u32,
    pub(crate) role: Role,
    pub(crate) born: Instant,
    pub(crate) sending: Secret,
    pub(crate) receiving: Secret,
    pub(crate) next_counter: u64,
    pub(crate) window: WindowState,
    pub(crate) confirmed: bool,
    pub(crate) rekey_quiet_until: u64,
}

/// A replay window: one more than the greatest counter received, and the words of its bitmap.
#[derive(Serialize, Deserialize)]
pub(crate) struct WindowState {
    pub(crate) next: u64,
    pub(crate) seen: Vec<u64>,
}

/// An initiation that was sent and may still be answered.
#[derive(Serialize, Deserialize)]
pub(crate) struct PendingState {
    pub(crate) chaining_key: Secret,
    pub(crate) hash: Secret,
    pub(crate) ephemeral: Secret,
    pub(crate) index: u32,
}

/// A packet that waits for a session, laid out as a message to be sealed.
#[derive(Serialize, Deserialize)]
pub struct StagedPacket {
    pub(crate) peer: u64,
    /// When a packet was staged for that peer last.
    pub(crate) last: Instant,
    pub(crate) message: Vec<u8>,
}

impl PeerState {
    /// The peer's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}
