//! The state directory: what must outlive the agent, so that `wireloom down` can undo everything and the next agent
//! goes on where this one ended.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

mod creating;
mod directory;
mod file;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
mod left;
mod lock;
mod mesh;
mod programmed;
mod proofs;
mod record;
mod sysctls;
#[cfg(test)]
mod tests;

use self::{
    creating::CREATING, identity::IDENTITY, left::LEFT, mesh::MESH, programmed::PROGRAMMED, proofs::PROOFS,
    record::AnyRecord, sysctls::SYSCTLS,
};
pub use self::{
    directory::create_directory,
    file::{read_file, remove_if_there, remove_written, write_atomically},
    identity::Identity,
    left::Left,
    lock::{AgentLock, LOCK_PATIENCE},
    programmed::Programmed,
    record::{RecordError, SetAside},
};

/// Every record of the state directory, in the order of their removal: what `wireloom down` goes by is the last. To
/// add one, add a module with its `Record`, and its place here.
const ALL: [&dyn AnyRecord; 7] = [&MESH, &IDENTITY, &LEFT, &PROOFS, &SYSCTLS, &CREATING, &PROGRAMMED];

/// The state directory: `/var/lib/wireloom` unless systemd gives another.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
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
    /// As [`create_directory`].
    pub fn create(&self) -> io::Result<()> {
        create_directory(&self.path)
    }

    /// Moves every damaged record aside, so that everything goes on without it and nothing is lost. Only who holds the
    /// lock may.
    ///
    /// # Errors
    /// [`RecordError::Io`] when a record cannot be read or moved.
    pub fn set_aside_damaged(&self, _lock: &AgentLock) -> Result<Vec<SetAside>, RecordError> {
        ALL.iter().filter_map(|record| record.set_aside_if_damaged(&self.path).transpose()).collect()
    }

    /// The saved guard: a script for `nft -f` that makes the whole nftables table.
    pub(crate) fn guard_path(&self) -> PathBuf {
        self.path.join("guard.nft")
    }

    /// Removes everything but the private key, and damaged records that were moved aside.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn clear(&self) -> io::Result<()> {
        ALL.iter().try_for_each(|record| record.remove(&self.path))?;
        remove_written(&self.guard_path())?;
        remove_written(&self.lock_path())
    }

    /// Removes the directory with everything in it, the private key too. Where it is a mount, as in a container, it
    /// stays and is empty.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn purge(&self, _lock: &AgentLock) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
            removed => removed,
        }
    }
}
