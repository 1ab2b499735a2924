//! `left.json`: the operator wants this node out of the mesh.

use std::io;

use serde::{Deserialize, Serialize};

use super::{
    StateDir,
    record::{Record, RecordError, from_json, to_json},
};

pub(super) const LEFT: Record<Left> = Record {
    file: "left.json",
    if_lost: "if this node had left the mesh, it joins it again; run `wireloom leave` if it is to stay out",
    parse: from_json,
    format: to_json,
};

/// A node that is to be out of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Left {
    /// Whether it has announced that, waited until the peers had gone direct, and removed its record.
    pub gone: bool,
}

impl StateDir {
    /// Whether this node is to be out of the mesh, and is; `None` when it is to be in.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn left(&self) -> Result<Option<Left>, RecordError> {
        LEFT.read(&self.path)
    }

    /// Records whether this node is to be out of the mesh.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_left(&self, left: Option<Left>) -> io::Result<()> {
        match left {
            Some(left) => {
                self.create()?;
                LEFT.write(&self.path, &left)
            }
            None => LEFT.remove(&self.path),
        }
    }
}
