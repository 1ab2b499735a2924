//! What the agent's thread writes down for a scrape.

use std::{
    collections::{BTreeMap, HashMap},
    mem::{Discriminant, discriminant},
    time::Instant,
};

use serde::Serialize;
use wireloom_kernel::Backend;
use wireloom_plan::{
    health::{Encryption, Health, PeerState, Verdict},
    warning::Severity,
};
use wireloom_types::PublicKey;

use super::refused::Packets;

/// This node as the agent saw it last.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) interface: String,
    pub(crate) backend: Option<Backend>,
    /// The nodes and pools of the mesh in force; `None` before the first one.
    pub(crate) mesh: Option<(usize, usize)>,
    /// `None` before the first examination, and while the kernel cannot be judged.
    pub(crate) judged: Option<Judged>,
    /// What the operator should know besides what was judged: how many of each kind.
    pub(crate) warnings: Warnings,
    /// What the agent cannot read or do, and whether that is so now.
    pub(crate) troubles: Vec<(&'static str, bool)>,
    pub(crate) counts: Counts,
    pub(crate) device: Device,
    /// What the firewall refused.
    pub(crate) refused: Packets,
    pub(crate) membership: Membership,
}

/// How many there are of each kind.
pub(crate) type Warnings = BTreeMap<(Severity, String), u64>;

/// What the agent has counted since it started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Passes that reached the desired state.
    pub(crate) passes: u64,
    pub(crate) failed_passes: u64,
    /// Changes in the kernel.
    pub(crate) changes: u64,
    /// Those of them that nobody had asked for: something else had changed the kernel.
    pub(crate) repairs: u64,
    /// Passes that found rules of ours deleted.
    pub(crate) rules_deleted: u64,
}

/// What an examination of this node found.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    /// 2: traffic with every node is encrypted; 1: with some; 0: with none.
    pub(crate) encrypting: u8,
    /// How many nodes are in each state.
    pub(crate) states: BTreeMap<&'static str, u64>,
    /// How many nodes there are with each fate of traffic.
    pub(crate) traffic: BTreeMap<&'static str, u64>,
    pub(crate) findings: Warnings,
}

impl Judged {
    pub(crate) fn of(health: &Health) -> Self {
        let mut states: BTreeMap<_, _> = PeerState::NAMES.iter().map(|name| (*name, 0)).collect();
        let mut traffic: BTreeMap<_, _> = Encryption::NAMES.iter().map(|name| (*name, 0)).collect();
        for peer in &health.peers {
            *states.entry(peer.state.name()).or_default() += 1;
            *traffic.entry(peer.encrypted.name()).or_default() += 1;
        }
        let findings = tally(health.findings.iter().map(|finding| (finding.severity(), finding)));
        let encrypting = match health.verdict {
            Verdict::Encrypted => 2,
            Verdict::Partly(_) => 1,
            Verdict::NotEncrypted(_) => 0,
        };
        Self { encrypting, states, traffic, findings }
    }
}

/// Counts warnings or findings by kind, as `wireloom status --json` calls it.
pub(crate) fn tally<'a, T: Serialize + 'a>(told: impl Iterator<Item = (Severity, &'a T)>) -> Warnings {
    // There may be one for each of thousands of nodes, and only the first of a kind has to be named.
    let mut counts: HashMap<(Severity, Discriminant<T>), (&T, u64)> = HashMap::new();
    for (severity, what) in told {
        counts.entry((severity, discriminant(what))).or_insert((what, 0)).1 += 1;
    }
    let named = counts.into_iter().map(|((severity, _), (what, count))| {
        let value = serde_json::to_value(what).unwrap_or_default();
        ((severity, value["warning"].as_str().unwrap_or("unknown").to_owned()), count)
    });
    named.collect()
}

/// What the device said last.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// When it said so; `None`: it never did.
    pub(crate) at: Option<Instant>,
    /// Whether it answers; `None` when there is none.
    pub(crate) answers: Option<bool>,
    pub(crate) traffic: Traffic,
    /// Packets that it dropped, by reason; `None` when it does not count them.
    pub(crate) drops: Option<BTreeMap<String, u64>>,
}

/// Bytes of WireGuard's datagrams.
#[derive(Debug)]
pub(crate) enum Traffic {
    /// Since the device started, up to [`NODES_MAX`](super::NODES_MAX) peers.
    Peers(Vec<Peer>),
    /// Since the agent started.
    Sums { sent: u64, received: u64 },
}

impl Default for Traffic {
    fn default() -> Self {
        Self::Peers(Vec::new())
    }
}

/// A peer of the device.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) public_key: PublicKey,
    /// The name of the node that has the key.
    pub(crate) name: Option<String>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Seconds since 1970; 0 without a handshake.
    pub(crate) handshake: u64,
}

/// How the membership source is doing.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    /// When the store last said something; `None` for a file, and before the first time.
    pub(crate) heard: Option<Instant>,
    /// Requests to the store that failed, and whether it has this node's record, once there was one to publish; `None`
    /// for a file.
    pub(crate) store: Option<(u64, Option<bool>)>,
    /// Records, or parts of them, that are left out.
    pub(crate) left_out: u64,
    /// Nodes whose removal is held back.
    pub(crate) held: u64,
}
