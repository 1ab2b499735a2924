//! `mesh.json`: the mesh in force, with which the next agent compares what it reads first.

use std::io;

use wireloom_plan::cluster::Cluster;

use super::{
    StateDir,
    record::{Record, RecordError, from_json, to_json},
};

pub(super) const MESH: Record<Cluster> = Record {
    file: "mesh.json",
    if_lost: "the nodes of the mesh that was last in force are not known, so all that are missing from the next one \
              are removed at once",
    parse: from_json,
    format: to_json,
};

impl StateDir {
    /// The mesh that was in force last, unless `wireloom down` removed it.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn mesh(&self) -> Result<Option<Cluster>, RecordError> {
        MESH.read(&self.path)
    }

    /// Records the mesh in force.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_mesh(&self, mesh: &Cluster) -> io::Result<()> {
        self.create()?;
        MESH.write(&self.path, mesh)
    }
}
