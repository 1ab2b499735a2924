//! Membership sources: where the agent learns which nodes are in the mesh.
//!
//! ```text
//!  mesh.toml ──▶ Source ──┬─ Event::Snapshot(Cluster) ──▶ agent ──▶ planner
//!                         └─ Event::Problem(Error)    ──▶ agent's log, `wireloom status`
//! ```
//!
//! A source delivers the whole mesh first, and again after every change. When it fails it delivers the problem, and
//! the last snapshot stays in force. Before the first snapshot the agent changes nothing in the kernel.
//!
//! ```no_run
//! use wireloom_membership::{Event, Source};
//!
//! let source = Source::File("/etc/wireloom/mesh.toml".into());
//! source.follow(|event| match event {
//!     Event::Snapshot(cluster) => println!("{} nodes", cluster.nodes.len()),
//!     Event::Problem(error) => eprintln!("{error}"),
//! })?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Each kind of source has a module of its own; today there is [`file`](mod@file). [`config_file`] reads and watches
//! the TOML files that operators write: `mesh.toml` here, `agent.toml` in the binary.

use std::{io, path::PathBuf, thread};

use wireloom_plan::cluster::Cluster;

use crate::config_file::{Mistake, ReadError, Watch};

pub mod config_file;
pub mod file;

/// Where the membership comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A `mesh.toml`, which is watched.
    File(PathBuf),
}

impl Source {
    /// Reads the mesh once.
    ///
    /// # Errors
    /// The source cannot be read, or what it says is not a valid mesh.
    pub fn read(&self) -> Result<Cluster, Error> {
        match self {
            Self::File(path) => file::read(path),
        }
    }

    /// Starts a thread that delivers the mesh as it is now and after every change, for as long as the process lives.
    ///
    /// # Errors
    /// The operating system's, when the thread cannot be started.
    pub fn follow(&self, deliver: impl Fn(Event) + Send + 'static) -> io::Result<()> {
        match self {
            Self::File(path) => {
                let mut watch = Watch::new(path.clone());
                thread::Builder::new().name("mesh".into()).spawn(move || {
                    loop {
                        deliver(match file::cluster(watch.next_version()) {
                            Ok(cluster) => Event::Snapshot(cluster),
                            Err(error) => Event::Problem(error),
                        });
                    }
                })?;
                Ok(())
            }
        }
    }
}

/// What a source delivers.
#[derive(Debug)]
pub enum Event {
    /// The whole mesh as it is now.
    Snapshot(Cluster),
    /// Why the mesh cannot be read now. The last snapshot stays in force.
    Problem(Error),
}

/// Why the mesh cannot be read. A followed source reads it again after the next change, so nobody has to retry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file's content is not a valid mesh.
    #[error(transparent)]
    Mistake(#[from] Mistake),
}
