//! From which nodes this node has a proof that they encrypt with it, for how long, and what follows.
//!
//! Until a node is proven, its workloads are treated like those of a node without a key. From the proof on they are
//! encrypted or refused, for good, as HSTS does it for sites. The proof belongs to the node's *name*: it survives
//! restarts, a new key, a record without a key, and another node that claims the same key. Only two ways lead back: the
//! node's record (or this node's own) says `encrypt = false`, or the node leaves the mesh.
//!
//! ```text
//!  membership ──Cluster──▶ Proofs::set_cluster ──Cluster with what was given up lately──▶ planner
//!  device ──handshakes──▶ Proofs::look ──▶ Proofs::standings ──────────────────────────▶ planner
//!                                      ├─▶ Proofs::memory ──▶ the state directory, before the planner sees it
//!                                      ├─▶ Proofs::to_ask ──▶ Asking ──▶ device
//!                                      └─▶ Proofs::accounts ──▶ people
//!  guard ──counters──▶ OneSided ──who has not proved us──▶ people
//! ```
//!
//! Times are durations since 1970 on a clock that goes on while the agent is not running. If it is set back, what began
//! in the future counts as having begun now.

mod account;
mod asking;
mod given_up;
mod one_sided;
mod proof;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use wireloom_types::PublicKey;

pub(crate) use self::asking::scatter;
pub use self::{
    account::{Account, Because, Preconditions},
    asking::{Asking, Candidate},
    given_up::GIVEN_UP,
    one_sided::{OneSided, RECENT},
    proof::{Memory, PATIENCE, Proof},
};
use crate::{
    cluster::{Cluster, Node},
    standing::{Standing, Standings},
};

/// The state machine. It does nothing before the first cluster.
#[derive(Debug, Clone)]
pub struct Proofs {
    /// This node's name.
    node: String,
    /// The public half of the device's private key.
    own_key: PublicKey,
    memory: Memory,
    /// As the membership has it.
    cluster: Option<Cluster>,
    /// The nodes other than this one, by the key that their records have.
    claimants: BTreeMap<PublicKey, Vec<String>>,
    /// Since when each node without a proof is waited for.
    awaited: BTreeMap<String, Duration>,
}

impl Proofs {
    /// Starts from what an earlier agent remembered. `node` is this node's name, `own_key` the public half of the
    /// device's private key.
    pub fn new(node: String, own_key: PublicKey, memory: Memory) -> Self {
        Self { node, own_key, memory, cluster: None, claimants: BTreeMap::new(), awaited: BTreeMap::new() }
    }

    /// Changes this node's name and key.
    pub fn set_identity(&mut self, node: &str, own_key: PublicKey, now: Duration) {
        self.own_key = own_key;
        if self.node != node {
            node.clone_into(&mut self.node);
            if let Some(cluster) = self.cluster.take() {
                self.set_cluster(cluster, now);
            }
        }
    }

    /// Takes the mesh as the membership has it, and returns it as the planner must see it: what a proven node gave up
    /// lately is still in its record ([`GIVEN_UP`]).
    pub fn set_cluster(&mut self, cluster: Cluster, now: Duration) -> Cluster {
        self.claimants.clear();
        for (name, node) in cluster.nodes.iter().filter(|(name, _)| **name != self.node) {
            if let Some(key) = node.public_key {
                self.claimants.entry(key).or_default().push(name.clone());
            }
        }
        self.awaited.retain(|name, _| cluster.nodes.contains_key(name));
        for name in cluster.nodes.keys() {
            self.awaited.entry(name.clone()).or_insert(now);
        }
        self.cluster = Some(cluster);
        self.go_on(now);
        self.with_given_up(now).unwrap_or_default()
    }

    /// Takes what the device shows, the keys with which there has been a handshake, and lets time pass. Returns the
    /// mesh as the planner must see it, if that is another one now.
    pub fn look(&mut self, handshakes: &BTreeSet<PublicKey>, now: Duration) -> Option<Cluster> {
        self.note_proofs(handshakes, now);
        let released = self.go_on(now);
        if released { self.with_given_up(now) } else { None }
    }

    /// The mesh as the membership has it.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// What is to outlive this process. It must be safe before the planner gets the [`Standings`] that follow from it.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where this node stands with the others.
    pub fn standings(&self) -> Standings {
        let others = self.memory.nodes.iter().filter(|(name, _)| **name != self.node);
        others.map(|(name, proof)| (name.clone(), proof.standing())).collect()
    }

    /// How long until something changes by itself; `None` when nothing does.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        self.memory.nodes.values().filter_map(Proof::next_change).min().map(|time| time.saturating_sub(now))
    }

    fn note_proofs(&mut self, handshakes: &BTreeSet<PublicKey>, now: Duration) {
        let Some(cluster) = &self.cluster else { return };
        let proving: Vec<(String, PublicKey)> = self
            .provable()
            .filter(|(_, _, key)| handshakes.contains(key))
            .map(|(name, _, key)| (name.to_owned(), key))
            .collect();
        for (name, key) in proving {
            let Some(node) = cluster.nodes.get(&name) else { continue };
            // Whoever had it has another key in its record now, and gets that one's place.
            for (other, proof) in &mut self.memory.nodes {
                if let Some(new) = cluster.nodes.get(other).and_then(|node| node.public_key)
                    && proof.key == key
                {
                    proof.key = new;
                }
            }
            self.memory.nodes.entry(name).or_insert_with(|| Proof::new(key, node, now)).key = key;
        }
    }

    /// The nodes that a handshake with the key of their record would prove: those that are unproven, or proven with
    /// another key.
    fn provable(&self) -> impl Iterator<Item = (&str, &Node, PublicKey)> {
        let nodes = self.cluster.iter().flat_map(|cluster| &cluster.nodes);
        let has_it = |name: &str, key| self.memory.nodes.get(name).is_some_and(|proof| proof.key == key);
        let kept = self.keys_of_keyless();
        nodes.filter_map(move |(name, node)| {
            let key = node.public_key.filter(|key| !has_it(name, *key))?;
            self.obstacle(name, node, &kept).is_none().then_some((name.as_str(), node, key))
        })
    }

    /// The keys of proven nodes whose records lack a key at the moment. Nobody else can have them.
    fn keys_of_keyless(&self) -> BTreeMap<PublicKey, &str> {
        let keyless = |name: &String| {
            let record = self.cluster.as_ref().and_then(|cluster| cluster.nodes.get(name));
            record.is_some_and(|node| node.public_key.is_none())
        };
        let nodes = self.memory.nodes.iter().filter(|(name, _)| keyless(name));
        nodes.map(|(name, proof)| (proof.key, name.as_str())).collect()
    }

    /// Why the key in a node's record can prove nothing. `kept` are the [`Self::keys_of_keyless`].
    fn obstacle(&self, name: &str, node: &Node, kept: &BTreeMap<PublicKey, &str>) -> Option<Because> {
        let cluster = self.cluster.as_ref()?;
        let own = cluster.nodes.get(&self.node);
        let Some(key) = node.public_key else { return Some(Because::NoKey) };
        if name == self.node || key == self.own_key || own.is_some_and(|own| own.public_key == Some(key)) {
            return Some(Because::OwnKey);
        }
        if !node.encrypt {
            return Some(Because::ItDoesNotEncrypt);
        }
        if own.is_some_and(|own| !own.encrypt) {
            return Some(Because::WeDoNotEncrypt);
        }
        let claimants = self.claimants.get(&key).into_iter().flatten().map(String::as_str);
        let others = claimants.chain(kept.get(&key).copied()).filter(|other| *other != name);
        let others: Vec<_> = others.map(str::to_owned).collect();
        (!others.is_empty()).then_some(Because::SharedKey { with: others })
    }

    /// Lets time pass and flags of the records take effect. Returns whether something that was given up is released.
    fn go_on(&mut self, now: Duration) -> bool {
        let Some(cluster) = &self.cluster else { return false };
        // Without our own record there is no plan at all.
        let Some(own) = cluster.nodes.get(&self.node) else { return false };
        let mut released = false;
        self.memory.nodes.retain(|name, proof| {
            proof.tolerate(now);
            let lasts = match cluster.nodes.get(name) {
                Some(node) => proof.set_encrypt(node.encrypt && own.encrypt, now),
                None => own.encrypt || proof.set_encrypt(false, now),
            };
            released |= proof.releases(now);
            let kept = lasts && proof.go_on(now);
            if !kept {
                self.awaited.insert(name.clone(), now);
            }
            kept
        });
        released
    }
}
