//! A kernel operation that failed: which one, why, and whether trying again can help.

use std::{fmt, io};

use nix::errno::Errno;

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {cause}")]
pub struct Error {
    operation: String,
    cause: Cause,
}

/// Why it failed.
#[derive(Debug)]
pub enum Cause {
    /// The kernel refused it, perhaps with a reason in words (`NLMSGERR_ATTR_MSG`).
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's own words.
        reason: Option<String>,
    },
    /// A file, a socket or a process did.
    Io(io::Error),
    /// What came back makes no sense to us, or only the operator can mend it; in words.
    Told(String),
    /// Something that passes by itself, in words.
    Passing(String),
}

impl Error {
    /// An operation, to follow "cannot", and what made it fail.
    #[must_use]
    pub fn new(operation: String, cause: Cause) -> Self {
        Self { operation, cause }
    }

    /// True when the same operation may succeed later without anybody's doing.
    #[must_use]
    pub fn retry_can_help(&self) -> bool {
        match &self.cause {
            Cause::Refused { errno, .. } => !is_final(*errno),
            Cause::Io(error) => error.raw_os_error().is_none_or(|code| !is_final(Errno::from_raw(code))),
            Cause::Told(_) => false,
            Cause::Passing(_) => true,
        }
    }
}

impl Cause {
    /// True when the kernel has no support for the family that was asked for (IPv6 may be off).
    pub(super) fn is_absent_family(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP, .. })
    }
}

/// Refusals that stay as they are until the operator, the kernel or this program changes.
fn is_final(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EACCES | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno: Errno::EPERM, .. } => {
                f.write_str("permission denied; it takes root (CAP_NET_ADMIN)")
            }
            Self::Refused { errno, reason: Some(reason) } => write!(f, "{reason} ({})", errno.desc()),
            Self::Refused { errno, reason: None } => f.write_str(errno.desc()),
            Self::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(f, "permission denied; it takes root ({error})")
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::Told(what) | Self::Passing(what) => f.write_str(what),
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
        Self::Refused { errno, reason: None }
    }
}

/// Names the operation that a cause made fail.
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
        let cause = Cause::Refused { errno, reason: reason.map(str::to_owned) };
        Err::<(), _>(cause).attempt(|| "add the rule".into()).unwrap_err()
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
            "cannot add the rule: permission denied; it takes root (CAP_NET_ADMIN)"
        );
    }

    #[test]
    fn only_passing_troubles_are_worth_a_retry() {
        assert!(refused(Errno::ENOBUFS, None).retry_can_help());
        assert!(refused(Errno::ENODEV, None).retry_can_help());
        assert!(!refused(Errno::EPERM, None).retry_can_help());
        assert!(!refused(Errno::EINVAL, None).retry_can_help());
    }
}
