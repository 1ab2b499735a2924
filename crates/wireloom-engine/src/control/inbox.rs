//! Passes requests from the clients' threads to the control thread, and replies back.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
};

use super::{Reply, Request};
use crate::runtime::wake_up::WakeUp;

/// A request that waits for its reply.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) reply: ReplyTo,
}

/// The client that waits.
pub(crate) struct ReplyTo(SyncSender<Reply>);

impl ReplyTo {
    pub(crate) fn send(self, reply: Reply) {
        // It fails when the client has gone away.
        let _ = self.0.send(reply);
    }
}

/// The engine's end.
pub(crate) struct Inbox {
    calls: Receiver<Call>,
    wake_up: WakeUp,
}

/// A client's end.
#[derive(Clone)]
pub(super) struct Outbox {
    calls: Sender<Call>,
    wake_up: WakeUp,
}

/// Makes both ends.
pub(super) fn inbox() -> io::Result<(Inbox, Outbox)> {
    let wake_up = WakeUp::new()?;
    let (sender, receiver) = channel();
    Ok((Inbox { calls: receiver, wake_up: wake_up.clone() }, Outbox { calls: sender, wake_up }))
}

impl Inbox {
    /// The next call, if one waits.
    pub(crate) fn poll(&self) -> Option<Call> {
        self.wake_up.clear();
        self.calls.try_recv().ok()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_up.as_fd()
    }
}

impl Outbox {
    /// Passes a request to the engine and waits for its reply. `None` when the engine has ended: another process may
    /// have the interface by now, so nothing is said about that.
    pub(super) fn call(&self, request: Request) -> Option<Reply> {
        let (reply, answer) = sync_channel(1);
        self.calls.send(Call { request, reply: ReplyTo(reply) }).ok()?;
        self.wake_up.signal();
        answer.recv().ok()
    }
}
