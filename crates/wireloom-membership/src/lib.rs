//! Where the agent learns who is in the mesh.
//!
//! A source delivers the whole mesh first, and again whenever it changed; what goes wrong with it
//! is delivered too, and leaves the last whole state in force. Nothing is removed from the kernel
//! before the first snapshot is there.

use std::{io, path::PathBuf};

use wireloom_plan::cluster::Cluster;

use crate::{mistake::Mistake, watch::watch};

pub mod file;
pub mod mistake;
pub mod watch;

/// Where the membership comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `mesh.toml`, watched.
    File(PathBuf),
}

impl Source {
    /// The mesh as it is now.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn read(&self) -> Result<Cluster, Error> {
        match self {
            Self::File(path) => file::read(path),
        }
    }

    /// Delivers what there is and what changes, from a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// The thread cannot be had.
    pub fn follow(&self, deliver: impl Fn(Event) + Send + 'static) -> io::Result<()> {
        match self {
            Self::File(path) => {
                let file = path.clone();
                watch(path.clone(), move || {
                    deliver(match file::read(&file) {
                        Ok(cluster) => Event::Snapshot(cluster),
                        Err(error) => Event::Problem(error),
                    });
                })
            }
        }
    }
}

/// What a source has to say.
#[derive(Debug)]
pub enum Event {
    /// The whole mesh as it is now.
    Snapshot(Cluster),
    /// The mesh cannot be had; what was delivered before stays in force.
    Problem(Error),
}

/// Why the mesh cannot be had. All of these end by themselves once the file is mended: it is watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It says something that it may not.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}
