//! The data part: from a receiver index to a session, from an address to a peer.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use crate::allowed_ips::AllowedIps;
use crate::endpoint::Endpoint;
use crate::message::DataHeader;
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
        let mut outcome = Err(DropReason::BadLength);
        self.open_train(now, from, std::iter::once(datagram), |opened| outcome = opened);
        outcome
    }

    /// Opens a train of datagrams of one source, as receive offload delivers them, and tells the
    /// outcome of each, in order; otherwise as [`Self::open`].
    pub fn open_train<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        datagrams: impl Iterator<Item = &'m mut [u8]>,
        mut outcome: impl FnMut(Result<Opened<'m>, DropReason>),
    ) {
        // The messages of a train mostly belong to one session: it is looked up when that changes.
        let mut slot = Guard::from_inner(None::<Arc<SessionEntry>>);
        for datagram in datagrams {
            outcome(DataHeader::parse(datagram).and_then(|header| {
                if !is_session(&slot, header.receiver) {
                    slot = self.sessions.load(header.receiver);
                }
                let entry = slot.as_ref().filter(|_| is_session(&slot, header.receiver));
                entry.ok_or(DropReason::UnknownIndex)?.open(now, from, datagram)
            }));
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

fn is_session(slot: &Option<Arc<SessionEntry>>, index: u32) -> bool {
    slot.as_ref().is_some_and(|entry| entry.session.local_index() == index)
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
        datagram: &'m mut [u8],
    ) -> Result<Opened<'m>, DropReason> {
        let bytes = datagram.len();
        let mut outcome = Err(DropReason::BadLength);
        self.session.open(now, std::iter::once(datagram), |opened| outcome = opened);
        let payload = outcome?;
        let news = self.note_opened(now, from, bytes, !payload.is_empty());
        Ok(Opened { path: Arc::clone(&self.path), payload, signal: news.about(self.path.id()) })
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
