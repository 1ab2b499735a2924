//! Opening a batch in two steps, so that a helper thread can decrypt it.
//!
//! The first step, on any thread, decrypts. The second, in the order of arrival, does everything that depends on the
//! order: the replay window, the counters, the timers.

use std::sync::Arc;
use std::{fmt, iter, mem};

use super::peer_session::PeerSession;
use super::session::Opening;
use super::{Outcome, Transport, continues_run};
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::message::DataHeader;
use crate::time::Instant;

/// A batch as [`Transport::decrypt_batch`] leaves it, for [`Transport::accept_batch`]. Empty by default; reuse it, so
/// that it need not be allocated again.
#[derive(Default)]
pub struct Decrypted {
    /// The runs that the batch consists of, in order.
    runs: Vec<Run>,
    /// The outcome for each message of the runs that have a session, in order.
    openings: Vec<Opening<()>>,
}

/// Consecutive datagrams that were decrypted with the same session, or left untouched.
struct Run {
    /// `None` when the datagrams were left untouched.
    entry: Option<Arc<PeerSession>>,
    /// The number of datagrams.
    len: usize,
}

impl Decrypted {
    fn push_untouched(&mut self) {
        match self.runs.last_mut() {
            Some(run) if run.entry.is_none() => run.len += 1,
            _ => self.runs.push(Run { entry: None, len: 1 }),
        }
    }
}

impl fmt::Debug for Decrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypted").field("runs", &self.runs.len()).finish_non_exhaustive()
    }
}

impl Transport {
    /// The first step of opening a batch, on any thread: decrypts its data messages in place and records in
    /// `decrypted`, which must be empty, which of them are authentic. Nothing else changes. A message counts as
    /// received, and its payload may be used, only when [`Self::accept_batch`] has accepted it.
    pub fn decrypt_batch<'m>(
        &self,
        datagrams: impl Iterator<Item = (Endpoint, &'m mut [u8])>,
        decrypted: &mut Decrypted,
    ) {
        let mut datagrams = datagrams.peekable();
        while let Some((from, datagram)) = datagrams.next() {
            let entry = match DataHeader::parse(datagram) {
                Ok(header) => self.peer_session(header.receiver),
                Err(_) => None,
            };
            let Some(entry) = entry else {
                decrypted.push_untouched();
                continue;
            };
            let index = entry.session.local_index();
            let rest =
                iter::from_fn(|| datagrams.next_if(continues_run(from, index)).map(|(_, datagram)| datagram));
            let before = decrypted.openings.len();
            entry.session.decrypt(iter::once(datagram).chain(rest), &mut decrypted.openings);
            let len = decrypted.openings.len() - before;
            decrypted.runs.push(Run { entry: Some(entry), len });
        }
    }

    /// The second step, for the same datagrams, in the order in which the batches arrived. Reports what
    /// [`Self::open_batch`] would report now, and empties `decrypted`.
    ///
    /// Datagrams that were decrypted with a session that has ended since are dropped. Datagrams that the first step
    /// left untouched or was not given are opened here.
    pub fn accept_batch<'m>(
        &self,
        now: Instant,
        datagrams: impl Iterator<Item = (Endpoint, &'m mut [u8])>,
        decrypted: &mut Decrypted,
        mut outcome: impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut datagrams = datagrams.peekable();
        let mut openings = &mut decrypted.openings[..];
        for Run { entry, len } in decrypted.runs.drain(..) {
            let Some(entry) = entry else {
                self.open_batch(now, datagrams.by_ref().take(len), &mut outcome);
                continue;
            };
            let (own, rest) = mem::take(&mut openings).split_at_mut(len);
            openings = rest;
            let from = datagrams.peek().map(|(from, _)| *from);
            let run = datagrams.by_ref().take(len).map(|(_, datagram)| datagram);
            let current = self.peer_session(entry.session.local_index());
            let still_there = current.is_some_and(|current| Arc::ptr_eq(&current, &entry));
            match from {
                Some(from) if still_there => entry.accept(now, from, own, run, &mut outcome),
                _ => run.for_each(|_| outcome(Outcome::Dropped(DropReason::UnknownIndex))),
            }
        }
        decrypted.openings.clear();
        self.open_batch(now, datagrams, outcome);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wireloom_types::PublicKey;

    use super::*;
    use crate::index_permutation::IndexPermutation;
    use crate::peer_id::PeerId;
    use crate::randomness::Randomness;
    use crate::transport::peer_path::PeerPath;
    use crate::transport::role::Role;
    use crate::transport::session::{Session, SessionKeys};

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    fn keys(sending: u8, receiving: u8) -> SessionKeys {
        SessionKeys { sending: [sending; 32].into(), receiving: [receiving; 32].into() }
    }

    fn own_session() -> Arc<Session> {
        Arc::new(Session::new(&keys(2, 1), Role::Responder, 20, 10, NOW))
    }

    /// An index may be used again when its session has ended. The new session must not accept what was decrypted for
    /// the old one, even if both have the same keys.
    #[test]
    fn a_message_decrypted_for_an_ended_session_is_not_accepted_by_its_successor() {
        let transport = Transport::new(IndexPermutation::draw(&mut Randomness::new(&[1; 32])));
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
        assert!(transport.open(NOW, from, &mut message).is_ok(), "its replay window is empty");
    }
}
