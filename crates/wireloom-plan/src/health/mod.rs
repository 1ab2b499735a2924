//! What is so on a node: judged by what is observed, never by what is intended.
//!
//! ```text
//!  mesh, settings, proofs ─┐
//!  kernel, device, machine ┼─ Facts ─▶ examine() ─▶ Health: verdict, one state per peer, findings
//!  agent, its Trends ──────┘
//! ```
//!
//! What follows from the mesh and the settings alone is a [`Warning`](crate::warning::Warning) of the plan, and is not
//! said here again.

mod finding;
mod findings;
mod foreign_rules;
mod machine;
mod own;
mod peer;
mod peers;
mod prefixes;
mod routes;
mod trends;
mod verdict;
mod wording;

use std::{cmp::Reverse, collections::BTreeMap, net::SocketAddr, time::Duration};

use serde::Serialize;
use wireloom_types::PublicKey;

pub use self::{
    finding::Finding,
    machine::{Action, DroppingChain, EndpointRoute, Forwarding, Hook, Machine, MarkUser, PolicyRule},
    peer::{Difference, Encryption, LeftOut, PeerHealth, PeerState, Refused, Why},
    prefixes::Prefixes,
    trends::{DropTrend, Sample, Trends},
    verdict::Verdict,
};
use self::{own::Own, peers::Judge};
use crate::{
    cluster::Cluster, observed::Observed, planner::Plan, proofs::Account, settings::Settings,
    warning::Severity,
};

/// What is so on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// The headline.
    pub verdict: Verdict,
    /// Every other node of the mesh by name, those without a peer on the device included; then the peers of the device
    /// that no node has.
    pub peers: Vec<PeerHealth>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// What is known about this node.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The mesh in force; `None` when it cannot be read and there is no earlier one.
    pub cluster: Option<&'a Cluster>,
    /// This node's settings.
    pub settings: &'a Settings,
    /// Whether each other node is proven, by name.
    pub accounts: &'a BTreeMap<String, Account>,
    /// The kernel. What the device alone tells may be missing from it.
    pub observed: &'a Observed,
    /// What an agent would change now; `None` when there is no plan.
    pub plan: Option<&'a Plan>,
    /// The WireGuard device.
    pub device: DeviceFacts<'a>,
    /// What the firewall refused, by the name of the node. Nodes may be left out.
    pub refused: &'a BTreeMap<String, Refused>,
    /// What the running agent has seen over time; `None` without an agent.
    pub trends: Option<&'a Trends>,
    /// The rest of this machine.
    pub machine: &'a Machine,
    /// The agent.
    pub agent: AgentFacts<'a>,
    /// Since 1970.
    pub now: Duration,
}

/// The WireGuard device as it answers now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceFacts<'a> {
    /// It answers.
    Answers {
        /// All of its peers.
        peers: &'a BTreeMap<PublicKey, PeerFacts>,
        /// Packets that it dropped, by the reason's name; `None` for the kernel's WireGuard, which does not count them.
        drops: Option<&'a BTreeMap<String, u64>>,
    },
    /// Its process is there and does not answer.
    Silent {
        /// For how long, seconds; at least as long as was waited for an answer.
        for_seconds: u64,
    },
    /// There is none.
    Absent,
}

/// A peer of the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Where the device sends to now.
    pub endpoint: Option<SocketAddr>,
    /// When the last handshake completed, on the wall clock, since 1970.
    pub last_handshake: Option<Duration>,
    /// Bytes.
    pub received: u64,
    /// Bytes, handshake messages included.
    pub sent: u64,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

/// The agent of this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentFacts<'a> {
    /// Whether it runs.
    pub running: bool,
    /// When its last pass over the kernel ended, since 1970.
    pub last_pass: Option<Duration>,
    /// Why that pass did not reach the desired state.
    pub trouble: Option<&'a str>,
}

impl Health {
    /// How bad the worst finding is.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }
}

/// Judges a node. The cost is about linear in the number of nodes.
pub fn examine(facts: &Facts<'_>) -> Health {
    let own = Own::of(facts);
    let catching = own.record.map(|record| foreign_rules::find(facts, record)).unwrap_or_default();
    let peers = Judge::new(facts, &own, &catching).peers();
    let mut findings = findings::of_agent(facts, &own);
    findings.extend(findings::of_own(facts, &own));
    findings.extend(findings::of_rules(&own, &catching));
    findings.extend(findings::of_machine(facts, &own, &peers));
    findings.extend(findings::of_clock(facts));
    findings.extend(findings::of_endpoints(facts, &peers));
    findings.extend(findings::of_peers(facts, &peers));
    findings.extend(findings::of_drops(facts));
    findings.extend(findings::of_routes(facts, &own, &peers));
    findings.sort_by_key(|finding| Reverse(finding.severity()));
    Health { verdict: verdict::judge(facts, &own, &peers), peers, findings }
}
