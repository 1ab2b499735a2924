//! The data part: from a receiver index to a session, from an address to a peer.

pub(crate) mod activity;
mod aead;
pub(crate) mod allowed_ips;
pub(crate) mod peer_path;
mod peer_session;
mod replay_window;
mod routes;
pub(crate) mod session;
mod session_table;
pub(crate) mod signal;
mod two_steps;

use std::sync::Arc;
use std::{fmt, iter};

use arc_swap::{ArcSwap, Guard};

pub use self::peer_path::{PeerPath, Reserved, Sealed};
pub use self::routes::Routes;
pub use self::session::{Role, SealError, Session, SessionKeys};
pub(crate) use self::session_table::SLOTS;
pub use self::signal::Signal;
pub use self::two_steps::Decrypted;
use self::{peer_session::PeerSession, session_table::SessionTable};
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::message::{DataHeader, MessageKind};
use crate::time::Instant;

/// What workers hold: opening of data messages and the lookup of peers, without a lock of
/// the device and without allocation for each packet. The [`Device`](crate::Device) writes it.
#[derive(Debug)]
pub struct Transport {
    sessions: SessionTable,
    routes: ArcSwap<Routes>,
}

/// A message that was authenticated and decrypted.
pub struct Opened<'m> {
    /// From whom.
    pub path: Arc<PeerPath>,
    /// The inner packet with its padding; empty for a keepalive.
    pub payload: &'m mut [u8],
    /// What the device must be told.
    pub signal: Option<Signal>,
}

impl fmt::Debug for Opened<'_> {
    /// Without the payload, which is private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("path", &self.path)
            .field("payload_len", &self.payload.len())
            .field("signal", &self.signal)
            .finish()
    }
}

/// What became of a datagram of a batch, and what is to be done with it.
pub enum Outcome<'p, 'm> {
    /// It was authenticated and decrypted.
    Opened {
        /// From whom.
        path: &'p Arc<PeerPath>,
        /// The inner packet with its padding; empty for a keepalive.
        payload: &'m mut [u8],
    },
    /// It is of another type than data, for [`Device::handle_handshake`](crate::Device::handle_handshake).
    Handshake(Endpoint, &'m mut [u8]),
    /// It is dropped.
    Dropped(DropReason),
    /// No datagram, but what those before it give the device to know.
    Signal(Signal),
}

impl Transport {
    pub(crate) fn new() -> Self {
        Self { sessions: SessionTable::new(), routes: ArcSwap::default() }
    }

    /// The routes as they are now. Load them once for a batch of packets.
    #[must_use]
    pub fn routes(&self) -> Guard<Arc<Routes>> {
        self.routes.load()
    }

    /// Opens one data message in place. It only authenticates: whether the peer may send what is
    /// inside is for the caller to ask ([`Routes::permits`]).
    ///
    /// # Errors
    /// The reason why the datagram is dropped.
    pub fn open<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        datagram: &'m mut [u8],
    ) -> Result<Opened<'m>, DropReason> {
        let mut opened = Err(DropReason::BadType);
        let mut told = None;
        self.open_batch(now, iter::once((from, datagram)), |outcome| match outcome {
            Outcome::Opened { path, payload } => opened = Ok((Arc::clone(path), payload)),
            Outcome::Handshake(..) => {}
            Outcome::Dropped(reason) => opened = Err(reason),
            Outcome::Signal(signal) => told = Some(signal),
        });
        opened.map(|(path, payload)| Opened { path, payload, signal: told })
    }

    /// Opens the data messages of a batch in place, and tells in order what became of each datagram.
    /// What follows on each other from one place for one session is looked up, and accounted for, once;
    /// otherwise as [`Self::open`].
    pub fn open_batch<'m>(
        &self,
        now: Instant,
        datagrams: impl Iterator<Item = (Endpoint, &'m mut [u8])>,
        mut outcome: impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut datagrams = datagrams.peekable();
        while let Some((from, datagram)) = datagrams.next() {
            let index = match MessageKind::classify(datagram).map(|_| DataHeader::parse(datagram)) {
                Ok(Ok(header)) => header.receiver,
                Ok(Err(_)) => {
                    outcome(Outcome::Handshake(from, datagram));
                    continue;
                }
                Err(reason) => {
                    outcome(Outcome::Dropped(reason));
                    continue;
                }
            };
            let entry = self.sessions.load(index);
            let Some(entry) = entry.as_ref().filter(|entry| entry.session.local_index() == index) else {
                outcome(Outcome::Dropped(DropReason::UnknownIndex));
                continue;
            };
            let others =
                iter::from_fn(|| datagrams.next_if(belongs(from, index)).map(|(_, datagram)| datagram));
            entry.open(now, from, iter::once(datagram).chain(others), &mut outcome);
        }
    }

    /// The session of this index, when there is one.
    fn entry(&self, index: u32) -> Option<Arc<PeerSession>> {
        let entry = self.sessions.load(index);
        entry.as_ref().filter(|entry| entry.session.local_index() == index).map(Arc::clone)
    }

    /// Lets messages for the session's local index in.
    pub(crate) fn insert(&self, session: Arc<Session>, path: Arc<PeerPath>) {
        let index = session.local_index();
        self.sessions.set(index, Some(PeerSession { session, path }));
    }

    pub(crate) fn remove(&self, index: u32) {
        self.sessions.set(index, None);
    }

    pub(crate) fn publish(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }
}

/// Whether a datagram goes on with a train from this place for this index.
fn belongs(from: Endpoint, index: u32) -> impl Fn(&(Endpoint, &mut [u8])) -> bool {
    move |(other, datagram)| {
        *other == from && DataHeader::parse(datagram).is_ok_and(|header| header.receiver == index)
    }
}
