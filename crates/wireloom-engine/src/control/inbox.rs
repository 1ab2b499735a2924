//! The way from the clients' threads to the engine's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Errno, Reply, Request};

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
    bell: Arc<EventFd>,
}

/// A client's end.
#[derive(Clone)]
pub(crate) struct Outbox {
    calls: Sender<Call>,
    bell: Arc<EventFd>,
}

/// Makes both ends.
pub(crate) fn inbox() -> io::Result<(Inbox, Outbox)> {
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let bell = Arc::new(bell);
    let (sender, receiver) = channel();
    Ok((Inbox { calls: receiver, bell: Arc::clone(&bell) }, Outbox { calls: sender, bell }))
}

impl Inbox {
    /// The next call, if one waits.
    pub(crate) fn poll(&self) -> Option<Call> {
        // Silenced before looking: a call that comes after the look rings again.
        let _ = self.bell.read();
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
        let (reply, answer) = sync_channel(1);
        let sent =
            self.calls.send(Call { request, reply: ReplyTo(reply) }).is_ok() && self.bell.write(1).is_ok();
        let ended = Reply::Refused(Errno::ENODEV);
        if sent { answer.recv().unwrap_or(ended) } else { ended }
    }
}
