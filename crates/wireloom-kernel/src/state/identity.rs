//! `identity.json`: under which name this node's key was published.

use std::io;

use serde::{Deserialize, Serialize};
use wireloom_types::PublicKey;

use super::{
    StateDir,
    record::{Record, RecordError, from_json, to_json},
};

pub(super) const IDENTITY: Record<Identity> = Record {
    file: "identity.json",
    if_lost: "under which name this node's key was published is not known, so a node that has another name now keeps \
              its key",
    parse: from_json,
    format: to_json,
};

/// A key belongs to the name that it was published under: of two machines with the same key, such as a cloned one and
/// its original, peers could trust neither.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// The public half of its key.
    pub public_key: PublicKey,
}

impl StateDir {
    /// As what this node published itself last, unless it never did.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn identity(&self) -> Result<Option<Identity>, RecordError> {
        IDENTITY.read(&self.path)
    }

    /// Records as what this node is about to publish itself.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_identity(&self, identity: &Identity) -> io::Result<()> {
        self.create()?;
        IDENTITY.write(&self.path, identity)
    }
}
