//! `programmed.json`: what an agent programs.

use std::io;

use serde::{Deserialize, Serialize};
use wireloom_plan::settings::{is_interface_name, is_table};

use super::{
    StateDir,
    record::{Record, RecordError, from_json, to_json},
};

pub(super) const PROGRAMMED: Record<Programmed> = Record {
    file: "programmed.json",
    if_lost: "what an agent programmed is taken from agent.toml; if an earlier agent.toml said otherwise, `ip rule` \
              and `ip route show table all proto 157` show what is left of that",
    parse: from_json,
    format: to_json,
};

/// What an agent programs, so that `wireloom down` finds it even if `agent.toml` has changed. It can always be ours: it
/// never names one of the kernel's own tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedProgrammed")]
pub struct Programmed {
    interface: String,
    table: u32,
}

#[derive(Deserialize)]
struct UncheckedProgrammed {
    interface: String,
    table: u32,
}

impl Programmed {
    /// What is programmed with these settings: the name of our interface and the number of our table.
    ///
    /// # Errors
    /// No interface can have the name, or the table is the kernel's own. In words.
    pub fn new(interface: String, table: u32) -> Result<Self, String> {
        if !is_interface_name(&interface) {
            return Err(format!("{interface:?} is not an interface name"));
        }
        if !is_table(table) {
            return Err(format!("table {table} is the kernel's own"));
        }
        Ok(Self { interface, table })
    }

    /// The name of our interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The number of our routing table.
    #[must_use]
    pub fn table(&self) -> u32 {
        self.table
    }
}

impl TryFrom<UncheckedProgrammed> for Programmed {
    type Error = String;

    fn try_from(unchecked: UncheckedProgrammed) -> Result<Self, String> {
        Self::new(unchecked.interface, unchecked.table)
    }
}

impl StateDir {
    /// What an agent programmed, unless `wireloom down` removed it.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn programmed(&self) -> Result<Option<Programmed>, RecordError> {
        PROGRAMMED.read(&self.path)
    }

    /// Records what an agent is about to program.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_programmed(&self, programmed: &Programmed) -> io::Result<()> {
        self.create()?;
        PROGRAMMED.write(&self.path, programmed)
    }
}
