//! Events. They have those of the methods of nix's `EventFd` that are used.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::Ordering,
};

use loom::sync::atomic::AtomicBool;
use nix::errno::Errno;
pub(crate) use nix::sys::eventfd::EfdFlags;

use super::is_running;

#[derive(Debug)]
pub(crate) enum EventFd {
    Real(nix::sys::eventfd::EventFd),
    /// Whether it was written since it was read.
    Modelled(AtomicBool),
}

impl EventFd {
    pub(crate) fn from_flags(flags: EfdFlags) -> nix::Result<Self> {
        if is_running() {
            Ok(Self::Modelled(AtomicBool::new(false)))
        } else {
            nix::sys::eventfd::EventFd::from_flags(flags).map(Self::Real)
        }
    }

    pub(crate) fn write(&self, count: u64) -> nix::Result<usize> {
        match self {
            Self::Real(event) => event.write(count),
            // The kernel's counter has a lock.
            Self::Modelled(written) => {
                written.swap(true, Ordering::AcqRel);
                Ok(size_of::<u64>())
            }
        }
    }

    pub(crate) fn read(&self) -> nix::Result<u64> {
        match self {
            Self::Real(event) => event.read(),
            Self::Modelled(written) => {
                if written.swap(false, Ordering::AcqRel) {
                    Ok(1)
                } else {
                    Err(Errno::EAGAIN)
                }
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Real(event) => event.as_fd(),
            Self::Modelled(_) => unreachable!("a model polls nothing"),
        }
    }
}
