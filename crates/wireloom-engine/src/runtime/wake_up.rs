//! Wakes a thread that waits in poll(2).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use crate::sync::event::{EfdFlags, EventFd};

/// A descriptor that is readable from [`WakeUp::signal`] until [`WakeUp::clear`]. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct WakeUp(Arc<EventFd>);

impl WakeUp {
    pub(crate) fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self(Arc::new(event)))
    }

    pub(crate) fn signal(&self) {
        // It fails only when the counter is full: the descriptor is readable then.
        let _ = self.0.write(1);
    }

    /// Whether it is signalled, which it is not any more then.
    #[cfg(test)]
    pub(crate) fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Call it before looking at what the wake-up announces: whatever is added later signals again.
    pub(crate) fn clear(&self) {
        // It fails when there is nothing to clear.
        let _ = self.0.read();
    }
}

impl AsFd for WakeUp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
