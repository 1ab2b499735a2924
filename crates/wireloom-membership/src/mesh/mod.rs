//! The mesh that the records of a store describe, kept up to date one record at a time: pure, the time is an argument.
//!
//! ```text
//!  records ──parse──▶ members ──claims──▶ what each loses ──▶ Cluster
//!                        │                      │
//!   a bad one: its last good version      the newcomer's value
//!   a vanished one: 10 minutes            alone, reported
//! ```
//!
//! No record takes the mesh down: a bad one is left out and reported, or stays as it was when it was good. Of two that
//! claim the same key, address or CIDR, one keeps it ([`claims`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use wireloom_plan::cluster::{Cluster, Node};
use wireloom_types::PublicKey;

use self::{
    claimant::{Claimant, Rules, Standing},
    claims::Lost,
};
use crate::{
    Complaint,
    record::{self, Name},
    store::Object,
};

mod blocks;
mod claimant;
mod claims;
mod hosts;
#[cfg(test)]
mod tests;

/// How long a record that vanished stays in force: long enough to restore a store from a backup, or to notice that
/// somebody deleted what he should not have.
pub(crate) const GRACE: Duration = Duration::from_secs(600);

/// All nodes and pools, and what was delivered of them last.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    members: BTreeMap<String, Member>,
    guests: BTreeMap<String, Node>,
    /// When each pool vanished, if it did.
    pools: BTreeMap<IpNet, Option<Instant>>,
    /// The pools that an earlier agent recorded, until the first whole mesh is delivered.
    recorded_pools: BTreeSet<IpNet>,
    /// The node that the store says to have claimed a key first.
    key_claims: BTreeMap<PublicKey, String>,
    /// The addresses of the store's own machines.
    protected: BTreeSet<IpAddr>,
    borrowing: bool,
    /// Why records are bad.
    bad: BTreeMap<Name, String>,
    delivered: Cluster,
    /// What nodes have lost to others in `delivered`.
    lost: BTreeMap<String, Lost>,
    /// The nodes that may be other ones than in `delivered`.
    changed: BTreeSet<String>,
    /// Whether claims may be decided otherwise than in `delivered`.
    is_stale: bool,
}

/// A node by its last good record.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    node: Node,
    born: u64,
    presence: Presence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// An earlier agent recorded it. Nothing is known of its record yet.
    Recorded,
    /// Its record is in the store.
    Present,
    /// Its record vanished at this time.
    Vanished(Instant),
}

impl Mesh {
    /// The mesh as an earlier agent recorded it, as far as it did. What the store has to say replaces it.
    pub(crate) fn new(recorded: Option<Cluster>) -> Self {
        let delivered = recorded.unwrap_or_default();
        let member =
            |node: &Node| Member { node: node.clone(), born: u64::MAX, presence: Presence::Recorded };
        Self {
            members: delivered.nodes.iter().map(|(name, node)| (name.clone(), member(node))).collect(),
            changed: delivered.nodes.keys().cloned().collect(),
            recorded_pools: delivered.pools.clone(),
            delivered,
            is_stale: true,
            ..Self::default()
        }
    }

    /// All records, by the names of the nodes. Nodes that have none have vanished.
    pub(crate) fn records(&mut self, objects: BTreeMap<String, Object>, now: Instant) {
        self.bad.clear();
        let absent: Vec<String> =
            self.members.keys().filter(|name| !objects.contains_key(*name)).cloned().collect();
        for name in absent {
            self.vanish(&name, now);
        }
        for (name, object) in objects {
            self.present(&name, &object);
        }
    }

    /// The record of a node is new or another one; `None`: it is gone.
    pub(crate) fn record(&mut self, name: &str, object: Option<&Object>, now: Instant) {
        match object {
            Some(object) => self.present(name, object),
            None => {
                self.bad.remove(&Name::of(name));
                self.vanish(name, now);
            }
        }
    }

    fn present(&mut self, name: &str, object: &Object) {
        match record::check_name(name).and_then(|()| record::read(&object.value)) {
            Ok(node) => {
                self.bad.remove(&Name::of(name));
                let member = Member { node, born: object.born, presence: Presence::Present };
                if self.members.get(name) == Some(&member) {
                    return;
                }
                self.members.insert(name.to_owned(), member);
            }
            Err(why) => {
                let member = self.members.get_mut(name);
                let instead = match member.is_some() {
                    true => "its last good version stays in force",
                    false => "the node is left out",
                };
                self.bad.insert(Name::of(name), format!("{why}; {instead}"));
                let Some(member) = member else { return };
                member.presence = Presence::Present;
            }
        }
        self.touch(name);
    }

    fn vanish(&mut self, name: &str, now: Instant) {
        let Some(member) = self.members.get_mut(name) else { return };
        if !member.node.encrypt {
            // It has left: a node that is to leave says so first.
            self.members.remove(name);
        } else if !matches!(member.presence, Presence::Vanished(_)) {
            member.presence = Presence::Vanished(now);
        }
        self.touch(name);
    }

    fn touch(&mut self, name: &str) {
        self.changed.insert(name.to_owned());
        self.is_stale = true;
    }

    /// All nodes that are known otherwise than by a record. Each is in force as long as there is no record of its name.
    pub(crate) fn guests(&mut self, guests: BTreeMap<String, Node>) {
        if self.guests != guests {
            self.changed.extend(self.guests.keys().chain(guests.keys()).cloned());
            self.guests = guests;
            self.is_stale = true;
        }
    }

    /// All pools. Those that are missing have vanished.
    pub(crate) fn pools(&mut self, pools: &BTreeSet<IpNet>, now: Instant) {
        for (pool, vanished) in &mut self.pools {
            *vanished = if pools.contains(pool) { None } else { vanished.or(Some(now)) };
        }
        let before = self.pools.len();
        self.pools.extend(pools.iter().map(|pool| (*pool, None)));
        self.is_stale |= self.pools.len() != before;
    }

    /// All pools, by this node's own settings: what an earlier agent recorded does not count.
    pub(crate) fn declare_pools(&mut self, pools: &BTreeSet<IpNet>, now: Instant) {
        self.recorded_pools.clear();
        self.pools(pools, now);
    }

    /// The nodes that claimed keys first, as the store says.
    pub(crate) fn key_claims(&mut self, claims: BTreeMap<PublicKey, String>) {
        self.is_stale |= self.key_claims != claims;
        self.key_claims = claims;
    }

    /// Whether a single address may lie inside another node's block, if it is in a pool.
    pub(crate) fn allow_borrowing(&mut self, allowed: bool) {
        self.is_stale |= self.borrowing != allowed;
        self.borrowing = allowed;
    }

    /// The addresses of the store's own machines. No new workload CIDR that holds one of them outside of pools comes
    /// into force: what is sent there would no longer reach the store, and nobody would hear that the CIDR is taken
    /// back.
    pub(crate) fn protect(&mut self, addresses: BTreeSet<IpAddr>) {
        self.is_stale |= self.protected != addresses;
        self.protected = addresses;
    }

    /// When the next of what vanished is no longer in force.
    pub(crate) fn expires(&self) -> Option<Instant> {
        let nodes = self.members.values().filter_map(|member| match member.presence {
            Presence::Vanished(since) => Some(since),
            Presence::Recorded | Presence::Present => None,
        });
        nodes.chain(self.pools.values().copied().flatten()).min().map(|since| since + GRACE)
    }

    /// Brings the mesh up to date, and returns it if it is another one than was returned last.
    pub(crate) fn deliver(&mut self, now: Instant) -> Option<&Cluster> {
        // Whatever says pools has said them. Those that are missing have vanished meanwhile.
        for pool in std::mem::take(&mut self.recorded_pools) {
            self.pools.entry(pool).or_insert(Some(now));
        }
        self.expire(now);
        if !std::mem::take(&mut self.is_stale) {
            return None;
        }
        let pools: BTreeSet<IpNet> = self.pools.keys().copied().collect();
        let lost = claims::resolve(
            &self.claimants(),
            &Rules {
                before: &self.delivered,
                pools: &pools,
                key_claims: &self.key_claims,
                protected: &self.protected,
                borrowing: self.borrowing,
            },
        );
        let mut changed = std::mem::take(&mut self.changed);
        let differs = |name: &&String| self.lost.get(*name) != lost.get(*name);
        changed.extend(self.lost.keys().chain(lost.keys()).filter(differs).cloned());
        self.lost = lost;
        let mut is_another = self.delivered.pools != pools || self.delivered.preshared_key_file.is_some();
        self.delivered.pools = pools;
        self.delivered.preshared_key_file = None;
        for name in changed {
            let node = self.effective(&name).map(|node| match self.lost.get(&name) {
                Some(lost) => lost.without(node),
                None => node.clone(),
            });
            if self.delivered.nodes.get(&name) != node.as_ref() {
                is_another = true;
                match node {
                    Some(node) => self.delivered.nodes.insert(name, node),
                    None => self.delivered.nodes.remove(&name),
                };
            }
        }
        is_another.then_some(&self.delivered)
    }

    /// The mesh as it was brought up to date last; before that, as it was recorded.
    pub(crate) fn delivered(&self) -> &Cluster {
        &self.delivered
    }

    /// What is left out of the mesh as it was brought up to date last.
    pub(crate) fn complaints(&self) -> BTreeSet<Complaint> {
        let bad =
            self.bad.iter().map(|(name, why)| Complaint { record: name.to_string(), what: why.clone() });
        let lost = self.lost.iter().flat_map(|(name, lost)| {
            lost.reasons().map(|what| Complaint { record: name.clone(), what: what.to_owned() })
        });
        bad.chain(lost).collect()
    }

    fn expire(&mut self, now: Instant) {
        let is_over = |since: Instant| since + GRACE <= now;
        let gone = |member: &Member| matches!(member.presence, Presence::Vanished(since) if is_over(since));
        let names: Vec<String> =
            self.members.iter().filter(|(_, member)| gone(member)).map(|(name, _)| name.clone()).collect();
        for name in names {
            self.members.remove(&name);
            self.touch(&name);
        }
        let before = self.pools.len();
        self.pools.retain(|_, vanished| !vanished.is_some_and(is_over));
        self.is_stale |= self.pools.len() != before;
    }

    /// The node of this name as its record, or what else is known of it, has it.
    fn effective(&self, name: &str) -> Option<&Node> {
        let guest = self.guests.get(name);
        match self.members.get(name) {
            Some(Member { presence: Presence::Vanished(_), node, .. }) => guest.or(Some(node)),
            Some(member) => Some(&member.node),
            None => guest,
        }
    }

    fn claimants(&self) -> Vec<Claimant<'_>> {
        let members = self.members.iter().filter_map(|(name, member)| {
            let standing = match member.presence {
                Presence::Vanished(_) if self.guests.contains_key(name) => return None,
                Presence::Vanished(_) => Standing::Vanished,
                Presence::Recorded | Presence::Present => Standing::Present,
            };
            Some(Claimant { name, node: &member.node, standing, born: member.born })
        });
        let is_guest =
            |name: &str| self.members.get(name).is_none_or(|it| matches!(it.presence, Presence::Vanished(_)));
        let guests = self.guests.iter().filter(|(name, _)| is_guest(name));
        let guests =
            guests.map(|(name, node)| Claimant { name, node, standing: Standing::Guest, born: u64::MAX });
        members.chain(guests).collect()
    }
}
