//! Whose the control socket is.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

/// The file of a socket. Every device that serves a path has made the file there itself: another file is another
/// device's. This also holds for a device in another PID namespace, whose process we cannot tell from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketFile {
    device: u64,
    inode: u64,
    /// When it was made, in seconds and nanoseconds: an inode may be used again.
    made: (i64, i64),
}

impl SocketFile {
    /// `None` when there is none.
    pub(super) fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        let made = (found.mtime(), found.mtime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), made })
    }
}
