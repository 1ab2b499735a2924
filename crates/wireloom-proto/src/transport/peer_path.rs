//! The shared half of a peer: all that the data path needs to send to it and to account for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use wireloom_types::PublicKey;

use crate::endpoint::Endpoint;
use crate::message::DATA_OVERHEAD;
use crate::peer_id::PeerId;
use crate::time::Instant;
use crate::transport::activity::Activity;
use crate::transport::session::{Counters, SealError, Session};
use crate::transport::signal::{News, Signal};

/// The way to a peer: its current session, its endpoint, its counters.
///
/// The device writes it and the data path reads it; a path outlives its peer's removal for as long as
/// somebody holds it, but then has no session.
pub struct PeerPath {
    id: PeerId,
    public_key: PublicKey,
    session: ArcSwapOption<Session>,
    endpoint: ArcSwapOption<Endpoint>,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// Whether an initiation went unanswered and nothing was heard since.
    silent: AtomicBool,
    pub(crate) activity: Activity,
}

/// A train of messages that is ready to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// What the device must be told.
    pub signal: Option<Signal>,
}

/// A session and counters of it, which nobody else uses: a train can be sealed with them on any thread.
///
/// Dropped unused, it leaves a gap that the peer does not mind.
#[derive(Debug)]
pub struct Reserved {
    session: Arc<Session>,
    counters: Counters,
}

impl Reserved {
    /// Seals the train, each message laid out as by [`message::frame`](crate::message::frame).
    ///
    /// # Panics
    /// When there are more messages than were reserved for, or one is shorter than [`DATA_OVERHEAD`].
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
            silent: AtomicBool::new(false),
            activity: Activity::new(),
        }
    }

    /// The peer's name inside its device.
    #[must_use]
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// The peer's identity.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Where the peer was last heard from, or is configured to be.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.load().as_deref().copied()
    }

    /// Whether it makes sense to keep a packet for the peer: it has an endpoint, and it is not the case
    /// that it left an initiation unanswered for [`REKEY_TIMEOUT`](wireloom_types::limits::REKEY_TIMEOUT) after a
    /// silence. Hearing from it, or another endpoint, ends that; [`Device::begin_handshake`](crate::Device::begin_handshake) tries to.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        !self.silent.load(Ordering::Relaxed) && self.endpoint.load().is_some()
    }

    /// Bytes of WireGuard messages sent to the peer, of all types.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of authenticated WireGuard messages received from the peer, of all types.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Seals a train of messages for the peer, each laid out as by [`message::frame`](crate::message::frame)
    /// and then sent in this order to the same endpoint. A message without payload is a keepalive.
    ///
    /// # Errors
    /// [`SealError`]: no message was touched; give the packets to
    /// [`Device::handle_outgoing`](crate::Device::handle_outgoing).
    pub fn seal<'m>(
        &self,
        now: Instant,
        messages: impl ExactSizeIterator<Item = &'m mut [u8]>,
    ) -> Result<Sealed, SealError> {
        let session = self.session.load();
        let session = session.as_deref().ok_or(SealError::NoSession)?;
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
        let mut news = self.note_sent(now, bytes, data);
        if session.asks_for_rekey(now) {
            news |= News::REKEY_DUE;
        }
        Ok(Sealed { endpoint, signal: news.about(self.id) })
    }

    /// Takes what it needs to seal a train of so many messages for the peer, `bytes` in all and none of
    /// them a keepalive, later and on any thread ([`Reserved::seal`]). It counts as sent now; trains are to
    /// be sent in the order in which they were reserved. Otherwise as [`Self::seal`].
    ///
    /// # Errors
    /// [`SealError`], as with [`Self::seal`].
    pub fn reserve(
        &self,
        now: Instant,
        messages: usize,
        bytes: usize,
    ) -> Result<(Reserved, Sealed), SealError> {
        let session = self.session.load_full().ok_or(SealError::NoSession)?;
        let endpoint = self.endpoint().ok_or(SealError::NoEndpoint)?;
        let counters = session.reserve(now, messages)?;
        let mut news = self.note_sent(now, bytes, true);
        if session.asks_for_rekey(now) {
            news |= News::REKEY_DUE;
        }
        Ok((Reserved { session, counters }, Sealed { endpoint, signal: news.about(self.id) }))
    }

    /// Accounts for authenticated messages that leave for the peer.
    pub(crate) fn note_sent(&self, now: Instant, bytes: usize, data: bool) -> News {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        timer_news(self.activity.note_sent(now, data))
    }

    /// Accounts for authenticated messages that came from the peer, and follows it to where it is.
    pub(crate) fn note_received(&self, now: Instant, from: Endpoint, bytes: usize, data: bool) -> News {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.endpoint.load().as_deref() != Some(&from) {
            self.set_endpoint(Some(from));
        }
        self.set_silent(false);
        timer_news(self.activity.note_received(now, data))
    }

    pub(crate) fn set_endpoint(&self, endpoint: Option<Endpoint>) {
        self.endpoint.store(endpoint.map(Arc::new));
    }

    /// Leaves the choice of our own address to routing: when nothing comes back, the one that the
    /// peer once talked to may be gone.
    pub(crate) fn forget_local_address(&self) {
        if let Some(endpoint) = self.endpoint().filter(|endpoint| endpoint.local.is_some()) {
            self.set_endpoint(Some(endpoint.remote.into()));
        }
    }

    /// Writes only what is news: the line stays shared between readers.
    pub(crate) fn set_silent(&self, silent: bool) {
        if self.silent.load(Ordering::Relaxed) != silent {
            self.silent.store(silent, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_session(&self, session: Option<Arc<Session>>) {
        self.session.store(session);
    }
}

fn timer_news(armed: bool) -> News {
    if armed { News::TIMER_ARMED } else { News::NONE }
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
