//! A session with its peer: opening messages and accounting for them.

use std::sync::Arc;

use super::Outcome;
use super::peer_path::PeerPath;
use super::session::{Session, Verdict};
use super::signal::News;
use crate::drop_reason::DropReason;
use crate::endpoint::Endpoint;
use crate::message::DATA_OVERHEAD;
use crate::time::Instant;

/// A session and whose it is.
#[derive(Debug)]
pub(super) struct PeerSession {
    pub(super) session: Arc<Session>,
    pub(super) path: Arc<PeerPath>,
}

impl PeerSession {
    pub(super) fn open<'m>(
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

    pub(super) fn accept<'m>(
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
