//! Opening in two steps.

use std::sync::Arc;
use std::{fmt, iter, mem};

use super::peer_session::PeerSession;
use super::session::Verdict;
use super::{Outcome, Transport, belongs};
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::message::DataHeader;
use crate::time::Instant;

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
    entry: Option<Arc<PeerSession>>,
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

impl Transport {
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
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wireloom_types::PublicKey;

    use super::*;
    use crate::peer_id::PeerId;
    use crate::transport::peer_path::PeerPath;
    use crate::transport::session::{Role, Session, SessionKeys};

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
