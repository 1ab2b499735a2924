//! `agent.lock`: the lock that only one agent can hold.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
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
        loop {
            match self.try_lock(true)? {
                Attempt::Taken(lock) => return Ok(Some(lock)),
                Attempt::Held | Attempt::Gone if Instant::now() >= deadline => return Ok(None),
                Attempt::Held | Attempt::Gone => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Takes the lock if its file is there and nobody holds it: where [`StateDir::clear`] has removed everything, this
    /// makes nothing.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn lock_if_there(&self) -> io::Result<Option<AgentLock>> {
        Ok(match self.try_lock(false)? {
            Attempt::Taken(lock) => Some(lock),
            Attempt::Held | Attempt::Gone => None,
        })
    }

    /// Whether an agent runs. Makes nothing.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn is_locked(&self) -> io::Result<bool> {
        // Whoever may not see the file does not see an agent either.
        Ok(self.lock_path().exists() && matches!(self.try_lock(false)?, Attempt::Held))
    }

    fn try_lock(&self, create: bool) -> io::Result<Attempt> {
        let file = File::options()
            .create(create)
            .truncate(false)
            .write(true)
            // A FIFO in its place would wait for a reader.
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(self.lock_path());
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !create => return Ok(Attempt::Gone),
            file => file?,
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Whoever held it may have removed the file: another process would lock a new one.
            Ok(file) if !is_at(&file, &self.lock_path())? => Ok(Attempt::Gone),
            Ok(file) => Ok(Attempt::Taken(AgentLock { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(Attempt::Held),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// The file that the agent holds open and locked.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("agent.lock")
    }
}

/// What came of an attempt to take the lock.
enum Attempt {
    Taken(AgentLock),
    Held,
    /// There is no such file, or it was removed meanwhile.
    Gone,
}

/// Whether this is the file at the path.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|found| (found.dev(), found.ino()) == (own.dev(), own.ino())),
    }
}
