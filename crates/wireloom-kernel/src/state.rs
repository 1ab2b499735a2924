//! The state directory: what must outlive the agent so that `wireloom down` can undo it.

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
use wireloom_plan::kernel::UnderlaySysctl;

/// Long enough for another's [`StateDir::is_locked`].
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often a lock is tried.
const GLANCE: Duration = Duration::from_millis(10);

/// What sysctls of each interface were before the first change.
pub type SavedSysctls = BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>;

/// The directory, `/var/lib/wireloom` unless systemd says otherwise.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What is programmed, so that `wireloom down` finds it whatever `agent.toml` says by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programmed {
    /// Our interface.
    pub interface: String,
    /// Our table.
    pub table: u32,
}

/// Held while an agent runs; the kernel lets go of it with the process.
#[derive(Debug)]
pub struct AgentLock {
    _file: Flock<File>,
}

impl StateDir {
    /// Where it is: `$STATE_DIRECTORY` (systemd.exec(5), `StateDirectory=`; the first of several) or
    /// `/var/lib/wireloom`. Nothing is made yet.
    #[must_use]
    pub fn locate() -> Self {
        let given = env::var_os("STATE_DIRECTORY").filter(|path| !path.is_empty());
        let first = given.as_ref().and_then(|paths| env::split_paths(paths).next());
        Self { path: first.unwrap_or_else(|| "/var/lib/wireloom".into()) }
    }

    /// A given directory.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory, for its owner only.
    ///
    /// # Errors
    /// The operating system's.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)
    }

    /// Takes the lock that only one agent can hold; `None` when another process holds it for longer
    /// than `patience` ([`StateDir::is_locked`] does for a moment).
    ///
    /// # Errors
    /// The operating system's.
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
            thread::sleep(GLANCE);
        }
    }

    /// True while an agent runs.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_locked(&self) -> io::Result<bool> {
        Ok(self.lock_path().exists() && self.lock(Duration::ZERO)?.is_none())
    }

    /// What sysctls were before we changed them.
    ///
    /// # Errors
    /// The operating system's, or `InvalidData` when the record is damaged.
    pub fn saved_sysctls(&self) -> io::Result<SavedSysctls> {
        match fs::read(self.sysctl_path()) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SavedSysctls::new()),
            Err(error) => Err(error),
        }
    }

    /// Records them, on the disk before it returns.
    ///
    /// # Errors
    /// The operating system's.
    pub fn save_sysctls(&self, saved: &SavedSysctls) -> io::Result<()> {
        if saved.is_empty() {
            return remove_if_there(&self.sysctl_path());
        }
        self.create()?;
        write_atomically(&self.sysctl_path(), &serde_json::to_vec_pretty(saved)?)
    }

    /// What an agent began to program and nobody took down since.
    ///
    /// # Errors
    /// The operating system's, or `InvalidData` when the record is damaged.
    pub fn programmed(&self) -> io::Result<Option<Programmed>> {
        match fs::read(self.programmed_path()) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Records it, before anything of it is done.
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_programmed(&self, programmed: &Programmed) -> io::Result<()> {
        self.create()?;
        write_atomically(&self.programmed_path(), &serde_json::to_vec(programmed)?)
    }

    /// Says that an interface is being made: should the agent be killed before it has marked the
    /// interface as its own, the next one knows.
    ///
    /// # Errors
    /// The operating system's.
    pub fn begin_creating(&self, interface: &str) -> io::Result<()> {
        self.create()?;
        write_atomically(&self.creating_path(), interface.as_bytes())
    }

    /// The interface that a killed agent was making.
    ///
    /// # Errors
    /// The operating system's.
    pub fn creating(&self) -> io::Result<Option<String>> {
        match fs::read_to_string(self.creating_path()) {
            Ok(interface) => Ok(Some(interface)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface is made and marked.
    ///
    /// # Errors
    /// The operating system's.
    pub fn end_creating(&self) -> io::Result<()> {
        remove_if_there(&self.creating_path())
    }

    /// Removes everything but the private key.
    ///
    /// # Errors
    /// The operating system's.
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

/// Readers see the old file or the new one, whole, also after a power cut.
///
/// # Errors
/// The operating system's.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // A temporary file is its owner's only (0600).
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file; that it is not there is no error.
///
/// # Errors
/// The operating system's.
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
    fn sysctls_come_back_as_saved_and_go_when_none_is_left() {
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
    fn a_damaged_record_is_an_error_and_not_an_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        fs::write(state.sysctl_path(), "{").unwrap();
        assert_eq!(state.saved_sysctls().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn one_agent_at_a_time() {
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
    fn clearing_leaves_the_key() {
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
