//! The data path: seals and opens data messages, and finds the peer of an address.
//!
//! | file | holds |
//! |---|---|
//! | `session`, `role` | one pair of keys: counters, limits, sealing and opening; which side we were |
//! | `replay_window`, `aead` | the cipher and the replay protection of a session |
//! | `session_table`, `peer_session` | from a receiver index to the session and its peer |
//! | `allowed_ips`, `routes` | from an inner address to the peer |
//! | `peer_path` | what sending to a peer needs |
//! | `path_mtu` | the largest packet that the underlay carries to a peer |
//! | `staging` | packets that wait for a session |
//! | `activity`, `signal` | what the timers need to know, and when the device must be told |
//! | `two_steps` | opening with the help of another thread |

pub(crate) mod activity;
mod aead;
pub(crate) mod allowed_ips;
#[cfg(test)]
mod models;
mod path_mtu;
pub(crate) mod peer_path;
mod peer_session;
mod replay_window;
pub(crate) mod role;
mod routes;
pub(crate) mod session;
mod session_table;
pub(crate) mod signal;
pub(crate) mod staging;
mod two_steps;

use std::sync::Arc;
use std::{fmt, iter};

pub use self::path_mtu::PATH_MTU_MIN;
pub use self::peer_path::{PeerPath, Reserved, Sealed};
pub use self::role::Role;
pub use self::routes::Routes;
pub use self::session::{SealError, Session, SessionKeys};
pub(crate) use self::session_table::SLOTS;
pub use self::signal::Signal;
pub use self::staging::Staged;
pub use self::two_steps::Decrypted;
use self::{peer_session::PeerSession, session_table::SessionTable, staging::Staging};
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::index_permutation::IndexPermutation;
use crate::message::{DataHeader, MessageKind};
use crate::sync::{ArcSwap, Guard};
use crate::time::Instant;

/// The data path of a device: opens data messages and looks up peers. Any number of threads share it. Nothing in it
/// allocates per packet or takes a lock of the [`Device`](crate::Device), which writes it, but for packets that have to
/// wait for a session.
#[derive(Debug)]
pub struct Transport {
    sessions: SessionTable,
    routes: ArcSwap<Routes>,
    pub(crate) staging: Staging,
}

/// A data message that was authenticated and decrypted.
pub struct Opened<'m> {
    /// The peer that sent it.
    pub path: Arc<PeerPath>,
    /// The inner packet with its padding; empty for a keepalive.
    pub payload: &'m mut [u8],
    /// What the device must be told, if anything.
    pub signal: Option<Signal>,
}

impl fmt::Debug for Opened<'_> {
    /// Leaves the payload out, which is private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("path", &self.path)
            .field("payload_len", &self.payload.len())
            .field("signal", &self.signal)
            .finish()
    }
}

/// What opening a batch reports: the fate of a datagram, or a signal.
pub enum Outcome<'p, 'm> {
    /// The datagram was authenticated and decrypted.
    Opened {
        /// The peer that sent it.
        path: &'p Arc<PeerPath>,
        /// The inner packet with its padding; empty for a keepalive.
        payload: &'m mut [u8],
    },
    /// The datagram is not a data message. It is for [`Device::handle_handshake`](crate::Device::handle_handshake).
    Handshake(Endpoint, &'m mut [u8]),
    /// The datagram is dropped.
    Dropped(DropReason),
    /// No datagram: what the device must be told about those before.
    Signal(Signal),
}

impl Transport {
    pub(crate) fn new(permutation: IndexPermutation) -> Self {
        Self {
            sessions: SessionTable::new(permutation),
            routes: ArcSwap::default(),
            staging: Staging::default(),
        }
    }

    /// The current routes. Load them once per batch of packets.
    #[must_use]
    pub fn routes(&self) -> Guard<Arc<Routes>> {
        self.routes.load()
    }

    /// Reserves what sealing these messages for the peer takes, as [`PeerPath::reserve`] does. Without a session, it
    /// keeps copies of them, behind those that wait already, until the device has one. `bytes` is their length in all.
    ///
    /// # Errors
    /// [`Staged`], when they were not reserved: they wait, or there is nobody to wait for.
    pub fn reserve_or_stage<'m>(
        &self,
        now: Instant,
        path: &PeerPath,
        messages: impl ExactSizeIterator<Item = &'m [u8]>,
        bytes: usize,
    ) -> Result<Reserved, Staged> {
        path.reserve(now, messages.len(), bytes)
            .or_else(|_| self.staging.reserve_or_stage(now, path, messages, bytes))
    }

    /// Opens one data message in place. This authenticates the peer. Whether the peer may send the inner packet is for
    /// the caller to check, with [`Routes::permits`].
    ///
    /// # Errors
    /// The reason why the datagram is dropped; [`DropReason::BadType`] when it is not a data message.
    pub fn open<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        datagram: &'m mut [u8],
    ) -> Result<Opened<'m>, DropReason> {
        let mut opened = Err(DropReason::BadType);
        let mut signal = None;
        self.open_batch(now, iter::once((from, datagram)), |outcome| match outcome {
            Outcome::Opened { path, payload } => opened = Ok((Arc::clone(path), payload)),
            Outcome::Handshake(..) => {}
            Outcome::Dropped(reason) => opened = Err(reason),
            Outcome::Signal(reported) => signal = Some(reported),
        });
        opened.map(|(path, payload)| Opened { path, payload, signal })
    }

    /// Opens the data messages of a batch in place, and reports the outcome of each datagram in order, as
    /// [`Self::open`] would. A run of datagrams, from one endpoint and for one session, is looked up once and
    /// recorded once.
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
            let rest =
                iter::from_fn(|| datagrams.next_if(continues_run(from, index)).map(|(_, datagram)| datagram));
            entry.open(now, from, iter::once(datagram).chain(rest), &mut outcome);
        }
    }

    /// The session with this local index, and its peer.
    fn peer_session(&self, index: u32) -> Option<Arc<PeerSession>> {
        let entry = self.sessions.load(index);
        entry.as_ref().filter(|entry| entry.session.local_index() == index).map(Arc::clone)
    }

    /// Accepts messages for the session's local index from now on.
    pub(crate) fn insert(&self, session: Arc<Session>, path: Arc<PeerPath>) {
        let index = session.local_index();
        self.sessions.set(index, Some(PeerSession { session, path }));
    }

    /// Accepts no messages for this index any more. Its slot may be another session's by now, which stays.
    pub(crate) fn remove(&self, index: u32) {
        if self.peer_session(index).is_some() {
            self.sessions.set(index, None);
        }
    }

    pub(crate) fn publish(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }
}

/// Whether a datagram continues a run from this endpoint for this index.
fn continues_run(from: Endpoint, index: u32) -> impl Fn(&(Endpoint, &mut [u8])) -> bool {
    move |(other, datagram)| {
        *other == from && DataHeader::parse(datagram).is_ok_and(|header| header.receiver == index)
    }
}
