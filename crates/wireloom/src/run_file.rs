//! The run file, `/run/wireloom/IFNAME.json`: what only the agent knows, for `wireloom status` and the next agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use nix::{
    sys::time::TimeValLike as _,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};
use wireloom_kernel::state;
use wireloom_plan::{health::Trends, paths, proofs::Account, removals::Recurrence, warning::Warning};
use wireloom_types::{PresharedKeyHash, PublicKey};

use crate::metrics::Pulse;

/// The directory of run files: readable by its owner only, and emptied by a reboot. What must outlive that is in the
/// state directory.
const DIRECTORY: &str = "/run/wireloom";

/// How much later (seconds) the store must have been heard for the run file to be written again: a busy one says
/// something all the time.
pub(crate) const HEARD_STEP: u64 = 5;

/// What the agent reports about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// The agent's process id.
    pub(crate) pid: u32,
    /// This node's name.
    #[serde(default)]
    pub(crate) node: Option<String>,
    /// Which WireGuard carries the packets, and why.
    #[serde(default)]
    pub(crate) backend: Option<String>,
    /// When the last pass ended, in seconds since 1970.
    pub(crate) last_pass: Option<u64>,
    /// Why the last pass did not reach the desired state.
    pub(crate) trouble: Option<String>,
    /// Whether the agent lives and the kernel is as planned, for `wireloom health`.
    #[serde(default)]
    pub(crate) pulse: Pulse,
    /// Why the previous membership is still in force.
    pub(crate) membership_error: Option<String>,
    /// Why the previous settings are still in force.
    pub(crate) settings_error: Option<String>,
    /// The text of the `agent.toml` that is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) settings: Option<String>,
    /// Why the previous private key is still in force.
    #[serde(default)]
    pub(crate) key_error: Option<String>,
    /// Since when the device does not answer, in seconds since 1970.
    #[serde(default)]
    pub(crate) device_silent_since: Option<u64>,
    /// How often other programs deleted our rules lately.
    #[serde(default)]
    pub(crate) rules_deleted: Option<Recurrence>,
    /// The removals of nodes that are held back now.
    #[serde(default)]
    pub(crate) held: Option<Held>,
    /// When the agent began the last reading that a signal asked for, once it has obeyed it: milliseconds of the
    /// machine's monotonic clock.
    #[serde(default)]
    pub(crate) reread: Option<u64>,
    /// Whether each other node is proven, and why not.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) standing: BTreeMap<String, Account>,
    /// The proven nodes that still send in plaintext, and since when this agent knows that (since 1970).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) not_proved_us: BTreeMap<String, Duration>,
    /// What the agent has seen of its device over time.
    #[serde(default)]
    pub(crate) trends: Trends,
    /// What is known of the path to each other node with a key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) paths: BTreeMap<String, paths::Account>,
    /// The longest packets (bytes) that get through the tunnel to peers, by public key, where longer ones are lost.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) probed: BTreeMap<String, u32>,
    /// Whether the agent publishes this node's record.
    #[serde(default)]
    pub(crate) publishes: bool,
    /// The records of the store, or the parts of them, that are left out of the mesh.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) left_out: BTreeSet<Complained>,
    /// Nobody has given this node workloads yet, so that there is no record to publish.
    #[serde(default)]
    pub(crate) lacks_workloads: bool,
    /// `unproven_peers = "reject"` in a mesh of Kubernetes without pools.
    #[serde(default)]
    pub(crate) rejects_without_pools: bool,
    /// Whether the store has this node's record as the agent published it last.
    #[serde(default)]
    pub(crate) is_published: bool,
    /// Which store the membership is in; `None` for a file.
    #[serde(default)]
    pub(crate) store: Option<String>,
    /// When the store last said something, in seconds since 1970, give or take [`HEARD_STEP`].
    #[serde(default)]
    pub(crate) heard: Option<u64>,
    /// Since when the store has had another record of this node, or none (seconds since 1970).
    #[serde(default)]
    pub(crate) unpublished_since: Option<u64>,
    /// This node is to be out of the mesh, and whether it is.
    #[serde(default)]
    pub(crate) left: Option<bool>,
    /// Why the next agent will not know who is proven.
    #[serde(default)]
    pub(crate) proofs_error: Option<String>,
    /// The nodes whose endpoints cannot be resolved now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) unresolved: BTreeMap<String, Unresolved>,
    /// The hash of the mesh's preshared key in force.
    #[serde(default)]
    pub(crate) preshared_key: Option<PresharedKeyHash>,
    /// Why the file of the mesh's preshared key cannot be used, and what follows.
    #[serde(default)]
    pub(crate) preshared_error: Option<String>,
    /// The endpoints that were configured, by public key: they distinguish a changed endpoint from one that WireGuard
    /// learned by roaming.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) configured_endpoints: BTreeMap<String, SocketAddr>,
}

/// Removals that are held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The names of the nodes, sorted.
    pub(crate) nodes: Vec<String>,
    /// When the last of them goes, in seconds since 1970.
    pub(crate) until: u64,
}

impl Held {
    /// What the operator should know, at a time in seconds since 1970.
    pub(crate) fn warning(&self, now: u64) -> Warning {
        Warning::RemovalsHeld { nodes: self.nodes.clone(), seconds: self.until.saturating_sub(now) }
    }
}

/// A record of the store, or a part of one, that is left out of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Complained {
    /// Its name.
    pub(crate) record: String,
    /// What is left out and why, and the fix.
    pub(crate) what: String,
}

impl Complained {
    /// What the operator should know.
    pub(crate) fn warning(&self) -> Warning {
        Warning::LeftOut { record: self.record.clone(), what: self.what.clone() }
    }
}

/// An endpoint that cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unresolved {
    /// The name and port.
    pub(crate) endpoint: String,
    /// What the system's resolver says.
    pub(crate) error: String,
}

impl Unresolved {
    /// What the operator should know about the endpoint of this node.
    pub(crate) fn warning(&self, node: String) -> Warning {
        Warning::Unresolved { node, endpoint: self.endpoint.clone(), error: self.error.clone() }
    }
}

impl RunFile {
    /// What the agent alone knows that the operator should know too. `table` is ours.
    pub(crate) fn warnings(&self, table: u32) -> impl Iterator<Item = Warning> {
        let deleted = self.rules_deleted.map(|recurrence| Warning::RulesDeleted { table, recurrence });
        let held = self.held.as_ref().map(|held| held.warning(unix_time()));
        let unresolved = self.unresolved.iter().map(|(node, unresolved)| unresolved.warning(node.clone()));
        let one_sided = self.not_proved_us.keys().map(|node| Warning::HasNotProvedUs { node: node.clone() });
        let left_out = self.left_out.iter().map(Complained::warning);
        let lacks_workloads = self.lacks_workloads.then_some(Warning::NoOwnWorkloads);
        let has_left = (self.left == Some(true)).then_some(Warning::HasLeft);
        let without_pools = self.rejects_without_pools.then_some(Warning::RejectWithoutPools);
        let foreign = self.unpublished_since.map(|since| Warning::RecordNotAsPublished { since });
        let of_store = left_out.chain(foreign).chain(lacks_workloads).chain(has_left).chain(without_pools);
        deleted.into_iter().chain(held).chain(unresolved).chain(one_sided).chain(of_store)
    }

    /// Takes when the store was heard last, if that is news.
    pub(crate) fn note_heard(&mut self, heard: Option<u64>) {
        if heard.is_some_and(|heard| self.heard.is_none_or(|before| heard.abs_diff(before) >= HEARD_STEP)) {
            self.heard = heard;
        }
    }

    /// How the membership is, at a time in seconds since 1970; `None` where it is a file.
    pub(crate) fn membership(&self, now: u64) -> Option<String> {
        let store = self.store.as_ref()?;
        let heard = self.heard.map_or_else(
            || "never heard".to_owned(),
            |heard| format!("heard {} s ago", now.saturating_sub(heard)),
        );
        let record = match (self.left, self.is_published) {
            (Some(true), _) => "this node has left",
            (Some(false), _) => "this node is leaving",
            (None, true) => "record published",
            (None, false) => "record NOT published",
        };
        Some(format!("{store}, {heard}, {record}"))
    }

    /// [`RunFile::probed`]. Malformed keys are skipped.
    pub(crate) fn probed(&self) -> BTreeMap<PublicKey, u32> {
        self.probed.iter().filter_map(|(key, inner)| Some((key.parse().ok()?, *inner))).collect()
    }

    /// What the agent of an interface wrote last, whether it still runs or not; `None` when there is no readable file.
    pub(crate) fn read(interface: &str) -> Option<Self> {
        serde_json::from_slice(&state::read_file(&path(interface)).ok()??).ok()
    }

    /// Writes the file atomically.
    pub(crate) fn write(&self, interface: &str) -> io::Result<()> {
        state::create_directory(Path::new(DIRECTORY))?;
        state::write_atomically(&path(interface), &serde_json::to_vec(self)?)
    }

    /// Removes the file, if there is one.
    pub(crate) fn remove(interface: &str) -> io::Result<()> {
        state::remove_written(&path(interface))
    }
}

fn path(interface: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{interface}.json"))
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}

/// The machine's monotonic clock (`CLOCK_MONOTONIC`), which all processes share, in milliseconds.
pub(crate) fn monotonic_time() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(time.num_milliseconds()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_store_is_told() {
        let mut agent = RunFile::default();
        assert_eq!(agent.membership(1000), None, "a file");
        agent.store = Some("etcd".into());
        assert_eq!(agent.membership(1000).as_deref(), Some("etcd, never heard, record NOT published"));
        agent.note_heard(Some(996));
        agent.note_heard(Some(998));
        agent.note_heard(None);
        agent.is_published = true;
        assert_eq!(agent.membership(1000).as_deref(), Some("etcd, heard 4 s ago, record published"));
        agent.note_heard(Some(1001));
        assert_eq!(agent.heard, Some(1001));
    }

    #[test]
    fn a_foreign_record_is_warned_of() {
        let agent = RunFile { unpublished_since: Some(3_723), ..RunFile::default() };
        let warnings: Vec<String> = agent.warnings(1).map(|warning| warning.to_string()).collect();
        assert!(warnings[0].starts_with("since 01:02:03 UTC this node's record"), "{warnings:?}");
    }
}
