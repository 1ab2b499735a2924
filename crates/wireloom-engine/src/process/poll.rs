//! Waiting for descriptors with poll(2).

use std::{io, os::fd::BorrowedFd, time::Duration};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

/// An entry that waits until a descriptor is readable.
pub(super) fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

/// An entry that waits for nothing. Poll(2) needs some open descriptor for it.
pub(super) fn nothing(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::empty())
}

/// An entry that waits until the interface of a TUN descriptor is deleted, and not for its packets. The kernel wakes
/// who waits for urgent data then, too (`tun_detach_all` in drivers/net/tun.c), of which there is none.
pub(super) fn deleted(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLPRI)
}

/// Waits until an entry is ready, a signal handler has run, or `timeout` is over; `None` means for ever. Returns which
/// entries are ready.
pub(super) fn wait<const N: usize>(
    mut fds: [PollFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(fds.map(|fd| fd.any().unwrap_or_default())),
        Err(error) => Err(error.into()),
    }
}
