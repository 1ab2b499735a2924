//! The laboratory's errors.

use std::{error, fmt, io, time::Duration};

/// A result whose error is the laboratory's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the laboratory.
#[derive(thiserror::Error)]
pub enum Error {
    /// A program is not installed.
    #[error("the program `{program}` is missing: install the Debian package `{package}`")]
    MissingTool {
        /// The program's name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// This process is not root and may not make a user namespace either.
    #[error(
        "network namespaces need root or user namespaces, and this system refuses both: {reason}\n\
         run it as root, or allow user namespaces (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
    )]
    NotPermitted {
        /// What `unshare` printed.
        reason: String,
    },
    /// A cluster needs root of the machine.
    #[error("a Kubernetes cluster needs root of the machine, not of a user namespace: run it with sudo")]
    NotRoot,
    /// The kernel lacks a module that nothing loads by itself.
    #[error("the kernel module {module} is not loaded: run `modprobe {module}` as root")]
    MissingModule {
        /// The module's name.
        module: &'static str,
    },
    /// A program failed.
    #[error("`{command}` in {place} failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Where it ran.
        place: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed, on standard output and standard error.
        stderr: String,
    },
    /// A system call failed.
    #[error("cannot {operation}")]
    Io {
        /// What was tried, such as `open a packet socket in node-a`.
        operation: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// A capture's socket buffer overflowed.
    #[error("a capture lost {packets} packets: it cannot say what crossed the underlay")]
    Overflow {
        /// How many packets the kernel dropped.
        packets: u32,
    },
    /// Something did not happen in time.
    #[error("waited {patience:?} in vain for {what}")]
    Timeout {
        /// What was expected to happen, such as `the agent on node-a to end`.
        what: String,
        /// How long it was given.
        patience: Duration,
    },
    /// Something failed, and a log says more.
    #[error("{what}; from the log:\n{log}")]
    Logged {
        /// What failed, and where the log is from.
        what: String,
        /// The end of the log.
        log: String,
    },
    /// A program printed something that could not be parsed.
    #[error("{what} printed something unexpected: {output:?}")]
    Output {
        /// The program, or its command line.
        what: String,
        /// What it printed.
        output: String,
    },
}

/// The message and its causes, for people: tests show errors with `unwrap`.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error {
    /// Names the operation whose system call failed, for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: impl Into<String>) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: source.into() }
    }
}
