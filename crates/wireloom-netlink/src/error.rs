//! Why a request failed.

use std::{fmt, io};

use nix::errno::Errno;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the request.
    #[error("{0}")]
    Refused(Refusal),
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The kernel did not answer in time.
    #[error("netlink gave no answer within {0} s")]
    TimedOut(u64),
    /// The table changed during each attempt to dump it.
    #[error("the table changed during each of {0} dumps")]
    DumpInterrupted(usize),
    /// The answer has a shape that the protocol does not allow.
    #[error("the kernel's answer is unreadable: {0}")]
    Unreadable(String),
}

/// The kernel's refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The kernel's reason in words (`NLMSGERR_ATTR_MSG`), if it gives one.
    pub reason: Option<String>,
}

impl Error {
    /// The error number, if the kernel refused the request.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{reason} ({})", self.errno.desc()),
            None => f.write_str(self.errno.desc()),
        }
    }
}

/// A refusal becomes the operating system's error of its number.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.errno.into(),
            Error::Socket(error) => error,
            Error::TimedOut(_) => Self::new(io::ErrorKind::TimedOut, error),
            Error::DumpInterrupted(_) => Self::new(io::ErrorKind::Interrupted, error),
            Error::Unreadable(_) => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}
