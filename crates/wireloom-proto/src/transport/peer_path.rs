//! The path to a peer: what the data path needs to send to it and to count its traffic.

use std::fmt;
use std::sync::Arc;

use wireloom_types::PublicKey;

use crate::endpoint::Endpoint;
use crate::handover::PathState;
use crate::message::DATA_OVERHEAD;
use crate::peer_id::PeerId;
use crate::sync::ArcSwapOption;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::time::Instant;
use crate::transport::activity::Activity;
use crate::transport::path_mtu::PathMtu;
use crate::transport::session::{Counters, SealError, Session};
use crate::transport::signal::{Events, News, Signal};

/// The path to a peer: its current session, its endpoint and its byte counters.
///
/// The device writes it, and the data path reads it. Whoever holds a path may keep it after the peer is removed, but it
/// has no session then.
pub struct PeerPath {
    id: PeerId,
    public_key: PublicKey,
    session: ArcSwapOption<Session>,
    endpoint: ArcSwapOption<Endpoint>,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// False after an initiation went unanswered, until a message arrives from the peer.
    reachable: AtomicBool,
    path_mtu: PathMtu,
    pub(crate) activity: Activity,
    pub(crate) news: News,
}

/// Where to send a batch that was sealed, and what the device must be told about it.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    /// Where to send the messages.
    pub endpoint: Endpoint,
    /// What the device must be told, if anything.
    pub signal: Option<Signal>,
}

/// A reservation to seal a batch of messages later, on any thread: a session, and counters that nobody else uses.
///
/// Dropping it is safe: the counters are skipped, and the peer's replay window allows for gaps.
#[derive(Debug)]
pub struct Reserved {
    session: Arc<Session>,
    counters: Counters,
    /// Where to send the messages, once they are sealed.
    pub endpoint: Endpoint,
    /// What the device must be told now, if anything.
    pub signal: Option<Signal>,
}

impl Reserved {
    /// Seals the messages, each laid out as by [`message::frame`](crate::message::frame).
    ///
    /// # Panics
    /// When there are more messages than were reserved, or one is shorter than [`DATA_OVERHEAD`].
    pub fn seal<'m>(self, messages: impl ExactSizeIterator<Item = &'m mut [u8]>) {
        self.session.seal_reserved(self.counters, messages);
    }
}

impl PeerPath {
    pub(crate) fn new(id: PeerId, public_key: PublicKey) -> Self {
        Self {
            id,
            public_key,
            session: ArcSwapOption::empty(),
            endpoint: ArcSwapOption::empty(),
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            reachable: AtomicBool::new(true),
            path_mtu: PathMtu::default(),
            activity: Activity::new(),
            news: News::default(),
        }
    }

    /// A path that was handed over, without a session.
    pub(crate) fn from_state(id: PeerId, public_key: PublicKey, state: &PathState) -> Self {
        let path = Self {
            sent_bytes: AtomicU64::new(state.sent_bytes),
            received_bytes: AtomicU64::new(state.received_bytes),
            reachable: AtomicBool::new(state.reachable),
            path_mtu: PathMtu::from_state(&state.path_mtu),
            ..Self::new(id, public_key)
        };
        path.endpoint.store(state.endpoint.map(Arc::new));
        path.activity.set_state(&state.activity);
        path.news.add_bits(state.news);
        path
    }

    /// What is to be handed over.
    pub(crate) fn state(&self) -> PathState {
        PathState {
            endpoint: self.endpoint(),
            sent_bytes: self.sent_bytes(),
            received_bytes: self.received_bytes(),
            reachable: self.reachable.load(Ordering::Relaxed),
            path_mtu: self.path_mtu.state(),
            activity: self.activity.state(),
            news: self.news.bits(),
        }
    }

    /// The peer's identifier.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The peer's public key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Where the peer last sent from, or is configured to be.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.load().as_deref().copied()
    }

    /// Whether packets for the peer are worth keeping until there is a session.
    ///
    /// False while the peer has no endpoint, and after it left an initiation unanswered for
    /// [`REKEY_TIMEOUT`](wireloom_types::limits::REKEY_TIMEOUT) while nothing had arrived from it for 15 seconds.
    /// True again when a message arrives from it or its endpoint is configured. To try it, call
    /// [`Self::seek`].
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed) && self.endpoint.load().is_some()
    }

    /// When an authentic message last came from the peer, if one has since its sessions were last forgotten.
    #[must_use]
    pub fn last_heard(&self) -> Option<Instant> {
        self.activity.last_received.get()
    }

    /// The largest IP packet that the underlay carries to the peer, in bytes, if known: the smaller of what was
    /// configured and what the network reported in the last ten minutes.
    #[inline]
    #[must_use]
    pub fn path_mtu(&self, now: Instant) -> Option<usize> {
        self.path_mtu.at(now)
    }

    pub(crate) fn set_path_mtu(&self, bytes: Option<u16>) {
        self.path_mtu.configure(bytes);
    }

    /// Records the path MTU, in bytes, that the network reported. Less than [`PATH_MTU_MIN`](crate::PATH_MTU_MIN)
    /// counts as that. It is forgotten when the peer's endpoint gets another address.
    pub fn learn_path_mtu(&self, now: Instant, bytes: usize) {
        self.path_mtu.learn(now, bytes);
    }

    /// Whether an IP packet of `len` bytes that is about to be sent to the peer should also probe the path: whether it
    /// passes without being fragmented, or the network reports the path MTU. It counts as probed then.
    #[inline]
    #[must_use]
    pub fn probe_path_mtu(&self, now: Instant, len: usize) -> bool {
        self.path_mtu.probe(now, len)
    }

    /// The number of bytes sent to the peer in WireGuard messages of all types.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The number of bytes received from the peer in authentic WireGuard messages of all types.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Seals a batch of messages for the peer, each laid out as by [`message::frame`](crate::message::frame). Send
    /// them in this order to the endpoint that is returned. A message without payload is a keepalive.
    ///
    /// # Errors
    /// [`SealError`]. No message was changed then.
    ///
    /// # Panics
    /// When a message is shorter than [`DATA_OVERHEAD`].
    pub fn seal<'m>(
        &self,
        now: Instant,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) -> Result<Sealed, SealError> {
        let session = self.session.load();
        let session = session.as_deref().ok_or(SealError::NoSession)?;
        self.seal_in(session, now, messages)
    }

    /// Seals in a session that need not be the one that the data path uses. Otherwise this is [`Self::seal`].
    pub(crate) fn seal_in<'m>(
        &self,
        session: &Session,
        now: Instant,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) -> Result<Sealed, SealError> {
        let endpoint = self.endpoint().ok_or(SealError::NoEndpoint)?;
        let mut bytes = 0;
        let mut data = false;
        session.seal(
            now,
            messages.inspect(|message| {
                bytes += message.len();
                data |= message.len() > DATA_OVERHEAD;
            }),
        )?;
        let mut events = self.note_sent(now, bytes, data);
        if session.asks_for_rekey(now) {
            events |= Events::REKEY_DUE;
        }
        Ok(Sealed { endpoint, signal: self.report(events) })
    }

    /// Reserves what is needed to seal `messages` messages for the peer later, on any thread, with [`Reserved::seal`].
    /// None of them may be a keepalive, and `bytes` is their length in all, with header and tag.
    ///
    /// They count as sent now. Send batches in the order in which they were reserved. Otherwise this is
    /// [`Self::seal`].
    ///
    /// # Errors
    /// [`SealError`], as for [`Self::seal`].
    pub fn reserve(&self, now: Instant, messages: usize, bytes: usize) -> Result<Reserved, SealError> {
        let session = self.session.load_full().ok_or(SealError::NoSession)?;
        let endpoint = self.endpoint().ok_or(SealError::NoEndpoint)?;
        let counters = session.reserve(now, messages)?;
        let mut events = self.note_sent(now, bytes, true);
        if session.asks_for_rekey(now) {
            events |= Events::REKEY_DUE;
        }
        Ok(Reserved { session, counters, endpoint, signal: self.report(events) })
    }

    /// Has the device begin a handshake, because a packet was dropped: the peer is not [reachable](Self::is_reachable).
    /// Returns the signal that tells it so, unless it knows, or has no endpoint to try.
    pub fn seek(&self) -> Option<Signal> {
        self.endpoint.load().as_ref()?;
        self.report_once(Events::SOUGHT)
    }

    /// Keeps news for the device. Returns the signal that tells it to take them.
    pub(crate) fn report(&self, events: Events) -> Option<Signal> {
        self.news.add(events).then_some(Signal { peer: self.id })
    }

    /// As [`Self::report`], for what may be reported for every packet. Returns no signal while the event is there.
    pub(crate) fn report_once(&self, events: Events) -> Option<Signal> {
        self.news.add_once(events).then_some(Signal { peer: self.id })
    }

    /// Whether messages to the peer have this receiver index now.
    #[must_use]
    pub fn sends_to(&self, receiver: u32) -> bool {
        self.session.load().as_deref().is_some_and(|session| session.remote_index() == receiver)
    }

    /// Records messages that are sent to the peer, `bytes` long in all.
    pub(crate) fn note_sent(&self, now: Instant, bytes: usize, data: bool) -> Events {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        timer_event(self.activity.note_sent(now, data))
    }

    /// Records authentic messages that came from the peer, `bytes` long in all, and makes their source its endpoint.
    pub(crate) fn note_received(&self, now: Instant, from: Endpoint, bytes: usize, data: bool) -> Events {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.endpoint.load().as_deref() != Some(&from) {
            self.set_endpoint(Some(from));
        }
        self.set_reachable(true);
        timer_event(self.activity.note_received(now, data))
    }

    pub(crate) fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        let address = |endpoint: Endpoint| endpoint.remote.ip();
        if self.endpoint().map(address) != endpoint.map(address) {
            self.path_mtu.forget();
        }
        self.endpoint.store(endpoint.map(Arc::new));
    }

    /// Leaves the choice of our own address to routing. When nothing comes back, the address that the peer sent to
    /// may be gone.
    pub(crate) fn forget_local_address(&self) {
        let seen = self.endpoint.load();
        if let Some(endpoint) = seen.as_deref().filter(|endpoint| endpoint.local.is_some()) {
            // Unless the peer has moved meanwhile.
            self.endpoint.compare_and_swap(&*seen, Some(Arc::new(endpoint.remote.into())));
        }
    }

    /// Writes only a change, so that the cache line stays shared between readers.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        if self.reachable.load(Ordering::Relaxed) != reachable {
            self.reachable.store(reachable, Ordering::Relaxed);
        }
    }

    /// Sends in a session that the peer has just confirmed, if the one in use is older. A peer that has started again
    /// does not know that one, and answers may leave before the device hears the news.
    ///
    /// Without a session in use nothing changes: packets may wait, and the device has them sent first.
    pub(crate) fn use_confirmed(&self, now: Instant, session: &Arc<Session>) {
        let current = self.session.load();
        let is_older = |current: &Session| !current.is_expired(now) && current.born() <= session.born();
        if current.as_deref().is_some_and(is_older) {
            // Unless the device has chosen meanwhile.
            self.session.compare_and_swap(&*current, Some(Arc::clone(session)));
        }
    }

    /// Sends in this session from now on, unless the `upcoming` one is in use: see [`Self::use_confirmed`].
    pub(crate) fn use_unless(&self, upcoming: Option<&Arc<Session>>, session: &Arc<Session>) {
        loop {
            let seen = self.session.load();
            let is_used =
                |session: &Arc<Session>| seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, session));
            if is_used(session) || upcoming.is_some_and(is_used) {
                return;
            }
            // Unless a worker has confirmed another one meanwhile.
            self.session.compare_and_swap(&*seen, Some(Arc::clone(session)));
        }
    }

    pub(crate) fn set_session(&self, session: Option<Arc<Session>>) {
        self.session.store(session);
    }
}

fn timer_event(armed: bool) -> Events {
    if armed { Events::TIMER_ARMED } else { Events::NONE }
}

impl fmt::Debug for PeerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerPath")
            .field("id", &self.id)
            .field("public_key", &self.public_key)
            .field("endpoint", &self.endpoint())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_learnt_path_mtu_belongs_to_the_endpoint_s_address() {
        let now = Instant::from_origin(Duration::from_secs(1000));
        let endpoint = |last, port| Some(SocketAddr::from(([192, 0, 2, last], port)).into());
        let path = PeerPath::new(PeerId(1), PublicKey::from_bytes([1; 32]));
        path.set_endpoint(endpoint(1, 1000));
        path.set_path_mtu(Some(1500));
        path.learn_path_mtu(now, 1400);
        path.set_endpoint(endpoint(1, 2000));
        assert_eq!(path.path_mtu(now), Some(1400));
        path.set_endpoint(endpoint(2, 2000));
        assert_eq!(path.path_mtu(now), Some(1500), "what was configured stays");
    }
}
