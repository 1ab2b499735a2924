//! The control half of a peer: what only the device touches.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use wireloom_types::{PresharedKey, PublicKey, limits::REKEY_ATTEMPT_TIME};

use super::sessions::Sessions;
use super::staging::StagedPackets;
use crate::handshake::cookie::{CookieJar, MacKeys};
use crate::handshake::noise::InitiatorHandshake;
use crate::handshake::timestamp::{InitiationGate, Tai64N};
use crate::peer_id::PeerId;
use crate::time::{Instant, UnixTime};
use crate::transport::peer_path::PeerPath;

/// A peer as the device knows it. The data path knows its [`PeerPath`].
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) path: Arc<PeerPath>,
    pub(crate) preshared_key: Option<PresharedKey>,
    pub(crate) persistent_keepalive: Option<PersistentKeepalive>,
    pub(crate) allowed_ips: BTreeSet<IpNet>,

    /// For messages to this peer.
    pub(crate) mac_keys: MacKeys,
    pub(crate) cookies: CookieJar,
    pub(crate) sessions: Sessions,
    pub(crate) pending: Option<PendingHandshake>,
    pub(crate) attempt: Option<Attempt>,
    /// When we last sent an initiation or a response.
    pub(crate) handshake_sent: Option<Instant>,
    pub(crate) last_handshake: Option<UnixTime>,
    pub(crate) timestamp_sent: Option<Tai64N>,
    pub(crate) initiations: InitiationGate,
    pub(crate) staged: StagedPackets,

    /// When all key material is wiped.
    pub(crate) wipe_at: Option<Instant>,
    /// Added to the timeouts after which a handshake begins; drawn anew for each.
    pub(crate) jitter: Duration,
    /// The peer's place in the device's order of deadlines.
    pub(crate) scheduled: Option<Instant>,
}

/// An initiation that was sent and may be answered.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pub(crate) noise: InitiatorHandshake,
    pub(crate) index: u32,
}

/// The endeavour to get a session, over as many initiations as it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// When it began, or when data last wanted it (paper, section 6.4).
    pub(crate) since: Instant,
    /// When the next initiation is due.
    pub(crate) retry_at: Instant,
}

impl Attempt {
    pub(crate) fn is_hopeless(&self, now: Instant) -> bool {
        now.since(self.since) >= REKEY_ATTEMPT_TIME
    }
}

/// Keepalives whether or not anything was received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PersistentKeepalive {
    /// Seconds from whatever was last sent or received to the next keepalive.
    pub(crate) interval: NonZeroU16,
    /// When they were turned on: the first one is due.
    pub(crate) since: Instant,
}

impl Peer {
    pub(crate) fn new(id: PeerId, public_key: PublicKey, jitter: Duration) -> Self {
        Self {
            path: Arc::new(PeerPath::new(id, public_key)),
            preshared_key: None,
            persistent_keepalive: None,
            allowed_ips: BTreeSet::new(),
            mac_keys: MacKeys::of_receiver(&public_key),
            cookies: CookieJar::default(),
            sessions: Sessions::default(),
            pending: None,
            attempt: None,
            handshake_sent: None,
            last_handshake: None,
            timestamp_sent: None,
            initiations: InitiationGate::default(),
            staged: StagedPackets::default(),
            wipe_at: None,
            jitter,
            scheduled: None,
        }
    }
}
