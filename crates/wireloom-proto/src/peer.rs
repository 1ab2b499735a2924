//! The control half of a peer: what only the device touches.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use wireloom_types::{
    PresharedKey, PublicKey,
    limits::{KEEPALIVE_TIMEOUT, REKEY_ATTEMPT_TIME},
};

use crate::cookie::{CookieJar, MacKeys};
use crate::handshake::InitiatorHandshake;
use crate::message::{self, DATA_HEADER_LEN, DATA_OVERHEAD};
use crate::path::PeerPath;
use crate::peer_id::PeerId;
use crate::session::Session;
use crate::time::{Instant, Tai64N, UnixTime};
use crate::timers::{INITIATION_INTERVAL_MIN, UNANSWERED_TIMEOUT};
use crate::verdict::DropReason;

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

/// What a timer asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Wipe all key material.
    Wipe,
    /// Send the initiation again, or give up.
    RetryHandshake,
    /// Data was sent and nothing came back: begin a handshake.
    Unanswered,
    /// Data was received and nothing was sent: send a keepalive.
    Keepalive,
    /// The interval of persistent keepalives is over.
    PersistentKeepalive,
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

    /// The timer that is due first, and when.
    pub(crate) fn next_due(&self) -> Option<(Instant, Due)> {
        let activity = &self.path.activity;
        let unanswered = activity.unanswered_since.get();
        let owing = activity.owing_since.get();
        let timers = [
            (self.wipe_at, Due::Wipe),
            (self.attempt.map(|attempt| attempt.retry_at), Due::RetryHandshake),
            (unanswered.map(|since| since + UNANSWERED_TIMEOUT + self.jitter), Due::Unanswered),
            (owing.map(|since| since + KEEPALIVE_TIMEOUT), Due::Keepalive),
            (self.persistent_keepalive_at(), Due::PersistentKeepalive),
        ];
        let armed = timers.into_iter().filter_map(|(at, due)| Some((at?, due)));
        armed.min_by_key(|(at, _)| *at)
    }

    fn persistent_keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.persistent_keepalive?;
        self.path.endpoint()?;
        let interval = Duration::from_secs(keepalive.interval.get().into());
        let last = self.path.activity.traversed.get();
        Some(last.map_or(keepalive.since, |last| last + interval))
    }
}

/// The sessions of a peer. Only the current one sends; all of them receive, so that messages under
/// way survive a renewal.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    /// One that we answered for, until the peer proves that it has the keys.
    next: Option<Arc<Session>>,
}

/// Sessions that ended.
pub(crate) type Ended = [Option<Arc<Session>>; 3];

impl Sessions {
    pub(crate) fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// Puts a session that we initiated in use at once: its response proved the peer's keys.
    ///
    /// One that waits to be confirmed goes on waiting: both sides began at once, and until they
    /// agree the peer may send with it.
    pub(crate) fn begin_initiated(&mut self, session: Arc<Session>) -> Ended {
        let replaced = self.current.replace(session);
        [std::mem::replace(&mut self.previous, replaced), None, None]
    }

    /// Puts aside a session that we answered for.
    pub(crate) fn begin_answered(&mut self, session: Arc<Session>) -> Ended {
        [self.previous.take(), self.next.replace(session), None]
    }

    /// Puts the answered session in use, when the peer has proved that it has the keys.
    ///
    /// When both sides began at once, there is one session of each. Both work; but if each side kept
    /// to its own, both would renew at once forever, which costs packets. So the side that yields
    /// goes over to the other's, and the other does not.
    pub(crate) fn promote_confirmed(&mut self, we_yield: bool) -> Option<Ended> {
        let current = self.current.as_ref();
        let next = self.next.take_if(|next| {
            let newer = current.is_none_or(|current| current.born() <= next.born());
            next.is_confirmed() && (newer || we_yield)
        })?;
        let replaced = self.current.replace(next);
        Some([std::mem::replace(&mut self.previous, replaced), None, None])
    }

    /// Ends all of them.
    pub(crate) fn end(&mut self) -> Ended {
        [self.previous.take(), self.current.take(), self.next.take()]
    }
}

/// Decides whether an initiation is new.
#[derive(Debug, Default)]
pub(crate) struct InitiationGate {
    greatest: Option<Tai64N>,
    last: Option<Instant>,
}

impl InitiationGate {
    /// Lets an authentic initiation pass if its timestamp is greater than all before, and if it
    /// does not follow the last one too closely.
    pub(crate) fn pass(&mut self, now: Instant, timestamp: Tai64N) -> Result<(), DropReason> {
        if self.greatest.is_some_and(|greatest| timestamp <= greatest) {
            return Err(DropReason::StaleTimestamp);
        }
        if self.last.is_some_and(|last| now.since(last) < INITIATION_INTERVAL_MIN) {
            return Err(DropReason::InitiationFlood);
        }
        self.greatest = Some(timestamp);
        self.last = Some(now);
        Ok(())
    }
}

/// Packets that wait for one peer's session, at most; the kernel's `MAX_STAGED_PACKETS`.
pub(crate) const STAGED_MAX: usize = 128;

/// Packets that wait for a session, laid out as messages that only need sealing.
#[derive(Default)]
pub(crate) struct StagedPackets(VecDeque<Vec<u8>>);

impl fmt::Debug for StagedPackets {
    /// How many: what is in them is private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StagedPackets").field(&self.0.len()).finish()
    }
}

impl StagedPackets {
    /// Adds a packet; false when that pushed the oldest out.
    pub(crate) fn push(&mut self, packet: &[u8], mtu: usize) -> bool {
        let mut message = vec![0; message::data_len(packet.len(), mtu)];
        message[DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        self.0.push_back(message);
        let fits = self.0.len() <= STAGED_MAX;
        if !fits {
            self.0.pop_front();
        }
        fits
    }

    /// Makes sure that something will be sent: a keepalive, when no packet waits.
    pub(crate) fn ensure_one(&mut self) {
        if self.0.is_empty() {
            self.0.push_back(vec![0; DATA_OVERHEAD]);
        }
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut [u8]> {
        self.0.front_mut().map(Vec::as_mut_slice)
    }

    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops all, and returns how many packets (keepalives aside) that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let packets = self.0.drain(..).filter(|message| message.len() > DATA_OVERHEAD);
        packets.count() as u64
    }
}
