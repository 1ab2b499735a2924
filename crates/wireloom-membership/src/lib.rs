//! Membership sources: where the agent learns which nodes are in the mesh, and says what it is itself.
//!
//! ```text
//!  mesh.toml ────────────────┐            ┌─ Event::Snapshot(Cluster) ─▶ agent ──▶ planner
//!  etcd ───────┐             ├─▶ Source ──┼─ Event::LeftOut, Problem ──▶ agent's log, `wireloom status`
//!  Kubernetes ─┴─ Collection ┘            └─ Event::Local ─────────────▶ agent ──▶ its own record
//!                                                                        │
//!  etcd, Kubernetes ◀── OwnRecord ◀── Following::publish ◀───────────────┘
//! ```
//!
//! A source delivers the whole mesh first, and again after every change. When it fails it delivers the problem, and
//! the last snapshot stays in force. Before the first snapshot the agent changes nothing in the kernel.
//!
//! ```no_run
//! use wireloom_membership::{Event, Source, Start};
//!
//! let source = Source::File("/etc/wireloom/mesh.toml".into());
//! let start = Start { node: "n1".into(), recorded: None };
//! source.follow(start, |event| match event {
//!     Event::Snapshot(cluster) => println!("{} nodes", cluster.nodes.len()),
//!     Event::Problem(error) => eprintln!("{error}"),
//!     Event::LeftOut(complaints) => complaints.iter().for_each(|complaint| eprintln!("{complaint}")),
//!     Event::Local(local) => println!("{local:?}"),
//!     Event::OwnRecord { is_as_published } => println!("published: {is_as_published}"),
//! })?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The asynchronous runtime that the stores' clients need stays inside this crate: a source is a thread that calls a
//! function.
//!
//! | module | has |
//! |---|---|
//! | `file`, [`etcd`], [`kubernetes`] | the kinds of sources |
//! | [`config_file`] | the TOML files that operators write, read and watched: `mesh.toml`, and `agent.toml` |
//! | [`store`], `follow` | what a store must do; lists and watches one of its collections |
//! | `source`, `desk` | the thread that follows a store; what it takes in, gives out and writes |
//! | `record`, [`values`] | a node's record, and the values in it |
//! | `mesh` | the mesh that the records describe: claims, and what vanished |
//! | `store_address` | where the store is, which no node may claim |
//! | `publishing`, `backoff` | when this node's own record is written; the pauses between attempts |
//! | `knowledge` | what a source knows, and the handlers that tell it |
//! | `calico` | pools, blocks, and the keys shared with Felix, from Calico's objects |

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use ipnet::IpNet;
use tokio::sync::mpsc::UnboundedSender;
use wireloom_plan::cluster::{Cluster, Node};

use crate::{
    config_file::{Mistake, ReadError, Watch},
    store::StoreError,
};

mod backoff;
mod calico;
pub mod config_file;
#[cfg(test)]
mod contract;
mod desk;
pub mod etcd;
pub mod file;
mod follow;
mod knowledge;
pub mod kubernetes;
#[cfg(test)]
mod memory;
mod mesh;
mod publishing;
mod record;
mod source;
pub mod store;
mod store_address;
pub mod values;

/// Where the membership comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A `mesh.toml`, which is watched.
    File(PathBuf),
    /// Records in etcd.
    Etcd(Box<etcd::Settings>),
    /// `WireloomNode` objects.
    Kubernetes(Box<kubernetes::Settings>),
}

/// What a source must know when it starts.
#[derive(Debug, Clone)]
pub struct Start {
    /// The name of this node.
    pub node: String,
    /// The mesh that an earlier agent recorded. A store that cannot be reached at the start delivers it as its first
    /// snapshot.
    pub recorded: Option<Cluster>,
}

/// What a source delivers.
#[derive(Debug)]
pub enum Event {
    /// The whole mesh as it is now.
    Snapshot(Cluster),
    /// Why the mesh cannot be read now. The last snapshot stays in force.
    Problem(Error),
    /// What is left out of the last snapshot: all of it, each time that it changes.
    LeftOut(BTreeSet<Complaint>),
    /// What the source knows about this node that its record must say: each time that it changes.
    Local(Local),
    /// Whether the store has this node's record as it was published last, each time that it changes. The snapshots
    /// after it were made of that record, or of what somebody else has written instead.
    OwnRecord {
        /// It is as published.
        is_as_published: bool,
    },
}

/// A record, or a part of one, that is left out of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Complaint {
    /// The name of the record.
    pub record: String,
    /// What is left out and why, and the fix.
    pub what: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.record, self.what)
    }
}

/// What a source knows about this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// The prefixes of its workloads; `None` as long as nobody has given it any.
    pub workloads: Option<BTreeSet<IpNet>>,
    /// The addresses by which other nodes reach it.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of its workload addresses that are meant for its WireGuard interface.
    pub tunnel_addresses: BTreeSet<IpAddr>,
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
    /// The store cannot be read, or this node's record cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A source that is being followed. It goes on when this is dropped.
#[derive(Debug)]
pub struct Following {
    requests: Option<UnboundedSender<Request>>,
    health: Arc<Health>,
}

/// What the agent asks of a followed source.
#[derive(Debug)]
pub(crate) enum Request {
    /// This is this node's record from now on; `None`: it has none.
    Publish(Option<Box<Node>>),
    /// State for people, where the source shows it.
    Report(Box<kubernetes::Report>),
    /// Read everything again.
    Reread,
}

impl Following {
    /// Whether this node's record is published here. A file's is not: the operator writes it.
    #[must_use]
    pub fn publishes(&self) -> bool {
        self.requests.is_some()
    }

    /// Makes this the record of this node, now and whenever somebody changes it. `None` removes it.
    pub fn publish(&self, record: Option<Node>) {
        self.ask(Request::Publish(record.map(Box::new)));
    }

    /// Shows this node's state to people, where the source does that (Kubernetes).
    pub fn report(&self, report: kubernetes::Report) {
        self.ask(Request::Report(Box::new(report)));
    }

    /// Reads everything again now.
    pub fn reread(&self) {
        self.ask(Request::Reread);
    }

    /// How the source is doing.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    fn ask(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // The thread lives as long as the process.
            let _ = requests.send(request);
        }
    }
}

/// How a source is doing: for metrics and `wireloom status`.
#[derive(Debug, Default)]
pub struct Health {
    heard: Mutex<Option<Instant>>,
    failed: Mutex<Option<Instant>>,
    is_in_trouble: AtomicBool,
    is_unreadable: AtomicBool,
    errors: AtomicU64,
    is_published: AtomicBool,
}

impl Health {
    /// When the store last said something, a change or that nothing changed; `None` before the first whole list, and
    /// for a file.
    #[must_use]
    pub fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// When a request to the store failed last.
    #[must_use]
    pub fn failed(&self) -> Option<Instant> {
        *self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether something is wrong that was delivered as a problem. A snapshot is delivered when that is over; those
    /// that come before, such as the recorded mesh, say nothing about it.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        self.is_in_trouble.load(Ordering::Relaxed)
    }

    /// Whether something is wrong that keeps the mesh from being read. It is not when only this node's record cannot be
    /// written.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        self.is_unreadable.load(Ordering::Relaxed)
    }

    /// How many requests to the store have failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Whether the store has this node's record as it was published last.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.is_published.load(Ordering::Relaxed)
    }

    fn set_heard(&self, now: Instant) {
        *self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(now);
    }

    fn set_in_trouble(&self, is_in_trouble: bool, is_unreadable: bool) {
        self.is_unreadable.store(is_unreadable, Ordering::Relaxed);
        self.is_in_trouble.store(is_in_trouble, Ordering::Relaxed);
    }

    fn count_error(&self) {
        *self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn set_published(&self, is_published: bool) {
        self.is_published.store(is_published, Ordering::Relaxed);
    }
}

impl Source {
    /// Reads the mesh once.
    ///
    /// # Errors
    /// The source cannot be read, or what it says is not a valid mesh.
    pub fn read(&self) -> Result<Cluster, Error> {
        match self {
            Self::File(path) => file::read(path),
            Self::Etcd(settings) => etcd::read(settings),
            Self::Kubernetes(settings) => kubernetes::read(settings),
        }
    }

    /// Starts a thread that delivers the mesh as it is now and after every change, for as long as the process lives.
    ///
    /// # Errors
    /// The operating system's, when the thread cannot be started.
    pub fn follow(&self, start: Start, deliver: impl Fn(Event) + Send + 'static) -> io::Result<Following> {
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
                Ok(Following { requests: None, health: Arc::default() })
            }
            Self::Etcd(settings) => etcd::follow(settings, start, deliver),
            Self::Kubernetes(settings) => kubernetes::follow(settings, start, deliver),
        }
    }
}
