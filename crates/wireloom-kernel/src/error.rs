//! A kernel operation that failed: which one, why, and whether a retry can help.

use std::{fmt, io};

use nix::errno::Errno;
use wireloom_netlink::Refusal;

use crate::wireguard::silence::Silence;

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {cause}")]
pub struct Error {
    operation: String,
    cause: Cause,
}

/// Why an operation failed.
#[derive(Debug)]
pub enum Cause {
    /// The kernel refused it.
    Refused(Refusal),
    /// A file, a socket or a process failed.
    Io(io::Error),
    /// The device does not answer.
    Silent(Silence),
    /// Something that stays until the operator, the kernel or this program changes, in words.
    Permanent(String),
    /// Something that a retry may get past, in words.
    Transient(String),
    /// It was not waited for any longer, and may still succeed.
    Unfinished(String),
}

impl Error {
    /// An operation, worded to follow "cannot", and why it failed.
    #[must_use]
    pub fn new(operation: String, cause: Cause) -> Self {
        Self { operation, cause }
    }

    /// Whether the same operation may succeed later without anybody's intervention.
    #[must_use]
    pub fn retry_can_help(&self) -> bool {
        match &self.cause {
            Cause::Refused(refusal) => !is_final(refusal.errno),
            Cause::Io(error) => error.raw_os_error().is_none_or(|code| !is_final(Errno::from_raw(code))),
            Cause::Permanent(_) => false,
            Cause::Silent(_) | Cause::Transient(_) | Cause::Unfinished(_) => true,
        }
    }

    /// The device's silence, if that is why the operation failed.
    #[must_use]
    pub fn silence(&self) -> Option<Silence> {
        match self.cause {
            Cause::Silent(silence) => Some(silence),
            _ => None,
        }
    }
}

impl Cause {
    /// The error number, if the kernel refused the operation.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

/// Whether a refusal stays until the operator, the kernel or this program changes.
fn is_final(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(Refusal { errno: Errno::EPERM, .. }) => {
                f.write_str("permission denied; run it as root (CAP_NET_ADMIN)")
            }
            Self::Refused(refusal) => write!(f, "{refusal}"),
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "permission denied; run it as root ({error})")
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::Silent(silence) => write!(f, "{silence}"),
            Self::Permanent(what) | Self::Transient(what) | Self::Unfinished(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Refused(Refusal { errno, reason: None })
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<wireloom_netlink::Error> for Cause {
    fn from(error: wireloom_netlink::Error) -> Self {
        use wireloom_netlink::Error::{DumpInterrupted, Refused, Socket, TimedOut, Unreadable};
        match error {
            Refused(refusal) => Self::Refused(refusal),
            Socket(error) => Self::Io(error),
            TimedOut(_) | DumpInterrupted(_) => Self::Transient(error.to_string()),
            Unreadable(_) => Self::Permanent(error.to_string()),
        }
    }
}

/// Names the operation of which a cause is the failure.
pub(crate) trait Attempt<T> {
    fn attempt(self, operation: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, C: Into<Cause>> Attempt<T> for Result<T, C> {
    fn attempt(self, operation: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(operation(), cause.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno, reason: Option<&str>) -> Error {
        let refusal = Refusal { errno, reason: reason.map(str::to_owned) };
        Err::<(), _>(refusal).attempt(|| "add the rule".into()).unwrap_err()
    }

    #[test]
    fn the_message_names_operation_and_reason() {
        assert_eq!(refused(Errno::EEXIST, None).to_string(), "cannot add the rule: File exists");
        assert_eq!(
            refused(Errno::EINVAL, Some("Invalid prefix")).to_string(),
            "cannot add the rule: Invalid prefix (Invalid argument)"
        );
        assert_eq!(
            refused(Errno::EPERM, None).to_string(),
            "cannot add the rule: permission denied; run it as root (CAP_NET_ADMIN)"
        );
    }

    #[test]
    fn only_transient_failures_are_worth_a_retry() {
        assert!(refused(Errno::ENOBUFS, None).retry_can_help());
        assert!(refused(Errno::ENODEV, None).retry_can_help());
        assert!(!refused(Errno::EPERM, None).retry_can_help());
        assert!(!refused(Errno::EINVAL, None).retry_can_help());
    }
}
