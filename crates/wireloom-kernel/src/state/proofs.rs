//! `proofs.json`: which nodes have proved that they encrypt with this one, so that nothing of theirs is in plaintext
//! again.

use std::io;

use wireloom_plan::proofs::Memory;

use super::{
    StateDir,
    record::{Record, RecordError, from_json, to_json},
};

pub(super) const PROOFS: Record<Memory> = Record {
    file: "proofs.json",
    if_lost: "the proofs in it are lost, so no node counts as proven until there is a handshake with it again; until \
              then unproven_peers in agent.toml says what happens to traffic with it",
    parse: from_json,
    format: to_json,
};

impl StateDir {
    /// The proofs that an agent had, unless `wireloom down` removed them; empty without a record.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn proofs(&self) -> Result<Memory, RecordError> {
        Ok(PROOFS.read(&self.path)?.unwrap_or_default())
    }

    /// Records the proofs; they are on disk when it returns.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_proofs(&self, proofs: &Memory) -> io::Result<()> {
        self.create()?;
        PROOFS.write(&self.path, proofs)
    }
}
