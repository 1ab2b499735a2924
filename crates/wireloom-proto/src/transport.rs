//! The data part: from a receiver index to a session, from an address to a peer.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::{fmt, iter, mem};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use crate::allowed_ips::AllowedIps;
use crate::endpoint::Endpoint;
use crate::message::{DATA_OVERHEAD, DataHeader, MessageKind};
use crate::path::PeerPath;
use crate::session::{Session, Verdict};
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

/// What [`Transport::decrypt_batch`] found out about a batch, for [`Transport::accept_batch`] of the same one.
#[derive(Default)]
pub struct Decrypted {
    /// In order; together they are the whole batch.
    trains: Vec<DecryptedTrain>,
    /// Of each message of those trains that have a session.
    verdicts: Vec<Verdict<()>>,
}

struct DecryptedTrain {
    /// With whose keys; `None` when it was left untouched.
    entry: Option<Arc<SessionEntry>>,
    len: usize,
}

impl Decrypted {
    fn push_untouched(&mut self) {
        match self.trains.last_mut() {
            Some(train) if train.entry.is_none() => train.len += 1,
            _ => self.trains.push(DecryptedTrain { entry: None, len: 1 }),
        }
    }
}

impl fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypted").field("trains", &self.trains.len()).finish_non_exhaustive()
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

    /// The first step of opening a batch, on any thread: decrypts its data messages in place, and notes in
    /// `decrypted`, which is empty, which of them are authentic. Nothing else changes: no message counts as
    /// seen, and none may be used, before [`Self::accept_batch`] says so.
    pub fn decrypt_batch<'m>(
        &self,
        datagrams: impl Iterator<Item = (Endpoint, &'m mut [u8])>,
        decrypted: &mut Decrypted,
    ) {
        let mut datagrams = datagrams.peekable();
        while let Some((from, datagram)) = datagrams.next() {
            let entry = match DataHeader::parse(datagram) {
                Ok(header) => self.entry(header.receiver),
                Err(_) => None,
            };
            let Some(entry) = entry else {
                decrypted.push_untouched();
                continue;
            };
            let index = entry.session.local_index();
            let others =
                iter::from_fn(|| datagrams.next_if(belongs(from, index)).map(|(_, datagram)| datagram));
            let first = decrypted.verdicts.len();
            entry.session.decrypt(iter::once(datagram).chain(others), &mut decrypted.verdicts);
            let len = decrypted.verdicts.len() - first;
            decrypted.trains.push(DecryptedTrain { entry: Some(entry), len });
        }
    }

    /// The second step, for the same datagrams, in the order of the batches: tells what
    /// [`Self::open_batch`] would now, and empties `decrypted`. What was decrypted with a session that is gone
    /// is dropped; what was not decrypted, or not even seen by the first step, is opened as there.
    pub fn accept_batch<'m>(
        &self,
        now: Instant,
        datagrams: impl Iterator<Item = (Endpoint, &'m mut [u8])>,
        decrypted: &mut Decrypted,
        mut outcome: impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut datagrams = datagrams.peekable();
        let mut verdicts = &mut decrypted.verdicts[..];
        for DecryptedTrain { entry, len } in decrypted.trains.drain(..) {
            let Some(entry) = entry else {
                self.open_batch(now, datagrams.by_ref().take(len), &mut outcome);
                continue;
            };
            let (own, rest) = mem::take(&mut verdicts).split_at_mut(len);
            verdicts = rest;
            let from = datagrams.peek().map(|(from, _)| *from);
            let train = datagrams.by_ref().take(len).map(|(_, datagram)| datagram);
            let stands = self.entry(entry.session.local_index()).is_some_and(|now| Arc::ptr_eq(&now, &entry));
            match from {
                Some(from) if stands => entry.accept(now, from, own, train, &mut outcome),
                _ => train.for_each(|_| outcome(Outcome::Dropped(DropReason::UnknownIndex))),
            }
        }
        decrypted.verdicts.clear();
        self.open_batch(now, datagrams, outcome);
    }

    /// The session of this index, when there is one.
    fn entry(&self, index: u32) -> Option<Arc<SessionEntry>> {
        let entry = self.sessions.load(index);
        entry.as_ref().filter(|entry| entry.session.local_index() == index).map(Arc::clone)
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

/// Whether a datagram goes on with a train from this place for this index.
fn belongs(from: Endpoint, index: u32) -> impl Fn(&(Endpoint, &mut [u8])) -> bool {
    move |(other, datagram)| {
        *other == from && DataHeader::parse(datagram).is_ok_and(|header| header.receiver == index)
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
        let mut account = Account::default();
        self.session.open(now, train, |opened| outcome(account.note(&self.path, opened)));
        self.close(now, from, &account, outcome);
    }

    fn accept<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        verdicts: &mut [Verdict<()>],
        train: impl Iterator<Item = &'m mut [u8]>,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut account = Account::default();
        self.session.accept(now, verdicts, train, |opened| outcome(account.note(&self.path, opened)));
        self.close(now, from, &account, outcome);
    }

    fn close<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        account: &Account,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        // None of a train of forgeries counts.
        if account.bytes > 0
            && let Some(signal) =
                self.note_opened(now, from, account.bytes, account.data).about(self.path.id())
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

/// What came through of a train.
#[derive(Default)]
struct Account {
    bytes: usize,
    /// Whether any of it was more than a keepalive.
    data: bool,
}

impl Account {
    fn note<'p, 'm>(
        &mut self,
        path: &'p Arc<PeerPath>,
        opened: Result<&'m mut [u8], DropReason>,
    ) -> Outcome<'p, 'm> {
        match opened {
            Ok(payload) => {
                self.bytes += payload.len() + DATA_OVERHEAD;
                self.data |= !payload.is_empty();
                Outcome::Opened { path, payload }
            }
            Err(reason) => Outcome::Dropped(reason),
        }
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::peer_id::PeerId;
    use crate::session::{Role, SessionKeys};
    use wireloom_types::PublicKey;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn keys(sending: u8, receiving: u8) -> SessionKeys {
        SessionKeys { sending: [sending; 32].into(), receiving: [receiving; 32].into() }
    }

    fn own_session() -> Arc<Session> {
        Arc::new(Session::new(&keys(2, 1), Role::Responder, 20, 10, NOW))
    }

    /// An index is free again when its session is gone; what was decrypted for that one is not the
    /// other's, not even if it has the same keys.
    #[test]
    fn what_was_decrypted_for_a_session_is_not_for_another_one_of_its_index() {
        let transport = Transport::new();
        let path = Arc::new(PeerPath::new(PeerId(1), PublicKey::from_bytes([7; 32])));
        transport.insert(own_session(), Arc::clone(&path));
        let theirs = Session::new(&keys(1, 2), Role::Initiator, 10, 20, NOW);
        let mut message = [0; 48];
        theirs.seal(NOW, iter::once(&mut message[..])).expect("it is new");
        let from = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 51820)));

        let mut decrypted = Decrypted::default();
        let mut clear = message;
        transport.decrypt_batch(iter::once((from, &mut clear[..])), &mut decrypted);
        transport.remove(20);
        transport.insert(own_session(), Arc::clone(&path));
        let mut dropped = Vec::new();
        transport.accept_batch(NOW, iter::once((from, &mut clear[..])), &mut decrypted, |outcome| {
            dropped.push(match outcome {
                Outcome::Dropped(reason) => Some(reason),
                _ => None,
            });
        });
        assert_eq!(dropped, [Some(DropReason::UnknownIndex)]);
        assert_eq!(path.received_bytes(), 0);
        assert!(transport.open(NOW, from, &mut message).is_ok(), "and it has seen nothing of that");
    }
}
