//! What can go wrong in the laboratory.

use std::{io, time::Duration};

/// The result of work in the laboratory.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the laboratory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("the program `{program}` is missing: install the Debian package `{package}`")]
    MissingTool {
        /// What was looked for.
        program: &'static str,
        /// Where Debian has it.
        package: &'static str,
    },
    /// Neither root nor allowed to make a user namespace.
    #[error(
        "network namespaces need root or user namespaces, and this system refuses both: {reason}\n\
         run it as root, or allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    NotPermitted {
        /// What `unshare` said.
        reason: String,
    },
    /// A program ended with a failure.
    #[error("`{command}` in {place} failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Where it ran.
        place: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said, both streams.
        stderr: String,
    },
    /// A system call failed.
    #[error("cannot {operation}")]
    Io {
        /// What was tried.
        operation: String,
        /// Why it failed.
        source: io::Error,
    },
    /// More came than a capture could keep up with.
    #[error("a capture lost {packets} packets: it cannot say what crossed the underlay")]
    Overflow {
        /// How many.
        packets: u32,
    },
    /// Something that was waited for did not come true.
    #[error("waited {patience:?} in vain for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        patience: Duration,
    },
    /// A program's output was not of the expected form.
    #[error("{what} printed something unexpected: {output:?}")]
    Output {
        /// Which program.
        what: String,
        /// What it printed.
        output: String,
    },
}

impl Error {
    /// For `map_err` on a system call: names the operation.
    pub(crate) fn io<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: source.into() }
    }
}
