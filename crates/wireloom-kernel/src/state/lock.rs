//! `agent.lock`: the lock that only one agent can hold.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
};

use super::StateDir;

/// Longer than another process's [`StateDir::is_locked`] holds the lock.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often the lock is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The lock of a running agent. The kernel releases it when the process ends.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

impl StateDir {
    /// Takes the lock that only one agent can hold; `None` when another process still holds it after
    /// `patience`. ([`StateDir::is_locked`] holds it for a moment.)
    ///
    /// # Errors
    /// The operating system's error.
    pub fn lock(&self, patience: Duration) -> io::Result<Option<AgentLock>> {
        self.create()?;
        let deadline = Instant::now() + patience;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            // A FIFO in its place would wait for a reader.
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.lock_path())?;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Some(AgentLock { _file: file })),
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => return Ok(None),
                Err((file, Errno::EWOULDBLOCK)) => file,
                Err((_, errno)) => return Err(errno.into()),
            };
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether an agent runs.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn is_locked(&self) -> io::Result<bool> {
        Ok(self.lock_path().exists() && self.lock(Duration::ZERO)?.is_none())
    }

    /// The file that the agent holds open and locked.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("agent.lock")
    }
}
