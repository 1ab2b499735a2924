//! The control part of a device.
//!
//! | file | holds |
//! |---|---|
//! | `configuration` | changing keys, peers and allowed-IPs |
//! | `peer`, `sessions` | what the device knows about a peer |
//! | `handshakes` | beginning, answering and finishing handshakes |
//! | `staging` | packets that wait for a session |
//! | `timers` | what is due, and when |
//! | `status` | reading the state back |

mod configuration;
mod handshakes;
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
use self::peer::Peer;
pub use self::status::PeerStatus;
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::handshake::cookie::{CookieMaker, MacKeys};
use crate::handshake::index_table::IndexTable;
use crate::handshake::load::LoadGauge;
use crate::handshake::noise::Identity;
use crate::handshake::rate_limiter::RateLimiter;
use crate::index_permutation::IndexPermutation;
use crate::message::{INITIATION_LEN, MessageKind};
use crate::peer_id::PeerId;
use crate::randomness::Randomness;
use crate::time::{Instant, Now};
use crate::transport::Transport;
use crate::transport::allowed_ips::AllowedIps;
use crate::transport::peer_path::PeerPath;
use crate::transport::signal::{Events, Signal};

/// How far the clock of a worker that signals something may be ahead of the turn that handles it.
const SIGNAL_AHEAD: Duration = Duration::from_secs(1);

/// A WireGuard device without sockets. The [crate's documentation](crate) says how to drive it.
#[derive(Debug)]
pub struct Device {
    randomness: Randomness,
    identity: Option<Identity>,
    /// The keys for the codes of messages that we receive.
    own_mac_keys: Option<MacKeys>,
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
    /// The datagram that [`Self::poll_transmit`] returned last.
    transmitting: Vec<u8>,
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
    /// [`data_len`](crate::message::data_len) of the longest packet given to [`Device::handle_outgoing`].
    pub datagram: &'a [u8],
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
            transmitting: Vec::new(),
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

    /// The number of packets that [`Self::handle_outgoing`] kept and that were dropped when their handshake was given
    /// up, since the device was created: [`DropReason::HandshakeTimedOut`].
    #[must_use]
    pub fn timed_out_packets(&self) -> u64 {
        self.timed_out_packets
    }

    /// The number of packets that waited for a session and were dropped with their peer, its sessions or our key, since
    /// the last call: [`DropReason::Forgotten`].
    pub fn take_forgotten_packets(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_packets)
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
    /// A device is under load, and demands cookies, when more than 256 handshake messages arrive within 250 ms. If
    /// datagrams have been waiting after every round for that long, more than 16 are enough, because a slow processor
    /// never gets to 256.
    pub fn note_backlog(&mut self, now: Now, more_wait: bool) {
        self.load.note_backlog(now.monotonic, more_wait);
    }

    /// Keeps a packet that could not be sealed until there is a session with the peer, and begins a handshake unless
    /// one is under way. An empty packet becomes a keepalive. `mtu` is the interface's, in bytes; padding does not
    /// exceed it (see [`padded_len`](crate::message::padded_len)).
    ///
    /// # Errors
    /// * [`DropReason::NoPeerForDestination`] when there is no such peer any more: the packet is dropped.
    /// * [`DropReason::NoEndpoint`] when the peer has no endpoint: the packet is dropped.
    /// * [`DropReason::QueueFull`] when 128 packets wait already: the packet is kept, and the oldest one is dropped.
    pub fn handle_outgoing(
        &mut self,
        now: Now,
        peer: PeerId,
        packet: &[u8],
        mtu: usize,
    ) -> Result<(), DropReason> {
        let id = peer;
        let peer = self.peers.get_mut(&id).ok_or(DropReason::NoPeerForDestination)?;
        if peer.path.endpoint().is_none() {
            return Err(DropReason::NoEndpoint);
        }
        let fits = peer.staged.push(packet, mtu);
        self.send_staged(now, id);
        if fits { Ok(()) } else { Err(DropReason::QueueFull) }
    }

    /// Handles what sealing or opening reported.
    pub fn handle_signal(&mut self, now: Now, signal: Signal) {
        let id = signal.peer;
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let events = peer.path.news.take();
        // The session may have been renewed since. The worker's clock may be ahead of this turn's, which began before.
        let there = now.monotonic + SIGNAL_AHEAD;
        let current = peer.sessions.current();
        let rekey = events.contains(Events::REKEY_DUE)
            && current.is_some_and(|session| session.is_due_for_rekey(there));
        let last_minute = events.contains(Events::LAST_MINUTE)
            && current.and_then(|session| session.last_minute()).is_some_and(|at| at <= there);
        if events.contains(Events::SESSION_CONFIRMED) {
            self.promote_confirmed(now, id);
        }
        if rekey || last_minute {
            self.begin_handshake(now, id);
        }
        self.reschedule(id);
    }

    /// Does what is due. Call it at the moment that [`Self::poll_timeout`] returns. Early and late calls are harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now.monotonic {
                break;
            }
            while let Some((at, due)) = self.peers.get(&id).and_then(|peer| peer.next_due())
                && at <= now.monotonic
            {
                self.handle_due(now, id, due);
            }
            self.reschedule(id);
        }
    }

    /// Handles that the interface went down: drops all sessions, handshakes and waiting packets. Until
    /// [`Self::handle_up`], the device may be configured but must not be driven.
    pub fn handle_down(&mut self) {
        self.outbox.clear();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.forget_sessions(id);
            self.unschedule(id);
        }
    }

    /// Handles that the interface went up: persistent keepalives begin.
    pub fn handle_up(&mut self) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.reschedule(id);
        }
    }

    /// The next datagram to be sent, or `None` when there is nothing to send.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>> {
        let endpoint = self.next_transmit(now)?;
        Some(Transmit { endpoint, datagram: &self.transmitting })
    }

    /// Moves the next datagram to `transmitting` and returns where to send it.
    fn next_transmit(&mut self, now: Now) -> Option<Endpoint> {
        loop {
            if let Some(message) = self.outbox.pop_front() {
                self.transmitting.clear();
                self.transmitting.extend_from_slice(&message.bytes[..message.len]);
                return Some(message.endpoint);
            }
            let id = *self.ready.front()?;
            if let Some(endpoint) = self.seal_staged(now, id) {
                return Some(endpoint);
            }
            self.ready.pop_front();
        }
    }

    /// When to call [`Self::handle_timeout`] next, or `None` when nothing is scheduled.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }
}
