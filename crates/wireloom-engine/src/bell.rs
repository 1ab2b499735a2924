//! Wakes a thread that waits with poll(2).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Readable from the moment when somebody rings it until it is silenced. Clones are the same bell.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<EventFd>);

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(bell)))
    }

    pub(crate) fn ring(&self) {
        // It fails when the bell has been rung 2^64 times in vain: it rings then.
        let _ = self.0.write(1);
    }

    /// To be called before looking for what it was rung for: what comes after the look rings again.
    pub(crate) fn silence(&self) {
        // It fails when the bell does not ring.
        let _ = self.0.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
