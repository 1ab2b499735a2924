//! What a store must do for a membership source: list a collection of objects, watch it, and say where it stands.
//!
//! ```text
//!  etcd ──────────┐                    ┌─ Listed ─┐
//!  Kubernetes ────┼─ impl Collection ──┤          ├──▶ follow (one loop for all stores)
//!  memory (twin) ─┘                    └─ Change ─┘
//! ```
//!
//! A collection is what is listed and watched together: everything below a prefix in etcd, all objects of a kind in
//! Kubernetes. Its objects have names and JSON values. The stores only move them; what they mean is decided elsewhere.

use std::{collections::BTreeMap, time::Duration};

use futures::{future::BoxFuture, stream::BoxStream};

/// A point in a store's history: etcd's revision, Kubernetes' resource version. It grows with every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// Where a store stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which store it is, where it says so: the id of etcd's cluster. A store with another id is another store.
    pub store: Option<String>,
    /// The newest version.
    pub version: Version,
}

/// An object of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// JSON, as the store has it.
    pub value: String,
    /// When the object was made; the earlier one of two has the older claim. Etcd's create revision, or Kubernetes'
    /// creation time in seconds since 1970.
    pub born: u64,
    /// Tells an object from a later one of the same name: Kubernetes' UID; empty in etcd, whose create revision does
    /// it.
    pub uid: String,
}

/// The whole collection at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where the store stood.
    pub position: Position,
    /// The objects by name.
    pub objects: BTreeMap<String, Object>,
}

/// What a watch reports, in the order of the store's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An object is new or another one.
    Put(String, Object, Version),
    /// An object is gone.
    Gone(String, Version),
    /// Nothing changed up to this version (etcd's progress notification, Kubernetes' bookmark).
    Progress(Version),
}

/// What a watch delivers, until it is cut.
pub type Changes = BoxStream<'static, Result<Change, StoreError>>;

/// A collection in a store. Each call makes one attempt, and ends within a bound of its own (a watch: until it is cut).
pub trait Collection: Send {
    /// Its name in messages, such as "the WireloomNodes".
    fn name(&self) -> String;

    /// All objects, at one version that is no older than any answer before: never a stale replica's.
    fn list(&mut self) -> BoxFuture<'_, Result<Listed, StoreError>>;

    /// The changes after a version. The stream ends with an error or when the store closes it.
    fn watch(&mut self, after: Version) -> BoxFuture<'_, Result<Changes, StoreError>>;

    /// Where the store stands now, asked of the store itself and not of a cache. A watch from a version that the store
    /// has not reached is silently empty: this shows that it went back in time, or is another store.
    fn position(&mut self) -> BoxFuture<'_, Result<Position, StoreError>>;
}

/// The place in a store where this node's own record is.
pub trait OwnRecord: Send {
    /// Writes the record: JSON as in [`Object::value`]. Fails with [`StoreProblem::Conflict`] if another node has its
    /// key already.
    fn put(&mut self, value: String) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes the record. One that is not there is no error.
    fn delete(&mut self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A request to a store that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {operation}: {problem}")]
pub struct StoreError {
    /// What was tried and on what, such as "list the WireloomNodes at https://192.0.2.1:6443".
    pub operation: String,
    /// Why it failed.
    pub problem: StoreProblem,
}

/// Why a request to a store failed, as far as it decides what to do next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreProblem {
    /// The store is not there, or too busy. Try again, after this time if it says so.
    #[error("{why}")]
    Unavailable {
        /// The reason, for people.
        why: String,
        /// How long the store asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The version to watch from is no longer kept (etcd: compacted; Kubernetes: 410 Gone). List again.
    #[error("the store no longer keeps that version")]
    Compacted,
    /// The credentials are wrong or not enough. A retry helps once somebody has changed them.
    #[error("{why}")]
    Denied {
        /// The reason and the fix, for people.
        why: String,
    },
    /// Somebody else wrote in between, or has what is to be written.
    #[error("{why}")]
    Conflict {
        /// The reason, for people.
        why: String,
    },
    /// The answer makes no sense, or the collection does not exist there.
    #[error("{why}")]
    Nonsense {
        /// The reason and the fix, for people.
        why: String,
    },
}
