//! `/run/wireloom/IFNAME.json`: what only the agent knows, for `wireloom status` and the next agent.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use wireloom_kernel::state;

/// Owner-only, and gone with the next boot.
const DIRECTORY: &str = "/run/wireloom";

/// What the agent says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// The agent's process.
    pub pid: u32,
    /// Who carries the packets, and why.
    #[serde(default)]
    pub backend: Option<String>,
    /// Seconds since 1970, when the last pass ended.
    pub last_pass: Option<u64>,
    /// Why the last pass did not reach the desired state.
    pub trouble: Option<String>,
    /// Why the membership of before is in force.
    pub membership_error: Option<String>,
    /// Why the settings of before are in force.
    pub settings_error: Option<String>,
    /// The endpoints that were configured, by public key: whoever looks next tells them from those
    /// learnt by roaming.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub configured_endpoints: BTreeMap<String, SocketAddr>,
}

impl RunFile {
    /// What the agent of an interface wrote last, running or not; `None` when there is nothing to read.
    #[must_use]
    pub fn read(interface: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(interface)).ok()?).ok()
    }

    /// Writes it, whole.
    ///
    /// # Errors
    /// The operating system's.
    pub fn write(&self, interface: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY)?;
        state::write_atomically(&path(interface), &serde_json::to_vec(self)?)
    }

    /// Removes it.
    ///
    /// # Errors
    /// The operating system's.
    pub fn remove(interface: &str) -> io::Result<()> {
        state::remove_if_there(&path(interface))
    }
}

fn path(interface: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{interface}.json"))
}
