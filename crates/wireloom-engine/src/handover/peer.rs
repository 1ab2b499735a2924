//! The process at the other end, and its end.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, whatever else gets its number after its end.
pub(crate) struct Peer {
    pub(super) pidfd: OwnedFd,
}

impl Peer {
    /// `None` when there is no such process.
    pub(super) fn open(pid: Pid) -> io::Result<Option<Self>> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pidfd })),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended: all its descriptors are closed then (`do_exit` in kernel/exit.c closes them first).
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        wait_readable(self.pidfd.as_fd(), Instant::now())
    }

    /// Kills it, and waits until it has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when it has not ended within `limit`, [`io::ErrorKind::PermissionDenied`] when this
    /// process may not kill it. It may serve then.
    pub(crate) fn kill_and_wait(&self, limit: Duration) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        if wait_readable(self.pidfd.as_fd(), Instant::now() + limit)? {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the process was killed, but does not end"))
    }
}

/// Waits until a descriptor is readable. False when `deadline` came first.
pub(super) fn wait_readable(descriptor: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut entries = [PollFd::new(descriptor, PollFlags::POLLIN)];
        match ppoll(&mut entries, Some(TimeSpec::from(left)), None) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}
