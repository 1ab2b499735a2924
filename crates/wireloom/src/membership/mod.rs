//! Where the agent learns who is in the mesh.
//!
//! A source delivers the whole mesh first, and again whenever it changed; what goes wrong with it
//! is delivered too, and leaves the last whole state in force. Nothing is removed from the kernel
//! before the first snapshot is there.

use std::{io, path::PathBuf};

use wireloom_plan::cluster::Cluster;

use crate::mistake::Mistake;

pub mod file;

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
