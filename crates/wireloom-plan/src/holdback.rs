//! Removals of many nodes at once are held back: a file that lost most of its nodes is more often a mistake than a
//! wish, and to obey it at once would end the encryption of everything that is missing.
//!
//! ```text
//!  snapshot ──▶ Holdback::take ──▶ the mesh to be in force = the snapshot + the nodes held back
//!                                                      │
//!  30 s later ──▶ Holdback::let_go ──▶ without them ◀──┘
//! ```
//!
//! Additions and changes are obeyed at once. Times are durations since any moment, the same for all calls, and must
//! not go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use wireloom_types::PublicKey;

use crate::cluster::{Cluster, Node};

/// How long a removal is held back, and how long one of a file that was obeyed at once still counts.
pub const HOLD: Duration = Duration::from_secs(30);

/// How long a removal that was obeyed at once counts where the source tells changes one by one, and of nodes that
/// vanished only minutes later: an autoscaler may remove many in a minute, and means it.
pub const ONE_BY_ONE: Duration = Duration::from_secs(10);

/// So many peers or more must be missing: in a mesh of three, one of two peers may go at once.
const FEWEST: usize = 3;

/// What went missing lately, and which of it is held back. Starts empty.
#[derive(Debug, Clone)]
pub struct Holdback {
    /// How long a removal that was obeyed at once counts.
    counts: Duration,
    /// The peers that were in force and that the last snapshot lacks, by name.
    missing: BTreeMap<String, Missing>,
    /// When peers came into force that did so lately. They do not count as the mesh of which most is missing, so that
    /// nobody can dilute it first.
    joined: BTreeMap<String, Duration>,
}

#[derive(Debug, Clone)]
struct Missing {
    since: Duration,
    /// The node as it was, while it is held back.
    held: Option<Node>,
}

/// What is held back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The names of the nodes, sorted; at least one.
    pub nodes: Vec<String>,
    /// When the last of them goes.
    pub until: Duration,
}

impl Default for Holdback {
    /// For a file, which is written as a whole.
    fn default() -> Self {
        Self::counting(HOLD)
    }
}

impl Holdback {
    /// A removal that was obeyed at once counts for so long, at most [`HOLD`].
    #[must_use]
    pub fn counting(counts: Duration) -> Self {
        Self { counts, missing: BTreeMap::new(), joined: BTreeMap::new() }
    }

    /// Takes a snapshot of the membership, and returns the mesh that is to be in force: the snapshot and the nodes
    /// whose removal is held back. `in_force` is the mesh until now, as this returned it last or an earlier agent
    /// recorded it, and absent when there is none. `own` is this node's name; it is no peer and never held.
    ///
    /// Removals are held back when more than half of the peers, and at least three, are missing from the snapshot. What
    /// went within the last 30 s (or as [`counting`](Self::counting) says) counts as missing, too, so that steps of
    /// less than half are no way around. A node whose record said `encrypt = false` had said that it goes. A held node
    /// stays as it was, but what another node of the snapshot claims goes to that one.
    #[must_use]
    pub fn take(
        &mut self,
        in_force: Option<&Cluster>,
        snapshot: Cluster,
        own: &str,
        now: Duration,
    ) -> Cluster {
        let rest = in_force.and_then(|in_force| self.let_go(in_force, now));
        let Some(in_force) = rest.as_ref().or(in_force) else { return snapshot };
        self.missing.retain(|name, _| !snapshot.nodes.contains_key(name));
        let gone = in_force
            .nodes
            .iter()
            .filter(|(name, node)| *name != own && node.encrypt && !snapshot.nodes.contains_key(*name));
        for (name, _) in gone {
            self.missing.entry(name.clone()).or_insert(Missing { since: now, held: None });
        }
        let holds = self.too_many_are_missing(in_force, own);
        for (name, missing) in &mut self.missing {
            missing.held = match missing.held.take() {
                Some(as_it_was) if holds => Some(as_it_was),
                None if holds => in_force.nodes.get(name).cloned(),
                _ => None,
            };
        }
        self.note_joined(in_force, &snapshot, now);
        self.with_held(snapshot)
    }

    /// Takes a snapshot as [`take`](Self::take) does, from an operator who means it: nothing is held back.
    pub fn take_as_meant(&mut self, in_force: Option<&Cluster>, snapshot: Cluster, now: Duration) -> Cluster {
        self.missing.clear();
        if let Some(in_force) = in_force {
            self.note_joined(in_force, &snapshot, now);
        }
        snapshot
    }

    /// The mesh without the nodes that have been held back for 30 s; `None` when there are none.
    #[must_use]
    pub fn let_go(&mut self, in_force: &Cluster, now: Duration) -> Option<Cluster> {
        let due: Vec<String> = self
            .held_nodes()
            .filter(|(_, since)| *since + HOLD <= now)
            .map(|(name, _)| name.into())
            .collect();
        self.forget(now);
        if due.is_empty() {
            return None;
        }
        let mut rest = in_force.clone();
        due.iter().for_each(|name| drop(rest.nodes.remove(name)));
        Some(rest)
    }

    /// What is held back; `None` when nothing is.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        let last = self.held_nodes().map(|(_, since)| since).max()?;
        let nodes = self.held_nodes().map(|(name, _)| name.to_owned()).collect();
        Some(Held { nodes, until: last + HOLD })
    }

    /// When [`let_go`](Self::let_go) has something to do.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        self.held_nodes().map(|(_, since)| since + HOLD).min()
    }

    fn held_nodes(&self) -> impl Iterator<Item = (&str, Duration)> {
        let held = self.missing.iter().filter(|(_, missing)| missing.held.is_some());
        held.map(|(name, missing)| (name.as_str(), missing.since))
    }

    fn note_joined(&mut self, in_force: &Cluster, snapshot: &Cluster, now: Duration) {
        let added = snapshot.nodes.keys().filter(|name| !in_force.nodes.contains_key(*name));
        self.joined.extend(added.map(|name| (name.clone(), now)));
    }

    /// Forgets what does not count any more.
    fn forget(&mut self, now: Duration) {
        let counts = self.counts;
        self.missing.retain(|_, missing| {
            let lasts = if missing.held.is_some() { HOLD } else { counts };
            missing.since + lasts > now
        });
        self.joined.retain(|_, time| *time + HOLD > now);
    }

    /// Counts against the peers that were in force when the first of the missing ones went missing.
    fn too_many_are_missing(&self, in_force: &Cluster, own: &str) -> bool {
        let Some(first) = self.missing.values().map(|missing| missing.since).min() else { return false };
        let had_joined = |name: &String| self.joined.get(name).is_none_or(|time| *time < first);
        let present = in_force.nodes.keys().filter(|name| *name != own && !self.missing.contains_key(*name));
        let missing = self.missing.len();
        missing >= FEWEST && missing > present.filter(|name| had_joined(name)).count()
    }

    /// Adds the held nodes to a snapshot, without what its nodes claim.
    fn with_held(&self, mut snapshot: Cluster) -> Cluster {
        let held = |(name, missing): (&String, &Missing)| Some((name.clone(), missing.held.clone()?));
        let mut held: BTreeMap<String, Node> = self.missing.iter().filter_map(held).collect();
        if held.is_empty() {
            return snapshot;
        }
        let claims = Claims::of(&snapshot);
        held.values_mut().for_each(|node| claims.take_from(node));
        snapshot.nodes.append(&mut held);
        snapshot
    }
}

/// Everything that only one node can have, of all nodes of a mesh.
#[derive(Default)]
struct Claims {
    keys: BTreeSet<PublicKey>,
    workloads: BTreeSet<IpNet>,
    addresses: BTreeSet<IpAddr>,
}

impl Claims {
    fn of(cluster: &Cluster) -> Self {
        let mut claims = Self::default();
        for node in cluster.nodes.values() {
            claims.keys.extend(node.public_key);
            claims.workloads.extend(&node.workloads);
            let addresses = node.addresses.iter().chain(&node.link_addresses).chain(&node.tunnel_addresses);
            claims.addresses.extend(addresses);
        }
        claims
    }

    /// Removes all of this from a node.
    fn take_from(&self, node: &mut Node) {
        node.public_key = node.public_key.filter(|key| !self.keys.contains(key));
        node.workloads.retain(|workload| !self.workloads.contains(workload));
        node.addresses.retain(|address| !self.addresses.contains(address));
        node.link_addresses.retain(|address| !self.addresses.contains(address));
        node.tunnel_addresses.retain(|address| !self.addresses.contains(address));
    }
}
