//! The TOML files that operators write: reading them whole, naming the line of a mistake, and following changes.
//!
//! `mesh.toml` is one, the binary's `agent.toml` the other.
//!
//! ```text
//!  inotify ──Sign──▶ Wholeness ──Verdict──▶ Follower ──▶ Watch ──▶ TomlFile
//!  stat ────Stamp──▶  (pure)              (any Disk)   (Linux)
//! ```

use std::path::PathBuf;

pub use self::{
    error::ReadError,
    toml_file::{Mistake, TomlFile},
};
use self::{follow::Follower, linux::Linux};

mod error;
mod fix;
mod follow;
mod linux;
#[cfg(test)]
mod tests;
mod toml_file;
mod whole;

/// A file that is followed: every content that it has, and every reason why it has none.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    follower: Follower<Linux>,
}

impl Watch {
    /// Begins to watch the file at a path. It need not exist yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { follower: Follower::new(Linux::new(path.clone())), path }
    }

    /// Waits until the file is whole and differs from what was returned last, and returns it. The first call returns
    /// what is there now. An error is returned once; the file is still watched after it.
    ///
    /// # Errors
    /// Why the file cannot be read now. [`ReadError::Unfinished`] comes after 5 s.
    pub fn next_version(&mut self) -> Result<TomlFile, ReadError> {
        let content = self.follower.next()?;
        match String::from_utf8(content) {
            Ok(text) => Ok(TomlFile::from_text(&self.path, &text)),
            Err(_) => Err(ReadError::NotText { path: self.path.clone() }),
        }
    }
}
