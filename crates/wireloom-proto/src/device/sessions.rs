//! The sessions of a peer: the previous, the current and the next one.

use std::sync::Arc;

use crate::handover::SessionState;
use crate::transport::session::Session;

/// The sessions of a peer. Only the current one sends. All of them receive, so that a renewal loses no message that is
/// under way. The kernel calls them `noise_keypairs`.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    /// A session of which we are the responder, until the peer proves that it has the keys.
    next: Option<Arc<Session>>,
}

/// The sessions that a change has ended.
pub(super) type Ended = [Option<Arc<Session>>; 3];

impl Sessions {
    /// The previous, the current and the next one, to be handed over.
    pub(super) fn state(&self) -> [Option<SessionState>; 3] {
        [&self.previous, &self.current, &self.next]
            .map(|session| session.as_ref().map(|session| session.state()))
    }

    /// The sessions that were handed over. A damaged one is left out.
    pub(super) fn from_state(state: [Option<&SessionState>; 3]) -> Self {
        let [previous, current, next] =
            state.map(|session| session.and_then(Session::from_state).map(Arc::new));
        Self { previous, current, next }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        [&self.previous, &self.current, &self.next].into_iter().flatten()
    }

    pub(super) fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// The `next` session, if it becomes the current one as soon as the peer confirms it.
    pub(super) fn upcoming(&self) -> Option<&Arc<Session>> {
        self.next.as_ref().filter(|next| self.is_newer(next))
    }

    /// Whether a session is no older than the current one.
    fn is_newer(&self, session: &Session) -> bool {
        self.current.as_ref().is_none_or(|current| current.born() <= session.born())
    }

    /// Makes a session that we initiated the current one: the response has proved that the peer has the keys.
    ///
    /// A `next` session stays. It means that both sides have begun a handshake at once, and the peer may send with it
    /// until they agree.
    pub(super) fn use_initiated(&mut self, session: Arc<Session>) -> Ended {
        let replaced = self.current.replace(session);
        [std::mem::replace(&mut self.previous, replaced), None, None]
    }

    /// Keeps a session of which we are the responder until the peer confirms it.
    pub(super) fn keep_answered(&mut self, session: Arc<Session>) -> Ended {
        [self.previous.take(), self.next.replace(session), None]
    }

    /// Makes the `next` session the current one, if the peer has proved that it has the keys.
    ///
    /// If both sides began a handshake at once, each side has initiated one session. Both sessions work. But if each
    /// side stayed with its own, both would renew at the same time again and again, which loses packets. So the side
    /// that yields changes to the other's session, and the other side stays with its own.
    pub(super) fn promote_confirmed(&mut self, we_yield: bool) -> Option<Ended> {
        let is_used = |next: &Session| next.is_confirmed() && (self.is_newer(next) || we_yield);
        if !self.next.as_deref().is_some_and(is_used) {
            return None;
        }
        let next = self.next.take()?;
        let replaced = self.current.replace(next);
        Some([std::mem::replace(&mut self.previous, replaced), None, None])
    }

    /// Ends all sessions.
    pub(super) fn end(&mut self) -> Ended {
        [self.previous.take(), self.current.take(), self.next.take()]
    }
}
