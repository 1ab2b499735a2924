//! A peer as the device knows it.

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use wireloom_types::{PresharedKey, PublicKey, limits::REKEY_ATTEMPT_TIME};

use super::sessions::Sessions;
use crate::handshake::cookie::{CookieJar, MacKeys};
use crate::handshake::noise::{InitiatorHandshake, StaticStatic};
use crate::handshake::timestamp::{InitiationFilter, Tai64N};
use crate::peer_id::PeerId;
use crate::time::{Instant, UnixTime};
use crate::transport::peer_path::PeerPath;

/// What only the device knows about a peer, beside the [`PeerPath`] that the data path shares.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) path: Arc<PeerPath>,
    pub(super) preshared_key: Option<PresharedKey>,
    pub(super) static_static: StaticStatic,
    pub(super) persistent_keepalive: Option<PersistentKeepalive>,
    pub(super) allowed_ips: BTreeSet<IpNet>,

    /// The keys for the codes of messages that we send to the peer.
    pub(super) mac_keys: MacKeys,
    pub(super) cookies: CookieJar,
    pub(super) sessions: Sessions,
    pub(super) pending: Option<PendingHandshake>,
    pub(super) attempt: Option<Attempt>,
    /// When we last sent an initiation or a response.
    pub(super) handshake_sent: Option<Instant>,
    pub(super) last_handshake: Option<UnixTime>,
    pub(super) timestamp_sent: Option<Tai64N>,
    pub(super) initiations: InitiationFilter,
    /// Whether a keepalive is to be sent, unless a staged packet is.
    pub(super) keepalive_wanted: bool,
    /// How many more times staged packets are sent before the data path uses the current session.
    pub(super) rounds_left: usize,
    /// Whether a handshake is to begin, even if there is a session.
    pub(super) handshake_wanted: bool,
    /// Whether the peer is in the device's queue of those to which one of these is to be sent.
    pub(super) is_queued: bool,

    /// When all key material is wiped.
    pub(super) wipe_at: Option<Instant>,
    /// Added to the timeout after which an unanswered packet begins a handshake. Drawn again after each.
    pub(super) jitter: Duration,
    /// When the device checks the peer's timers next.
    pub(super) scheduled: Option<Instant>,
}

/// An initiation that was sent and may still be answered.
#[derive(Debug)]
pub(super) struct PendingHandshake {
    pub(super) noise: InitiatorHandshake,
    pub(super) index: u32,
    /// How many responses claimed to answer it, and did not.
    pub(super) failed: u32,
}

/// An attempt to get a session, with as many initiations as it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// When it began, or when a packet last asked for a session (paper, section 6.4).
    pub(super) since: Instant,
    /// When the next initiation is due.
    pub(super) retry_at: Instant,
}

impl Attempt {
    /// Whether it has taken so long that it is given up. `asked` is when a packet last asked for a session, if one did.
    pub(super) fn is_over(&self, now: Instant, asked: Option<Instant>) -> bool {
        now.since(asked.map_or(self.since, |asked| asked.max(self.since))) >= REKEY_ATTEMPT_TIME
    }
}

/// Keepalives that are sent even when nothing was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct PersistentKeepalive {
    /// The seconds between the last message, sent or received, and the next keepalive.
    pub(super) interval: NonZeroU16,
    /// When they were turned on, which is when the first one is due.
    pub(super) since: Instant,
}

impl Peer {
    pub(super) fn new(id: PeerId, public_key: PublicKey, jitter: Duration) -> Self {
        Self {
            path: Arc::new(PeerPath::new(id, public_key)),
            preshared_key: None,
            static_static: StaticStatic::default(),
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
            initiations: InitiationFilter::default(),
            keepalive_wanted: false,
            rounds_left: 0,
            handshake_wanted: false,
            is_queued: false,
            wipe_at: None,
            jitter,
            scheduled: None,
        }
    }

    /// Ends the attempt, if there is one: the next packet for the peer may ask for another.
    pub(super) fn end_attempt(&mut self) {
        self.attempt = None;
        self.path.news.end_search();
    }
}
