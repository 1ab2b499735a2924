//! The state directory: what must outlive the agent, so that `wireloom down` can undo everything.

use std::{
    collections::BTreeMap,
    env, fmt,
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag},
};
use serde::{Deserialize, Serialize};
use wireloom_plan::{
    settings::{is_interface_name, is_table},
    sysctl::UnderlaySysctl,
};

use crate::error::Cause;

/// Longer than another process's [`StateDir::is_locked`] holds the lock.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How often the lock is tried.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes. A longer file is none of ours: the run file of a mesh of 100,000 nodes has 8 MiB.
const LONGEST: u64 = 64 << 20;

/// What the name of a file ends with while it is being written.
const UNFINISHED: &str = ".unfinished";

/// The values of sysctls before their first change, by interface.
pub(crate) type SavedSysctls = BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>;

/// The state directory: `/var/lib/wireloom` unless systemd gives another.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// What an agent programs, so that `wireloom down` finds it even if `agent.toml` has changed. It can always be ours: it
/// never names one of the kernel's own tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedProgrammed")]
pub struct Programmed {
    interface: String,
    table: u32,
}

#[derive(Deserialize)]
struct UncheckedProgrammed {
    interface: String,
    table: u32,
}

impl Programmed {
    /// What is programmed with these settings: the name of our interface and the number of our table.
    ///
    /// # Errors
    /// No interface can have the name, or the table is the kernel's own. In words.
    pub fn new(interface: String, table: u32) -> Result<Self, String> {
        if !is_interface_name(&interface) {
            return Err(format!("{interface:?} is not an interface name"));
        }
        if !is_table(table) {
            return Err(format!("table {table} is the kernel's own"));
        }
        Ok(Self { interface, table })
    }

    /// The name of our interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The number of our routing table.
    #[must_use]
    pub fn table(&self) -> u32 {
        self.table
    }
}

impl TryFrom<UncheckedProgrammed> for Programmed {
    type Error = String;

    fn try_from(unchecked: UncheckedProgrammed) -> Result<Self, String> {
        Self::new(unchecked.interface, unchecked.table)
    }
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system's error.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// No agent wrote what is there.
    #[error(
        "{} is damaged ({what}); `wireloom agent`, when it starts, and `wireloom down` move it aside and do without it",
        path.display()
    )]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A damaged record, moved aside.
#[derive(Debug)]
pub struct SetAside {
    path: PathBuf,
    what: String,
    kept: PathBuf,
    /// What follows from its loss.
    consequence: &'static str,
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

    /// The values of sysctls before we changed them.
    ///
    /// # Errors
    /// [`RecordError`]
    pub(crate) fn saved_sysctls(&self) -> Result<SavedSysctls, RecordError> {
        let path = self.sysctl_path();
        let saved: SavedSysctls = read_record(&path, from_json)?.unwrap_or_default();
        match saved.keys().find(|interface| !is_interface_name(interface)) {
            Some(other) => {
                Err(RecordError::Damaged { path, what: format!("{other:?} is not an interface name") })
            }
            None => Ok(saved),
        }
    }

    /// Saves them; they are on disk when it returns.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn save_sysctls(&self, saved: &SavedSysctls) -> io::Result<()> {
        if saved.is_empty() {
            return remove_written(&self.sysctl_path());
        }
        self.create()?;
        write_atomically(&self.sysctl_path(), &serde_json::to_vec_pretty(saved)?)
    }

    /// What an agent programmed, unless `wireloom down` removed it.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn programmed(&self) -> Result<Option<Programmed>, RecordError> {
        read_record(&self.programmed_path(), from_json)
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
    /// [`RecordError`]
    pub(crate) fn creating(&self) -> Result<Option<String>, RecordError> {
        read_record(&self.creating_path(), |text| match str::from_utf8(text) {
            Ok(interface) if is_interface_name(interface) => Ok(interface.to_owned()),
            _ => Err("it holds no interface name".into()),
        })
    }

    /// Records that the interface is created and marked.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn end_creating(&self) -> io::Result<()> {
        remove_written(&self.creating_path())
    }

    /// Moves every damaged record aside, so that everything goes on without it and nothing is lost. Only who holds the
    /// lock may.
    ///
    /// # Errors
    /// [`RecordError::Io`] when a record cannot be read or moved.
    pub fn set_aside_damaged(&self, _lock: &AgentLock) -> Result<Vec<SetAside>, RecordError> {
        let outcomes = [
            (
                self.programmed().map(drop),
                "what an agent programmed is taken from agent.toml; if an earlier agent.toml said otherwise, `ip \
                 rule` and `ip route show table all proto 157` show what is left of that",
            ),
            (
                self.saved_sysctls().map(drop),
                "the values from before the first start, which it held, are not restored; check \
                 net.ipv4.conf.*.{rp_filter,src_valid_mark,send_redirects}",
            ),
            (
                self.creating().map(drop),
                "an interface that a killed agent was just creating may be left, which `ip link delete` removes",
            ),
        ];
        let mut all = Vec::new();
        for (outcome, consequence) in outcomes {
            match outcome {
                Ok(()) => {}
                Err(RecordError::Damaged { path, what }) => {
                    let kept =
                        move_aside(&path).map_err(|cause| RecordError::Io { path: path.clone(), cause })?;
                    all.push(SetAside { path, what, kept, consequence });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Removes everything but the private key, and damaged records that were moved aside.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn clear(&self) -> io::Result<()> {
        for path in [self.sysctl_path(), self.creating_path(), self.programmed_path(), self.lock_path()] {
            remove_written(&path)?;
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

impl From<RecordError> for Cause {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Io { cause, .. } => Self::Io(cause),
            RecordError::Damaged { .. } => Self::Permanent(error.to_string()),
        }
    }
}

impl fmt::Display for SetAside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, what, kept, consequence } = self;
        write!(f, "{} is damaged ({what}) and is kept as {}: {consequence}", path.display(), kept.display())
    }
}

/// Reads a record; `None` when there is no file.
fn read_record<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<Option<T>, RecordError> {
    let damaged = |what| RecordError::Damaged { path: path.to_owned(), what };
    match read_file(path) {
        Ok(text) => text.as_deref().map(parse).transpose().map_err(damaged),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(damaged(error.to_string())),
        Err(cause) => Err(RecordError::Io { path: path.to_owned(), cause }),
    }
}

fn from_json<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, String> {
    match text.is_empty() {
        true => Err("it is empty".into()),
        false => serde_json::from_slice(text).map_err(|error| error.to_string()),
    }
}

/// Reads a file that an agent wrote; `None` when there is none. It never waits, whatever is in the file's place.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not a regular file of at most 64 MiB; otherwise the operating system's
/// error.
pub fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let invalid = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    // Not even opened: that waits for the other end of a FIFO, and may do anything to a device.
    if !metadata.is_file() {
        return invalid("it is not a regular file");
    }
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST { invalid("it is longer than 64 MiB") } else { Ok(Some(content)) }
}

/// Renames a file to `….damaged`, or with a number if there is such a file already.
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let names = (1..).map(|number| match number {
        1 => with_suffix(path, ".damaged"),
        number => with_suffix(path, &format!(".damaged-{number}")),
    });
    let mut free = names.filter(|name| fs::symlink_metadata(name).is_err());
    let kept = free.next().ok_or_else(|| io::Error::other("every name is taken"))?;
    fs::rename(path, &kept)?;
    Ok(kept)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Replaces a file: readers see either the old file or the new one, even after a power cut. One process at a time
/// writes: the one that holds the [`AgentLock`].
///
/// # Errors
/// The operating system's error.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    // The same name each time, so that a writer that was killed leaves one file at most.
    let unfinished = with_suffix(path, UNFINISHED);
    remove_if_there(&unfinished)?;
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file that was [written atomically](write_atomically), and what a writer that was killed has left of it.
///
/// # Errors
/// The operating system's error.
pub fn remove_written(path: &Path) -> io::Result<()> {
    remove_if_there(&with_suffix(path, UNFINISHED))?;
    remove_if_there(path)
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
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_killed_writer_leaves_is_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wg0.json");
        let left = || fs::write(directory.path().join("wg0.json.unfinished"), "half").unwrap();
        left();
        write_atomically(&path, b"whole").unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names().collect::<Vec<_>>(), ["wg0.json"]);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        left();
        remove_written(&path).unwrap();
        assert_eq!(names().count(), 0);
    }

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

    /// In words, and what makes it at a path.
    type Damage = (&'static str, fn(&Path));

    /// What an agent, a crash or a stranger may leave in a record's place.
    const DAMAGES: [Damage; 8] = [
        ("empty", |path| fs::write(path, "").unwrap()),
        ("cut short", |path| fs::write(path, r#"{"interface":"wg"#).unwrap()),
        ("binary", |path| fs::write(path, [0xff; 100]).unwrap()),
        ("of another shape", |path| fs::write(path, "[[ ]]").unwrap()),
        ("huge", |path| File::create(path).unwrap().set_len(10 << 30).unwrap()),
        ("a FIFO", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
    ];

    #[test]
    fn damaged_records_are_named_and_kept_aside() {
        for (what, damage) in DAMAGES {
            let directory = tempfile::tempdir().unwrap();
            let state = StateDir::at(directory.path());
            let paths = [state.programmed_path(), state.sysctl_path(), state.creating_path()];
            paths.iter().for_each(|path| damage(path));
            let errors = [
                state.programmed().unwrap_err(),
                state.saved_sysctls().unwrap_err(),
                state.creating().unwrap_err(),
            ];
            for (error, path) in errors.iter().zip(&paths) {
                let text = error.to_string();
                assert!(text.starts_with(&format!("{} is damaged (", path.display())), "{what}: {text}");
            }
            let lock = state.lock(Duration::ZERO).unwrap().unwrap();
            let aside = state.set_aside_damaged(&lock).unwrap();
            assert_eq!(aside.len(), 3, "{what}");
            for (aside, path) in aside.iter().zip(&paths) {
                let kept = with_suffix(path, ".damaged");
                assert!(aside.to_string().contains(&kept.display().to_string()), "{aside}");
                assert!(fs::symlink_metadata(kept).is_ok() && fs::symlink_metadata(path).is_err(), "{what}");
            }
            assert_eq!(state.programmed().unwrap(), None);
            assert!(state.set_aside_damaged(&lock).unwrap().is_empty());
            // A second one does not replace the first, and clearing keeps both.
            damage(&paths[0]);
            state.set_aside_damaged(&lock).unwrap();
            state.clear().unwrap();
            for suffix in [".damaged", ".damaged-2"] {
                assert!(fs::symlink_metadata(with_suffix(&paths[0], suffix)).is_ok(), "{what}");
            }
        }
    }

    #[test]
    fn a_record_never_names_what_cannot_be_ours() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        for (interface, table) in [
            ("wg0", 0),
            ("wg0", 253),
            ("wg0", 254),
            ("wg0", 255),
            ("", 1),
            ("..", 1),
            ("../../etc/x", 1),
            ("a name of 16 by.", 1),
        ] {
            let text = serde_json::json!({ "interface": interface, "table": table }).to_string();
            fs::write(state.programmed_path(), &text).unwrap();
            let error = state.programmed().unwrap_err();
            assert!(matches!(error, RecordError::Damaged { .. }), "{text}");
        }
        fs::write(state.sysctl_path(), r#"{"../../x":{"rp_filter":1}}"#).unwrap();
        assert!(state.saved_sysctls().unwrap_err().to_string().contains("not an interface name"));
    }

    #[test]
    fn a_fifo_as_lock_is_an_error_and_no_wait() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::at(directory.path());
        nix::unistd::mkfifo(&state.lock_path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(state.lock(Duration::ZERO).is_err());
    }

    /// Bytes that are nothing, and bytes that are nearly a record.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let interface = prop_oneof![Just("wg0".to_owned()), "\\PC{0,20}"];
        let table = prop_oneof![0..260_u64, any::<u64>()];
        let record = (interface, table).prop_map(|(interface, table)| {
            serde_json::json!({ "interface": interface, "table": table }).to_string().into_bytes()
        });
        let saved = ("\\PC{0,20}", any::<u16>()).prop_map(|(interface, value)| {
            serde_json::json!({ interface: { "rp_filter": value } }).to_string().into_bytes()
        });
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), record, saved]
    }

    proptest! {
        #[test]
        fn no_content_panics_or_leads_to_a_table_of_the_kernel(bytes in content()) {
            let directory = tempfile::tempdir().unwrap();
            let state = StateDir::at(directory.path());
            for path in [state.programmed_path(), state.sysctl_path(), state.creating_path()] {
                fs::write(path, &bytes).unwrap();
            }
            let lock = state.lock(Duration::ZERO).unwrap().unwrap();
            let aside = state.set_aside_damaged(&lock).unwrap().len();
            prop_assert!(aside >= 1, "nothing is all of them at once");
            if let Some(programmed) = state.programmed().unwrap() {
                prop_assert!(![0, 253, 254, 255].contains(&programmed.table()));
                prop_assert!(!programmed.interface().contains('/'));
            }
            prop_assert!(state.saved_sysctls().unwrap().keys().all(|interface| !interface.contains('/')));
            let left = fs::read_dir(directory.path()).unwrap().count();
            prop_assert_eq!(left, 4, "three records or what was in their place, and the lock");
        }
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
        let programmed = Programmed::new("wg0".into(), 1).unwrap();
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
