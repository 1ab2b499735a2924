//! The data part: from a receiver index to a session, from an address to a peer.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::{fmt, iter};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use crate::allowed_ips::AllowedIps;
use crate::endpoint::Endpoint;
use crate::message::{DATA_OVERHEAD, DataHeader, MessageKind};
use crate::path::PeerPath;
use crate::session::Session;
use crate::signal::{News, Signal};
use crate::time::Instant;
use crate::verdict::DropReason;

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

/// A snapshot of everyone's allowed IPs: which peer gets a packet, and who may have sent it.
#[derive(Debug, Default)]
pub struct Routes(AllowedIps<Arc<PeerPath>>);

impl Routes {
    pub(crate) fn new(table: AllowedIps<Arc<PeerPath>>) -> Self {
        Self(table)
    }

    /// The peer whose allowed IPs have the longest prefix that covers the address.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> Option<&Arc<PeerPath>> {
        self.0.lookup(address)
    }

    /// Whether the peer may send packets with this inner source address.
    #[must_use]
    pub fn permits(&self, path: &PeerPath, source: IpAddr) -> bool {
        self.lookup(source).is_some_and(|owner| owner.id() == path.id())
    }
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
            let belongs = |(other, datagram): &(Endpoint, &mut [u8])| {
                *other == from && DataHeader::parse(datagram).is_ok_and(|header| header.receiver == index)
            };
            let others = iter::from_fn(|| datagrams.next_if(belongs).map(|(_, datagram)| datagram));
            entry.open(now, from, iter::once(datagram).chain(others), &mut outcome);
        }
    }

    /// Lets messages for the session's local index in.
    pub(crate) fn insert(&self, session: Arc<Session>, path: Arc<PeerPath>) {
        let index = session.local_index();
        self.sessions.set(index, Some(SessionEntry { session, path }));
    }

    pub(crate) fn remove(&self, index: u32) {
        self.sessions.set(index, None);
    }

    pub(crate) fn publish(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }
}

/// A session and whose it is.
#[derive(Debug)]
struct SessionEntry {
    session: Arc<Session>,
    path: Arc<PeerPath>,
}

impl SessionEntry {
    fn open<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        train: impl Iterator<Item = &'m mut [u8]>,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut bytes = 0;
        let mut data = false;
        self.session.open(now, train, |opened| match opened {
            Ok(payload) => {
                bytes += payload.len() + DATA_OVERHEAD;
                data |= !payload.is_empty();
                outcome(Outcome::Opened { path: &self.path, payload });
            }
            Err(reason) => outcome(Outcome::Dropped(reason)),
        });
        // None of a train of forgeries counts.
        if bytes > 0
            && let Some(signal) = self.note_opened(now, from, bytes, data).about(self.path.id())
        {
            outcome(Outcome::Signal(signal));
        }
    }

    fn note_opened(&self, now: Instant, from: Endpoint, bytes: usize, data: bool) -> News {
        let mut news = self.path.note_received(now, from, bytes, data);
        if self.session.confirm() {
            news |= News::SESSION_CONFIRMED;
        }
        if self.path.activity.last_minute.take_if_due(now) {
            news |= News::LAST_MINUTE;
        }
        news
    }
}

/// Sessions by local index. The low bits of an index are its slot, so a lookup is two loads; slots
/// come in blocks that are allocated when the first index in them is used and then stay.
struct SessionTable {
    blocks: Box<[OnceLock<Box<Block>>]>,
}

type Block = [ArcSwapOption<SessionEntry>; SLOTS_IN_BLOCK];

const SLOTS_IN_BLOCK: usize = 1 << 10;
const BLOCKS: usize = 1 << 12;
/// How many slots there can be: enough for the three sessions and the pending handshake of each of
/// the 2^20 peers that the kernel allows (`MAX_PEERS_PER_DEVICE`).
pub(crate) const SLOTS: u32 = (SLOTS_IN_BLOCK * BLOCKS) as u32;

impl SessionTable {
    fn new() -> Self {
        Self { blocks: (0..BLOCKS).map(|_| OnceLock::new()).collect() }
    }

    /// What stands in the slot of an index: maybe a session of another index.
    fn load(&self, index: u32) -> Guard<Option<Arc<SessionEntry>>> {
        let slot = (index % SLOTS) as usize;
        match self.blocks[slot / SLOTS_IN_BLOCK].get() {
            Some(block) => block[slot % SLOTS_IN_BLOCK].load(),
            None => Guard::from_inner(None),
        }
    }

    fn set(&self, index: u32, entry: Option<SessionEntry>) {
        let slot = (index % SLOTS) as usize;
        let block = self.blocks[slot / SLOTS_IN_BLOCK]
            .get_or_init(|| Box::new(std::array::from_fn(|_| ArcSwapOption::empty())));
        block[slot % SLOTS_IN_BLOCK].store(entry.map(Arc::new));
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTable").finish_non_exhaustive()
    }
}
