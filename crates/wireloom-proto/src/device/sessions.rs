//! The sessions of a peer: the previous, the current and the next one.

use std::sync::Arc;

use crate::transport::session::Session;

/// The sessions of a peer. Only the current one sends; all of them receive, so that messages under
/// way survive a renewal.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    /// One that we answered for, until the peer proves that it has the keys.
    next: Option<Arc<Session>>,
}

/// Sessions that ended.
pub(crate) type Ended = [Option<Arc<Session>>; 3];

impl Sessions {
    pub(crate) fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// Puts a session that we initiated in use at once: its response proved the peer's keys.
    ///
    /// One that waits to be confirmed goes on waiting: both sides began at once, and until they
    /// agree the peer may send with it.
    pub(crate) fn begin_initiated(&mut self, session: Arc<Session>) -> Ended {
        let replaced = self.current.replace(session);
        [std::mem::replace(&mut self.previous, replaced), None, None]
    }

    /// Puts aside a session that we answered for.
    pub(crate) fn begin_answered(&mut self, session: Arc<Session>) -> Ended {
        [self.previous.take(), self.next.replace(session), None]
    }

    /// Puts the answered session in use, when the peer has proved that it has the keys.
    ///
    /// When both sides began at once, there is one session of each. Both work; but if each side kept
    /// to its own, both would renew at once forever, which costs packets. So the side that yields
    /// goes over to the other's, and the other does not.
    pub(crate) fn promote_confirmed(&mut self, we_yield: bool) -> Option<Ended> {
        let current = self.current.as_ref();
        let next = self.next.take_if(|next| {
            let newer = current.is_none_or(|current| current.born() <= next.born());
            next.is_confirmed() && (newer || we_yield)
        })?;
        let replaced = self.current.replace(next);
        Some([std::mem::replace(&mut self.previous, replaced), None, None])
    }

    /// Ends all of them.
    pub(crate) fn end(&mut self) -> Ended {
        [self.previous.take(), self.current.take(), self.next.take()]
    }
}
