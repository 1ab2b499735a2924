//! Why a file cannot be read.

use std::{io, path::PathBuf, time::Duration};

use nix::errno::Errno;

/// The size of the largest file that is read, in bytes.
pub(super) const SIZE_LIMIT: u64 = 64 << 20;

/// How long a file may be unfinished before that is reported.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a file cannot be read now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The operating system refuses to open or read it.
    #[error("cannot read {}: {}", path.display(), io::Error::from(*errno))]
    System {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        errno: Errno,
    },
    /// It is a directory, a FIFO, a device or a socket. It is not opened, because that could block or have effects.
    #[error("{} is {kind}, not a file; put a regular file there, or a link to one", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// It is larger than 64 MiB. A mesh of 5,000 nodes takes about one.
    #[error(
        "{} has {size} bytes, and more than {} MiB are not read; put the right file there",
        path.display(),
        SIZE_LIMIT >> 20
    )]
    TooBig {
        /// The file.
        path: PathBuf,
        /// Its size in bytes; of a file that grows while it is read, the part that was read.
        size: u64,
    },
    /// It is not UTF-8.
    #[error("{} is not text in UTF-8, as TOML must be; put the right file there", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A program has not finished writing it.
    #[error(
        "a program has been writing {} for more than {} s and has not closed it; end that program, or write a new file \
         and rename it into place",
        path.display(),
        PATIENCE.as_secs()
    )]
    Unfinished {
        /// The file.
        path: PathBuf,
    },
}

impl ReadError {
    /// True when there is no such file.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::System { errno: Errno::ENOENT, .. })
    }

    /// True when the file will be read without anybody's help, once its writer closes it.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        matches!(self, Self::Unfinished { .. })
    }
}
