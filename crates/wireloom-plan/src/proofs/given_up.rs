//! What proven nodes gave up lately: it stays in their records, so that it stays refused until everybody has heard of
//! the change.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;

use super::{Proof, Proofs};
use crate::cluster::{Cluster, Node};

/// How long what a proven node gave up stays refused, unless another node claims it: packets for it may be under way
/// or be sent by nodes that have not heard of the change.
pub const GIVEN_UP: Duration = Duration::from_secs(60);

impl Proofs {
    /// Compares the records with those before, and returns the mesh with what was given up lately.
    pub(super) fn with_given_up(&mut self, now: Duration) -> Option<Cluster> {
        let mut effective = self.cluster.clone()?;
        if !effective.nodes.contains_key(&self.node) {
            // There is no plan then.
            return Some(effective);
        }
        for (name, proof) in &mut self.memory.nodes {
            let none = BTreeSet::new();
            let record = effective.nodes.get(name);
            let workloads = record.map_or(&none, |node| &node.workloads);
            // A node that does not encrypt gives up nothing that was encrypted.
            if proof.ending.is_none() {
                for lost in proof.workloads.difference(workloads) {
                    proof.given_up.entry(*lost).or_insert(now);
                }
            }
            if proof.workloads != *workloads {
                proof.workloads.clone_from(workloads);
            }
            match record {
                Some(node) => {
                    proof.left = None;
                    if proof.addresses != node.addresses {
                        proof.addresses.clone_from(&node.addresses);
                    }
                }
                None if proof.left.is_none() => proof.left = Some(now),
                None => {}
            }
        }
        self.release(&effective, now);

        for (name, proof) in &self.memory.nodes {
            if proof.left.is_some() {
                let node = Node {
                    addresses: proof.addresses.clone(),
                    workloads: proof.given_up.keys().copied().collect(),
                    ..Node::default()
                };
                effective.nodes.insert(name.clone(), node);
            } else if let Some(node) = effective.nodes.get_mut(name) {
                node.workloads.extend(proof.given_up.keys());
            }
        }
        Some(effective)
    }

    /// Forgets what was claimed by others, or given up long ago.
    fn release(&mut self, cluster: &Cluster, now: Duration) {
        let nobody = |proof: &Proof| proof.given_up.is_empty() && proof.left.is_none();
        if self.memory.nodes.values().all(nobody) {
            return;
        }
        let claims = cluster.nodes.values().flat_map(|node| node.workloads.iter().copied()).collect();
        let addresses: BTreeSet<_> = cluster.nodes.values().flat_map(|node| &node.addresses).collect();
        self.memory.nodes.retain(|_, proof| {
            proof
                .given_up
                .retain(|block, since| now < since.saturating_add(GIVEN_UP) && !is_claimed(&claims, *block));
            if proof.left.is_some() {
                proof.addresses.retain(|address| !addresses.contains(address));
            }
            let left_nothing = proof.given_up.is_empty() && proof.addresses.is_empty();
            // Leaving without `encrypt` leaves nothing to refuse.
            proof.left.is_none() || !(left_nothing || proof.ending.is_some())
        });
    }
}

/// Whether a node claims the block, or one around it. A claim inside it wins by its longer prefix anyway.
fn is_claimed(claims: &BTreeSet<IpNet>, block: IpNet) -> bool {
    let mut wider = Some(block);
    while let Some(prefix) = wider {
        if claims.contains(&prefix) {
            return true;
        }
        wider = prefix.supernet();
    }
    false
}
