//! The state directory: what must outlive the agent, so that `wireloom down` can undo everything.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use wireloom_plan::sysctl::UnderlaySysctl;

/// Longer than another process's [`StateDir::is_locked`] holds the lock.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often the lock is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The values of sysctls before their first change, by interface.
pub(crate) type SavedSysctls = BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>;

/// The state directory: `/var/lib/wireloom` unless systemd gives another.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What an agent programs, so that `wireloom down` finds it even if `agent.toml` has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// The name of our interface.
    pub interface: String,
    /// The number of our routing table.
    pub table: u32,
}

/// The lock of a running agent. The kernel releases it when the process ends.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

impl StateDir {
    /// Locates the directory: `$STATE_DIRECTORY` (systemd.exec(5), `StateDirectory=`; the first of several) or
    /// `/var/lib/wireloom`. Does not create it.
    #[must_use]
    pub fn locate() -> Self {
        let given = env::var_os("STATE_DIRECTORY").filter(|path| !path.is_empty());
        let first = given.as_ref().and_then(|paths| env::split_paths(paths).next());
        Self { path: first.unwrap_or_else(|| "/var/lib/wireloom".into()) }
    }

    /// Uses the given directory. Does not create it.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory, accessible by its owner only.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// Takes the lock that only one agent can hold; `None` when another process still holds it after
    /// `patience`. ([`StateDir::is_locked`] holds it for a moment.)
    ///
    /// # Errors
    /// The operating system's error.
    pub fn lock(&self, patience: Duration) -> io::Result<Option<AgentLock>> {
        self.create()?;
        let deadline = Instant::now() + patience;
        let mut file = File::options().create(true).truncate(false).write(true).open(self.lock_path())?;
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

    /// The values of sysctls before we changed them.
    ///
    /// # Errors
    /// The operating system's error, or a parse error when the record is damaged.
    pub(crate) fn saved_sysctls(&self) -> io::Result<SavedSysctls> {
        match fs::read(self.sysctl_path()) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SavedSysctls::new()),
            Err(error) => Err(error),
        }
    }

    /// Saves them; they are on disk when it returns.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn save_sysctls(&self, saved: &SavedSysctls) -> io::Result<()> {
        if saved.is_empty() {
            return remove_if_there(&self.sysctl_path());
        }
        self.create()?;
        write_atomically(&self.sysctl_path(), &serde_json::to_vec_pretty(saved)?)
    }

    /// What an agent programmed, unless `wireloom down` removed it.
    ///
    /// # Errors
    /// The operating system's error, or a parse error when the record is damaged.
    pub fn programmed(&self) -> io::Result<Option<Programmed>> {
        match fs::read(self.programmed_path()) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records what an agent is about to program.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_programmed(&self, programmed: &Programmed) -> io::Result<()> {
        self.create()?;
        write_atomically(&self.programmed_path(), &serde_json::to_vec(programmed)?)
    }

    /// Records that an interface is being created, for the next agent in case this one is killed before it has
    /// marked the interface as ours.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn begin_creating(&self, interface: &str) -> io::Result<()> {
        self.create()?;
        write_atomically(&self.creating_path(), interface.as_bytes())
    }

    /// The name of the interface that a killed agent was creating.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn creating(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.creating_path()) {
            Ok(interface) => Ok(Some(interface)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records that the interface is created and marked.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn end_creating(&self) -> io::Result<()> {
        remove_if_there(&self.creating_path())
    }

    /// Removes everything but the private key.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn clear(&self) -> io::Result<()> {
        for path in [self.sysctl_path(), self.creating_path(), self.programmed_path(), self.lock_path()] {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    fn sysctl_path(&self) -> PathBuf {
        self.path.join("sysctls.json")
    }

    fn creating_path(&self) -> PathBuf {
        self.path.join("creating")
    }

    fn programmed_path(&self) -> PathBuf {
        self.path.join("programmed.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join("agent.lock")
    }
}

/// Replaces a file: readers see either the old file or the new one, even after a power cut.
///
/// # Errors
/// The operating system's error.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // A temporary file is accessible by its owner only (0600).
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file if it exists.
///
/// # Errors
/// The operating system's error.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_are_read_back_as_saved_and_the_file_goes_with_the_last_one() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path().join("deep/er"));
        assert_eq!(state.saved_sysctls().unwrap(), SavedSysctls::new());
        let saved =
            SavedSysctls::from([("eth0.7".to_owned(), BTreeMap::from([(UnderlaySysctl::RpFilter, 1)]))]);
        state.save_sysctls(&saved).unwrap();
        assert_eq!(state.saved_sysctls().unwrap(), saved);
        state.save_sysctls(&SavedSysctls::new()).unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        fs::write(state.sysctl_path(), "{").unwrap();
        assert_eq!(state.saved_sysctls().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn only_one_process_holds_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        assert!(!state.is_locked().unwrap());
        let held = state.lock(Duration::ZERO).unwrap();
        assert!(held.is_some());
        assert!(state.is_locked().unwrap());
        assert!(state.lock(Duration::from_millis(1)).unwrap().is_none());
        drop(held);
        assert!(!state.is_locked().unwrap());
        assert!(state.lock(Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn clearing_keeps_the_key() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        fs::write(directory.path().join("wg0.key"), "secret").unwrap();
        let programmed = Programmed { interface: "wg0".into(), table: 1 };
        state.set_programmed(&programmed).unwrap();
        assert_eq!(state.programmed().unwrap(), Some(programmed));
        state.begin_creating("wg0").unwrap();
        assert_eq!(state.creating().unwrap().as_deref(), Some("wg0"));
        drop(state.lock(Duration::ZERO).unwrap());
        state.clear().unwrap();
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["wg0.key"]);
    }
}
