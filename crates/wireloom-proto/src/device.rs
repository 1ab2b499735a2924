//! The control part: ties peers, handshakes, timers and the transport together.

mod configuration;
mod handshakes;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;

pub use self::configuration::{Configuration, ConfigureError, PeerConfiguration};
use crate::allowed_ips::AllowedIps;
use crate::cookie::{CookieMaker, MacKeys};
use crate::endpoint::Endpoint;
use crate::handshake::Identity;
use crate::index::IndexTable;
use crate::load::{LoadGauge, RateLimiter};
use crate::message::{INITIATION_LEN, MessageKind};
use crate::path::PeerPath;
use crate::peer::Peer;
use crate::peer_id::PeerId;
use crate::signal::{News, Signal};
use crate::time::{Instant, Now, UnixTime};
use crate::transport::Transport;
use crate::verdict::DropReason;
use wireloom_types::{PresharedKey, PrivateKey, PublicKey};

/// A WireGuard device without its sockets: the crate's documentation says how to drive it.
#[derive(Debug)]
pub struct Device {
    rng: ChaCha20Rng,
    identity: Option<Arc<Identity>>,
    /// For messages to us.
    own_mac_keys: Option<MacKeys>,
    transport: Arc<Transport>,
    peers: BTreeMap<PeerId, Peer>,
    ids: BTreeMap<PublicKey, PeerId>,
    next_id: u64,
    routes: AllowedIps<Arc<PeerPath>>,
    indices: IndexTable,
    cookies: CookieMaker,
    load: LoadGauge,
    limiter: RateLimiter,
    /// Handshake messages to be sent.
    outbox: VecDeque<Outgoing>,
    /// Peers with staged packets and maybe a session to send them with.
    ready: VecDeque<PeerId>,
    /// The datagram that [`Self::poll_transmit`] returned last.
    transmitting: Vec<u8>,
    deadlines: BTreeSet<(Instant, PeerId)>,
    /// Staged packets that were lost when their handshake was given up.
    timed_out_packets: u64,
}

/// A handshake message to be sent: none is longer than an initiation.
#[derive(Debug)]
struct Outgoing {
    endpoint: Endpoint,
    bytes: [u8; INITIATION_LEN],
    len: usize,
}

/// A datagram to be sent: [`Device::poll_transmit`] lends it until the device is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// Its bytes: a handshake message, a keepalive, or a packet that waited for a session. The longest one is
    /// [`data_len`](crate::message::data_len) of the longest packet given to [`Device::handle_outgoing`].
    pub datagram: &'a [u8],
}

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

impl Device {
    /// A device without keys and peers. All its randomness comes from the seed, which must be drawn
    /// from the operating system's generator, once for each device.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: ChaCha20Rng::from_seed(seed),
            identity: None,
            own_mac_keys: None,
            transport: Arc::new(Transport::new()),
            peers: BTreeMap::new(),
            ids: BTreeMap::new(),
            next_id: 0,
            routes: AllowedIps::default(),
            indices: IndexTable::default(),
            cookies: CookieMaker::new(),
            load: LoadGauge::default(),
            limiter: RateLimiter::default(),
            outbox: VecDeque::new(),
            ready: VecDeque::new(),
            transmitting: Vec::new(),
            deadlines: BTreeSet::new(),
            timed_out_packets: 0,
        }
    }

    /// The data part.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// The device's identity: a secret.
    #[must_use]
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.identity.as_ref().map(|identity| &identity.private_key)
    }

    /// The peers, in the order in which they were added.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus<'_>> {
        self.peers.values().map(status)
    }

    /// How many peers there are.
    #[must_use]
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// One peer.
    #[must_use]
    pub fn peer(&self, public_key: &PublicKey) -> Option<PeerStatus<'_>> {
        let id = self.ids.get(public_key)?;
        self.peers.get(id).map(status)
    }

    /// How many packets [`Self::handle_outgoing`] took and that were lost later, because nobody
    /// answered the handshake: [`DropReason::HandshakeTimedOut`].
    #[must_use]
    pub fn timed_out_packets(&self) -> u64 {
        self.timed_out_packets
    }

    /// Handles an initiation, a response or a cookie reply.
    ///
    /// # Errors
    /// The reason why the datagram is dropped.
    pub fn handle_handshake(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        match MessageKind::classify(datagram)? {
            MessageKind::Initiation => self.handle_initiation(now, from, datagram),
            MessageKind::Response => self.handle_response(now, from, datagram),
            MessageKind::CookieReply => self.handle_cookie_reply(now, datagram),
            MessageKind::Data => Err(DropReason::BadType),
        }
    }

    /// Notes whether, after what was handled, something still waits that has arrived (`true`), or nothing does.
    /// Who is told so after every look knows when it stays behind, and demands cookies of fewer handshakes
    /// ([`timers::LOAD_THRESHOLD_BEHIND`](crate::timers::LOAD_THRESHOLD_BEHIND)).
    pub fn note_backlog(&mut self, now: Now, waits: bool) {
        self.load.note_backlog(now.monotonic, waits);
    }

    /// Takes a packet that could not be sealed and keeps it until there is a session, for which it
    /// begins a handshake when none is under way. `mtu` bounds its padding; an empty packet is a
    /// keepalive.
    ///
    /// # Errors
    /// A packet that is lost: this one, when the peer is gone or has no endpoint; the oldest that
    /// waited ([`DropReason::QueueFull`]), when too many do.
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

    /// Begins a handshake with a peer, unless one is under way. [`Self::handle_outgoing`] does so by itself; this
    /// is for the caller who drops a packet because the peer is not [reachable](PeerPath::is_reachable).
    pub fn begin_handshake(&mut self, now: Now, peer: PeerId) {
        self.begin_attempt(now, peer);
    }

    /// Handles what the data path found out.
    pub fn handle_signal(&mut self, now: Now, signal: Signal) {
        let id = signal.peer;
        if signal.news.contains(News::SESSION_CONFIRMED) {
            self.promote_confirmed(now, id);
        }
        if signal.news.contains(News::REKEY_DUE) || signal.news.contains(News::LAST_MINUTE) {
            self.begin_attempt(now, id);
        }
        self.reschedule(id);
    }

    /// Does what is due; call it when the moment of [`Self::poll_timeout`] has come. Early and late
    /// calls are harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now.monotonic {
                break;
            }
            while let Some((at, due)) = self.peers.get(&id).and_then(Peer::next_due)
                && at <= now.monotonic
            {
                self.handle_due(now, id, due);
            }
            self.reschedule(id);
        }
    }

    /// The interface went down: forgets all sessions and handshakes and what waited for them. Until
    /// [`Self::handle_up`] the device may be configured, but is not to be driven.
    pub fn handle_down(&mut self) {
        self.outbox.clear();
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.forget_sessions(id);
            self.unschedule(id);
        }
    }

    /// The interface went up: persistent keepalives begin.
    pub fn handle_up(&mut self) {
        let ids: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in ids {
            self.reschedule(id);
        }
    }

    /// The next datagram to be sent; `None` when there is nothing to send.
    pub fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>> {
        let endpoint = self.next_transmit(now)?;
        Some(Transmit { endpoint, datagram: &self.transmitting })
    }

    /// Puts the next datagram into [`Self::transmitting`], and returns where to send it.
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

    /// When [`Self::handle_timeout`] is to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }
}

fn status(peer: &Peer) -> PeerStatus<'_> {
    PeerStatus {
        id: peer.path.id(),
        path: &peer.path,
        public_key: peer.path.public_key(),
        preshared_key: peer.preshared_key.as_ref(),
        endpoint: peer.path.endpoint(),
        persistent_keepalive: peer.persistent_keepalive.map(|keepalive| keepalive.interval),
        allowed_ips: &peer.allowed_ips,
        last_handshake: peer.last_handshake,
        received_bytes: peer.path.received_bytes(),
        sent_bytes: peer.path.sent_bytes(),
        protocol_version: 1,
    }
}
