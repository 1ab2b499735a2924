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
