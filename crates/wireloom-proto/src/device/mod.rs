//! The control part of a device.
//!
//! | file | holds |
//! |---|---|
//! | `configuration` | changing keys, peers and allowed-IPs |
//! | `peer`, `sessions` | what the device knows about a peer |
//! | `handshakes` | beginning, answering and finishing handshakes |
//! | `staging` | sending what waited for a session |
//! | `timers` | what is due, and when |
//! | `status` | reading the state back |
//! | `handover` | handing the state over to a successor, and being one |

mod configuration;
mod handover;
mod handshakes;
#[cfg(test)]
mod models;
mod peer;
mod sessions;
mod staging;
mod status;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use wireloom_types::{PrivateKey, PublicKey};

pub use self::configuration::{Configuration, ConfigureError, PeerConfiguration};
pub use self::handover::Successor;
use self::peer::Peer;
pub use self::status::PeerStatus;
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::handshake::cookie::{CookieMaker, MacKeys};
use crate::handshake::index_table::IndexTable;
use crate::handshake::load::LoadGauge;
use crate::handshake::noise::Identity;
use crate::handshake::rate_limiter::RateLimiter;
use crate::handshake::timestamp::OwnTimestamps;
use crate::index_permutation::IndexPermutation;
use crate::message::{INITIATION_LEN, MessageKind};
use crate::peer_id::PeerId;
use crate::randomness::Randomness;
use crate::time::{Instant, Now, UnixTime};
use crate::transport::Transport;
use crate::transport::allowed_ips::AllowedIps;
use crate::transport::peer_path::PeerPath;
use crate::transport::signal::{Events, Signal};
use crate::transport::staging::STAGED_MAX;

/// The most peers for which [`Device::handle_timeout`] does what is due. To begin a handshake takes about 100 µs, so
/// all of them take less than a millisecond, and whatever else is to be done is done in between.
const DUE_AT_ONCE: usize = 8;

/// The most peers of which it looks whether a handshake that was asked for can begin now. Mostly it cannot: the last
/// initiation was sent less than 5 seconds ago.
const WANTED_AT_ONCE: usize = 64;

/// How far the clock of a worker that signals something may be ahead of the turn that handles it.
const SIGNAL_AHEAD: Duration = Duration::from_secs(1);

/// A WireGuard device without sockets. The [crate's documentation](crate) says how to drive it.
#[derive(Debug)]
pub struct Device {
    randomness: Randomness,
    identity: Option<Identity>,
    /// The keys for the codes of messages that we receive.
    own_mac_keys: Option<MacKeys>,
    timestamps: OwnTimestamps,
    transport: Arc<Transport>,
    /// Boxed, because a tree moves its entries and would leave copies of their secrets behind.
    peers: BTreeMap<PeerId, Box<Peer>>,
    ids: BTreeMap<PublicKey, PeerId>,
    next_id: u64,
    routes: AllowedIps<Arc<PeerPath>>,
    indices: IndexTable,
    cookies: CookieMaker,
    load: LoadGauge,
    limiter: RateLimiter,
    /// Handshake messages that wait to be sent.
    outbox: VecDeque<HandshakeMessage>,
    /// Peers whose staged packets can be sent now, unless their session is gone.
    ready: VecDeque<PeerId>,
    /// How many packets were taken from the first of these in a row.
    taken: usize,
    /// What sealing staged packets reported.
    put_aside: Vec<Signal>,
    /// Peers whose staged packets are sealed, and which may use their sessions once these are sent.
    drained: Vec<PeerId>,
    /// Peers that packets wait for. They come before those of `wanted`.
    urgent: VecDeque<(Instant, PeerId)>,
    /// Peers to which a keepalive or an initiation is to be sent, and since when.
    wanted: VecDeque<(Instant, PeerId)>,
    /// The datagram that [`Self::poll_transmit`] returned last.
    transmitting: Vec<u8>,
    /// See [`Transmit::ecn`].
    transmitting_ecn: u8,
    /// When each peer's timers are checked next.
    deadlines: BTreeSet<(Instant, PeerId)>,
    timed_out_packets: u64,
    forgotten_packets: u64,
}

/// A handshake message that waits to be sent. An initiation is the longest one.
#[derive(Debug)]
struct HandshakeMessage {
    endpoint: Endpoint,
    bytes: [u8; INITIATION_LEN],
    len: usize,
}

/// A datagram to be sent, which [`Device::poll_transmit`] lends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// Its bytes: a handshake message, a keepalive, or a packet that waited for a session. The longest one is
    /// that of the longest message given to [`Transport::reserve_or_stage`].
    pub datagram: &'a [u8],
    /// The congestion notification of the packet in it ([`inner::ecn`](crate::inner::ecn)), which the outer header
    /// shows (RFC 6040, section 4.1); 0 where there is no packet.
    pub ecn: u8,
}

impl Device {
    /// A device without keys and peers. All its randomness comes from the seed. Draw the seed from the operating
    /// system's random generator, a new one for each device, and wipe it: whoever has it can compute all ephemeral
    /// keys.
    #[must_use]
    pub fn new(seed: &[u8; 32]) -> Self {
        let mut randomness = Randomness::new(seed);
        let permutation = IndexPermutation::draw(&mut randomness);
        Self {
            randomness,
            identity: None,
            own_mac_keys: None,
            timestamps: OwnTimestamps::default(),
            transport: Arc::new(Transport::new(permutation)),
            peers: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            routes: AllowedIps::default(),
            indices: IndexTable::new(permutation),
            cookies: CookieMaker::new(),
            load: LoadGauge::default(),
            limiter: RateLimiter::default(),
            outbox: VecDeque::new(),
            ready: VecDeque::new(),
            taken: 0,
            put_aside: Vec::new(),
            drained: Vec::new(),
            urgent: VecDeque::new(),
            wanted: VecDeque::new(),
            transmitting: Vec::new(),
            transmitting_ecn: 0,
            deadlines: BTreeSet::new(),
            timed_out_packets: 0,
            forgotten_packets: 0,
        }
    }

    /// The data path, to be shared with the threads that seal and open.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The device's private key, if it has one.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.identity.as_ref().map(|identity| &*identity.private_key)
    }

    /// The peers, in the order in which they were added.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        self.peers.values().map(|peer| peer.status())
    }

    /// The number of peers.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// The peer with this public key, if there is one.
    #[must_use]
    pub fn peer(&self, public_key: &PublicKey) -> Option<PeerStatus<'_>> {
        let id = self.ids.get(public_key)?;
        self.peers.get(id).map(|peer| peer.status())
    }

    /// The number of packets that waited for a session and were dropped when their handshake was given up, since the
    /// device was created: [`DropReason::HandshakeTimedOut`].
    #[must_use]
    pub fn timed_out_packets(&self) -> u64 {
        self.timed_out_packets
    }

    /// The number of packets that waited for a session and were dropped with their peer, its sessions or our key, since
    /// the last call: [`DropReason::Forgotten`].
    pub fn take_forgotten_packets(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_packets)
    }

    /// Makes the timestamps of our initiations greater than what an earlier device with our key [had
    /// kept](Self::timestamp_to_keep). Peers refuse lesser ones, and so would ignore us after a restart with a clock
    /// that was set back. Call it after the private key is set, before anything is sent.
    pub fn continue_timestamps_after(&mut self, kept: UnixTime) {
        self.timestamps.continue_after(kept);
    }

    /// What to keep for the next device with our key: a time, in whole seconds, that no timestamp of our initiations is
    /// after, nor will be in the next 2 minutes, unless the clock jumps. Ask when the private key is set, and when
    /// [`Self::timestamp_reached`] changes. It need not be written unless it is greater than what is kept, which
    /// happens every 4 minutes at most.
    #[must_use]
    pub fn timestamp_to_keep(&self, now: Now) -> UnixTime {
        self.timestamps.to_keep(now.unix)
    }

    /// A time, in whole seconds, that no timestamp of our initiations so far is after: what to keep of a device that
    /// sends nothing more. `None` when there were none.
    #[must_use]
    pub fn timestamp_reached(&self) -> Option<UnixTime> {
        self.timestamps.reached()
    }

    /// Handles an initiation, a response or a cookie reply.
    ///
    /// # Errors
    /// The reason why the datagram is dropped; [`DropReason::BadType`] for a data message.
    pub fn handle_handshake(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        match MessageKind::classify(datagram)? {
            MessageKind::Initiation => self.handle_initiation(now, from, datagram),
            MessageKind::Response => self.handle_response(now, from, datagram),
            MessageKind::CookieReply => self.handle_cookie_reply(now, datagram),
            MessageKind::Data => Err(DropReason::BadType),
        }
    }

    /// Takes note of whether more datagrams wait to be handled. Call it after each round of handling datagrams.
    ///
    /// A device is under load, and demands cookies, when more than 256 handshake messages arrive within 250 ms; answers
    /// to its own handshakes do not count. If datagrams have been waiting after every round for that long, more than 16
    /// are enough, because a slow processor never gets to 256.
    pub fn note_backlog(&mut self, now: Now, more_wait: bool) {
        self.load.note_backlog(now.monotonic, more_wait);
    }

    /// Handles what sealing or opening reported.
    pub fn handle_signal(&mut self, now: Now, signal: Signal) {
        let id = signal.peer;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let events = peer.path.news.take();
        // An attempt that is under way seeks the peer already.
        let sought = events.contains(Events::SOUGHT) && peer.attempt.is_none();
        // First: the rest is about the session that this brings into use, or does not concern it.
        if events.contains(Events::SESSION_CONFIRMED) {
            self.promote_confirmed(now, id);
        }
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        // The session may have been renewed since. The worker's clock may be ahead of this turn's, which began before.
        let there = now.monotonic + SIGNAL_AHEAD;
        let current = peer.sessions.current();
        let rekey = events.contains(Events::REKEY_DUE)
            && current.is_some_and(|session| session.is_due_for_rekey(there));
        let last_minute = events.contains(Events::LAST_MINUTE)
            && current.and_then(|session| session.last_minute()).is_some_and(|at| at <= there);
        if events.contains(Events::PACKETS_WAIT) {
            self.ask_for_session(now, id);
        }
        if rekey || last_minute || sought {
            self.ask_for_handshake(now, id);
        }
        self.reschedule(now.monotonic, id);
    }

    /// Sends what waits for a session with the peer, or has a handshake begin for it.
    fn ask_for_session(&mut self, now: Now, id: PeerId) {
        let current = self.peers.get(&id).and_then(|peer| peer.sessions.current());
        if current.is_some_and(|session| !session.is_expired(now.monotonic)) {
            self.send_staged(now, id);
        } else if !self.transport.staging.is_empty(id)
            && let Some(peer) = self.peers.get_mut(&id)
        {
            peer.handshake_wanted = true;
            self.urgent.push_back((now.monotonic, id));
        }
    }

    /// Has a handshake begin at the next [`Self::handle_timeout`].
    fn ask_for_handshake(&mut self, now: Now, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.handshake_wanted = true;
            self.queue(now.monotonic, id);
        }
    }

    /// Has the next [`Self::handle_timeout`] send what is wanted of a peer.
    fn queue(&mut self, now: Instant, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && !std::mem::replace(&mut peer.is_queued, true)
        {
            self.wanted.push_back((now, id));
        }
    }

    /// Does what is due, for at most [`DUE_AT_ONCE`] peers, and begins at most as many handshakes that were asked for.
    /// Call it at the moment that [`Self::poll_timeout`] returns, which is still that moment when more is due. Early
    /// and late calls are harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        self.do_wanted(now, |device| device.next_urgent().or_else(|| device.next_wanted()));
        let mut budget = DUE_AT_ONCE;
        while budget > 0
            && let Some((at, id)) = self.deadlines.first().copied()
            && at <= now.monotonic
        {
            while let Some((at, due)) = self.peers.get(&id).and_then(|peer| peer.next_due())
                && at <= now.monotonic
            {
                self.handle_due(now, id, due);
            }
            self.reschedule(now.monotonic, id);
            budget -= 1;
        }
    }

    /// Begins handshakes that packets wait for, at most [`DUE_AT_ONCE`]. [`Self::handle_timeout`] does so first. A
    /// caller who pauses before he calls that again, because much is due, can let these pass.
    pub fn handle_urgent(&mut self, now: Now) {
        self.do_wanted(now, Self::next_urgent);
    }

    /// Sends what is wanted of the peers that `next` takes out of a queue.
    fn do_wanted(&mut self, now: Now, next: impl Fn(&mut Self) -> Option<PeerId>) {
        let full = self.outbox.len() + DUE_AT_ONCE;
        for _ in 0..WANTED_AT_ONCE {
            if self.outbox.len() >= full {
                break;
            }
            let Some(id) = next(self) else { break };
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if std::mem::take(&mut peer.handshake_wanted) {
                self.begin_handshake(now, id);
            } else {
                self.send_staged(now, id);
            }
            self.reschedule(now.monotonic, id);
        }
    }

    fn next_urgent(&mut self) -> Option<PeerId> {
        self.urgent.pop_front().map(|(_, id)| id)
    }

    fn next_wanted(&mut self) -> Option<PeerId> {
        let (_, id) = self.wanted.pop_front()?;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.is_queued = false;
        }
        Some(id)
    }

    /// Handles that the interface went down: drops all sessions, handshakes and waiting packets. Until
    /// [`Self::handle_up`], the device may be configured but must not be driven.
    pub fn handle_down(&mut self) {
        self.outbox.clear();
        self.forget_wanted();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.forget_sessions(id);
            self.unschedule(id);
        }
    }

    fn forget_wanted(&mut self) {
        let urgent = std::mem::take(&mut self.urgent);
        for (_, id) in std::mem::take(&mut self.wanted).into_iter().chain(urgent) {
            if let Some(peer) = self.peers.get_mut(&id) {
                (peer.is_queued, peer.handshake_wanted, peer.keepalive_wanted) = (false, false, false);
                peer.path.news.end_search();
            }
        }
    }

    /// Handles that the interface went up: persistent keepalives begin.
    pub fn handle_up(&mut self) {
        self.forget_wanted();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.schedule(id);
        }
    }

    /// The next datagram to be sent, or `None` when there is nothing to send. Call [`Self::note_transmitted`] when what
    /// it returned was sent.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>> {
        let endpoint = self.next_transmit(now)?;
        Some(Transmit { endpoint, datagram: &self.transmitting, ecn: self.transmitting_ecn })
    }

    /// Moves the next datagram to `transmitting` and returns where to send it.
    fn next_transmit(&mut self, now: Now) -> Option<Endpoint> {
        loop {
            if let Some(message) = self.outbox.pop_front() {
                self.transmitting_ecn = 0;
                self.transmitting.clear();
                self.transmitting.extend_from_slice(&message.bytes[..message.len]);
                return Some(message.endpoint);
            }
            let id = *self.ready.front()?;
            if self.taken < STAGED_MAX
                && let Some(endpoint) = self.seal_staged(now, id)
            {
                self.taken += 1;
                return Some(endpoint);
            }
            self.taken = 0;
            self.drained.extend(self.ready.pop_front());
        }
    }

    /// When to call [`Self::handle_timeout`] next, or `None` when nothing is scheduled.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let wanted = self.urgent.front().or(self.wanted.front()).map(|(at, _)| *at);
        let due = self.deadlines.first().map(|(at, _)| *at);
        wanted.into_iter().chain(due).min()
    }
}
