//! A record: one file of the state directory that an agent writes, and the next agent or `wireloom down` reads.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use super::file::{move_aside, read_file, remove_written, write_atomically};
use crate::error::Cause;

/// One kind of record. Every record has one of these in a module of its own, and its place in
/// [`ALL`](super::ALL).
pub(super) struct Record<T> {
    /// The name of its file in the state directory.
    pub(super) file: &'static str,
    /// What follows from its loss: the end of a sentence that says it was damaged.
    pub(super) if_lost: &'static str,
    /// Reads the file's content, and says in words why no agent can have written it.
    pub(super) parse: fn(&[u8]) -> Result<T, String>,
    /// The file's content.
    pub(super) format: fn(&T) -> io::Result<Vec<u8>>,
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

impl<T> Record<T> {
    /// The record in a state directory; `None` when there is no file.
    pub(super) fn read(&self, directory: &Path) -> Result<Option<T>, RecordError> {
        let path = directory.join(self.file);
        match read_file(&path) {
            Ok(text) => text
                .as_deref()
                .map(self.parse)
                .transpose()
                .map_err(|what| RecordError::Damaged { path, what }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(RecordError::Damaged { path, what: error.to_string() })
            }
            Err(cause) => Err(RecordError::Io { path, cause }),
        }
    }

    /// Replaces the record; it is on disk when this returns. The directory must exist.
    pub(super) fn write(&self, directory: &Path, value: &T) -> io::Result<()> {
        write_atomically(&directory.join(self.file), &(self.format)(value)?)
    }

    /// Removes the record, if there is one.
    pub(super) fn remove(&self, directory: &Path) -> io::Result<()> {
        remove_written(&directory.join(self.file))
    }
}

/// What can be done to a record of any kind.
pub(super) trait AnyRecord: Sync {
    /// Moves the record aside if it is damaged.
    fn set_aside_if_damaged(&self, directory: &Path) -> Result<Option<SetAside>, RecordError>;

    /// Removes the record, if there is one.
    fn remove(&self, directory: &Path) -> io::Result<()>;

    /// The name of its file in the state directory.
    #[cfg(test)]
    fn file(&self) -> &'static str;
}

impl<T> AnyRecord for Record<T> {
    fn set_aside_if_damaged(&self, directory: &Path) -> Result<Option<SetAside>, RecordError> {
        match self.read(directory) {
            Ok(_) => Ok(None),
            Err(RecordError::Damaged { path, what }) => match move_aside(&path) {
                Ok(kept) => Ok(Some(SetAside { path, what, kept, consequence: self.if_lost })),
                Err(cause) => Err(RecordError::Io { path, cause }),
            },
            Err(error) => Err(error),
        }
    }

    fn remove(&self, directory: &Path) -> io::Result<()> {
        self.remove(directory)
    }

    #[cfg(test)]
    fn file(&self) -> &'static str {
        self.file
    }
}

pub(super) fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    match text.is_empty() {
        true => Err("it is empty".into()),
        false => serde_json::from_slice(text).map_err(|error| error.to_string()),
    }
}

pub(super) fn to_json<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
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
