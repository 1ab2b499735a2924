//! The way from the clients' threads to the engine's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
};

use super::{Errno, Reply, Request};
use crate::bell::Bell;

/// A request that waits for its reply.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) reply: ReplyTo,
}

/// The client that waits.
pub(crate) struct ReplyTo(SyncSender<Reply>);

impl ReplyTo {
    pub(crate) fn send(self, reply: Reply) {
        // A client that went away meanwhile needs none.
        let _ = self.0.send(reply);
    }
}

/// The engine's end.
pub(crate) struct Inbox {
    calls: Receiver<Call>,
    bell: Bell,
}

/// A client's end.
#[derive(Clone)]
pub(crate) struct Outbox {
    calls: Sender<Call>,
    bell: Bell,
}

/// Makes both ends.
pub(crate) fn inbox() -> io::Result<(Inbox, Outbox)> {
    let bell = Bell::new()?;
    let (sender, receiver) = channel();
    Ok((Inbox { calls: receiver, bell: bell.clone() }, Outbox { calls: sender, bell }))
}

impl Inbox {
    /// The next call, if one waits.
    pub(crate) fn poll(&self) -> Option<Call> {
        self.bell.silence();
        self.calls.try_recv().ok()
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl Outbox {
    /// Asks the engine and waits for its reply.
    pub(crate) fn call(&self, request: Request) -> Reply {
        let ended = Reply::Refused(Errno::ENODEV);
        let (reply, answer) = sync_channel(1);
        if self.calls.send(Call { request, reply: ReplyTo(reply) }).is_err() {
            return ended;
        }
        self.bell.ring();
        answer.recv().unwrap_or(ended)
    }
}
