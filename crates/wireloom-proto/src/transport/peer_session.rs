//! A session and its peer: opens messages and records that the peer was active.

use std::sync::Arc;

use super::Outcome;
use super::peer_path::PeerPath;
use super::session::{Opening, Session};
use super::signal::Events;
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::message::DATA_OVERHEAD;
use crate::time::Instant;

/// A session and the peer that it belongs to.
#[derive(Debug)]
pub(super) struct PeerSession {
    pub(super) session: Arc<Session>,
    pub(super) path: Arc<PeerPath>,
}

impl PeerSession {
    /// Opens a run of messages from one endpoint and reports the outcome of each, as [`Session::open`] does.
    pub(super) fn open<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        run: impl Iterator<Item = &'m mut [u8]>,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut accepted = Accepted::default();
        self.session.open(now, run, |opened| outcome(accepted.count(&self.path, opened)));
        self.finish_run(now, from, &accepted, outcome);
    }

    /// The second step of [`Self::open`]: see [`Session::accept`].
    pub(super) fn accept<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        openings: &mut [Opening<()>],
        run: impl Iterator<Item = &'m mut [u8]>,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        let mut accepted = Accepted::default();
        self.session.accept(now, openings, run, |opened| outcome(accepted.count(&self.path, opened)));
        self.finish_run(now, from, &accepted, outcome);
    }

    /// Records a run once, unless every message of it was dropped.
    fn finish_run<'m>(
        &self,
        now: Instant,
        from: Endpoint,
        accepted: &Accepted,
        outcome: &mut impl FnMut(Outcome<'_, 'm>),
    ) {
        if accepted.bytes == 0 {
            return;
        }
        let events = self.note_received(now, from, accepted);
        if let Some(signal) = self.path.report(events) {
            outcome(Outcome::Signal(signal));
        }
    }

    fn note_received(&self, now: Instant, from: Endpoint, accepted: &Accepted) -> Events {
        let mut events = self.path.note_received(now, from, accepted.bytes, accepted.data);
        if self.session.confirm() {
            self.path.use_confirmed(now, &self.session);
            events |= Events::SESSION_CONFIRMED;
        }
        if self.path.activity.last_minute.take_if_due(now) {
            events |= Events::LAST_MINUTE;
        }
        events
    }
}

/// The messages of a run that were accepted.
#[derive(Default)]
struct Accepted {
    /// Their length on the wire.
    bytes: usize,
    /// Whether one of them was more than a keepalive.
    data: bool,
}

impl Accepted {
    fn count<'p, 'm>(
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use wireloom_types::PublicKey;

    use super::*;
    use crate::peer_id::PeerId;
    use crate::transport::role::Role;
    use crate::transport::session::SessionKeys;

    /// Both ends of a session that was born after this many seconds: ours, the responder's, first.
    fn ends(index: u32, seconds: u64) -> [Arc<Session>; 2] {
        let born = Instant::from_origin(Duration::from_secs(seconds));
        let keys = |sending, receiving| SessionKeys {
            sending: [sending; 32].into(),
            receiving: [receiving; 32].into(),
        };
        let ours = Session::new(&keys(1, 2), Role::Responder, index, index + 100, born);
        let theirs = Session::new(&keys(2, 1), Role::Initiator, index + 100, index, born);
        [ours, theirs].map(Arc::new)
    }

    /// A peer that has started again knows only the session that it has just made: what it is answered must not be
    /// sealed in the one before, and the answer may be on its way before the device has heard the news.
    #[test]
    fn answers_to_the_message_that_confirms_a_newer_session_are_sealed_in_it() {
        const OLD: u32 = 7;
        const NEW: u32 = 8;
        for (in_use, confirmed, sends_in) in
            [(Some(5), 10, Some(NEW)), (Some(5), 5, Some(NEW)), (Some(10), 5, Some(OLD)), (None, 10, None)]
        {
            let path = Arc::new(PeerPath::new(PeerId(1), PublicKey::from_bytes([1; 32])));
            path.set_session(in_use.map(|seconds| Arc::clone(&ends(OLD, seconds)[0])));
            let [ours, theirs] = ends(NEW, confirmed);
            let now = Instant::from_origin(Duration::from_secs(11));
            let mut message = [0; DATA_OVERHEAD + 16];
            theirs.seal(now, [&mut message[..]].into_iter()).expect("it is young");
            let from = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 1)));
            let session = PeerSession { session: ours, path: Arc::clone(&path) };
            session.open(now, from, [&mut message[..]].into_iter(), &mut |_| ());
            for index in [OLD, NEW] {
                assert_eq!(path.sends_to(index + 100), sends_in == Some(index), "{in_use:?} {confirmed}");
            }
        }
    }
}
