//! The claims of nodes to keys, addresses and CIDRs, decided: who claims what another one has loses that value alone.
//!
//! Who has a record in the store comes before who is only known otherwise, and both before who has vanished. Among
//! equals, the established one keeps what it has in the mesh that was delivered last; nobody can take it away by making
//! a record. Between newcomers the older record decides, then the name, so that all nodes decide alike.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
    net::IpAddr,
};

use ipnet::IpNet;
use wireloom_plan::cluster::Node;
use wireloom_types::PublicKey;

use super::{
    blocks,
    claimant::{Claimant, Rules, Standing},
    hosts,
};

/// What a node claims and does not get, and why; without a reason where that needs no report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lost {
    key: Option<Reason>,
    workloads: BTreeMap<IpNet, Reason>,
    addresses: BTreeMap<IpAddr, Reason>,
    link_addresses: BTreeMap<IpAddr, Reason>,
    tunnel_addresses: BTreeMap<IpAddr, Reason>,
}

type Reason = Option<String>;

impl Lost {
    /// The node without what it lost.
    pub(super) fn without(&self, node: &Node) -> Node {
        let mut node = node.clone();
        if self.key.is_some() {
            node.public_key = None;
        }
        node.workloads.retain(|value| !self.workloads.contains_key(value));
        node.addresses.retain(|value| !self.addresses.contains_key(value));
        node.link_addresses.retain(|value| !self.link_addresses.contains_key(value));
        node.tunnel_addresses.retain(|value| !self.tunnel_addresses.contains_key(value));
        node
    }

    /// What is to be reported, each in a sentence.
    pub(super) fn reasons(&self) -> impl Iterator<Item = &str> {
        let addresses = [&self.addresses, &self.link_addresses, &self.tunnel_addresses];
        let addresses = addresses.into_iter().flat_map(BTreeMap::values);
        self.key.iter().chain(self.workloads.values()).chain(addresses).filter_map(Option::as_deref)
    }
}

/// A kind of addresses of a node.
struct Kind {
    word: &'static str,
    of: fn(&Node) -> &BTreeSet<IpAddr>,
    lost: fn(&mut Lost) -> &mut BTreeMap<IpAddr, Reason>,
}

const KINDS: [Kind; 3] = [
    Kind { word: "address", of: |node| &node.addresses, lost: |lost| &mut lost.addresses },
    Kind { word: "link address", of: |node| &node.link_addresses, lost: |lost| &mut lost.link_addresses },
    Kind {
        word: "tunnel address",
        of: |node| &node.tunnel_addresses,
        lost: |lost| &mut lost.tunnel_addresses,
    },
];

/// What each node loses; nodes that lose nothing are not in it. The names of the claimants are distinct.
pub(super) fn resolve(claimants: &[Claimant<'_>], rules: &Rules<'_>) -> BTreeMap<String, Lost> {
    let mut lost: BTreeMap<String, Lost> = BTreeMap::new();
    keys(claimants, rules, &mut lost);
    for (cidr, loser, what) in hosts::cidrs_around_the_store(claimants, rules) {
        lost_by(&mut lost, loser).workloads.insert(cidr, reason(loser, what));
    }
    for (cidr, loser, what) in hosts::cidrs_around(claimants, rules) {
        lost_by(&mut lost, loser).workloads.insert(cidr, reason(loser, what));
    }
    let rest =
        |name: &str, cidr: &IpNet| lost.get(name).is_none_or(|lost| !lost.workloads.contains_key(cidr));
    for (cidr, loser, what) in blocks::resolve(claimants, rules, rest) {
        lost_by(&mut lost, loser).workloads.insert(cidr, reason(loser, what));
    }
    for kind in &KINDS {
        addresses(kind, claimants, rules, &mut lost);
    }
    addresses_are_no_workloads_of_others(claimants, rules, &mut lost);
    tunnel_addresses_are_workloads(claimants, &mut lost);
    lost
}

fn keys(claimants: &[Claimant<'_>], rules: &Rules<'_>, lost: &mut BTreeMap<String, Lost>) {
    let held = |claimant: &Claimant<'_>, key: &PublicKey| {
        rules.before.nodes.get(claimant.name).is_some_and(|node| node.public_key == Some(*key))
    };
    let is_named = |claimant: &Claimant<'_>, key: &PublicKey| {
        rules.key_claims.get(key).is_some_and(|name| name == claimant.name)
    };
    let comes_first = |a: &Claimant<'_>, b: &Claimant<'_>, key: &PublicKey| {
        (a.standing, !is_named(a, key), a.rank(held(a, key)))
            < (b.standing, !is_named(b, key), b.rank(held(b, key)))
    };
    let wanted = |claimant: &Claimant<'_>| claimant.node.public_key.into_iter().collect::<Vec<_>>();
    for (key, loser, winner) in duplicates(claimants, wanted, comes_first) {
        let what = format!(
            "it has the public key {key} of {:?}, and is taken for a node without a key; give each node a private key \
             of \
             its own",
            winner.name
        );
        lost_by(lost, loser).key = Some(reason(loser, what));
    }
}

fn addresses(kind: &Kind, claimants: &[Claimant<'_>], rules: &Rules<'_>, lost: &mut BTreeMap<String, Lost>) {
    let held = |claimant: &Claimant<'_>, address: &IpAddr| {
        rules.before.nodes.get(claimant.name).is_some_and(|node| (kind.of)(node).contains(address))
    };
    let comes_first = |a: &Claimant<'_>, b: &Claimant<'_>, address: &IpAddr| {
        a.rank(held(a, address)) < b.rank(held(b, address))
    };
    let wanted = |claimant: &Claimant<'_>| (kind.of)(claimant.node).iter().copied().collect::<Vec<_>>();
    for (address, loser, winner) in duplicates(claimants, wanted, comes_first) {
        let what = format!(
            "it claims the {} {address}, which {:?} has; remove it from one of the two",
            kind.word, winner.name
        );
        (kind.lost)(lost_by(lost, loser)).insert(address, reason(loser, what));
    }
}

/// The values that more than one node claims: each with every node that does not get it, and the one that does.
fn duplicates<'a, V: Copy + Eq + Hash>(
    claimants: &[Claimant<'a>],
    values: impl Fn(&Claimant<'a>) -> Vec<V>,
    comes_first: impl Fn(&Claimant<'a>, &Claimant<'a>, &V) -> bool,
) -> Vec<(V, Claimant<'a>, Claimant<'a>)> {
    let mut holders: HashMap<V, Claimant<'a>> = HashMap::with_capacity(claimants.len());
    let mut losers = Vec::new();
    for claimant in claimants {
        for value in values(claimant) {
            match holders.entry(value) {
                Entry::Vacant(vacant) => {
                    vacant.insert(*claimant);
                }
                Entry::Occupied(mut holder) => {
                    let loser = match comes_first(claimant, holder.get(), &value) {
                        true => holder.insert(*claimant),
                        false => *claimant,
                    };
                    losers.push((value, loser));
                }
            }
        }
    }
    losers.into_iter().map(|(value, loser)| (value, loser, holders[&value])).collect()
}

/// A tunnel address must be a workload of its own node, which is checked elsewhere.
fn addresses_are_no_workloads_of_others(
    claimants: &[Claimant<'_>],
    rules: &Rules<'_>,
    lost: &mut BTreeMap<String, Lost>,
) {
    let blocks = hosts::Blocks::new(claimants.iter().flat_map(|claimant| {
        let lost = lost.get(claimant.name);
        let has = move |cidr: &&IpNet| lost.is_none_or(|lost| !lost.workloads.contains_key(*cidr));
        claimant.node.workloads.iter().filter(has).map(|cidr| (*cidr, claimant.name))
    }));
    for kind in &KINDS[..2] {
        for claimant in claimants {
            let before = rules.before.nodes.get(claimant.name);
            for address in (kind.of)(claimant.node) {
                let is_established = before.is_some_and(|node| (kind.of)(node).contains(address));
                let Some((cidr, owner)) = blocks.that_takes(*address, claimant, is_established, rules) else {
                    continue;
                };
                let what = format!(
                    "it claims the {} {address}, which lies inside {cidr}, workloads that {owner:?} has; remove it",
                    kind.word
                );
                let values = (kind.lost)(lost_by(lost, *claimant));
                values.entry(*address).or_insert_with(|| reason(*claimant, what));
            }
        }
    }
}

/// The far end accepts no source that is not one of the node's workload addresses.
fn tunnel_addresses_are_workloads(claimants: &[Claimant<'_>], lost: &mut BTreeMap<String, Lost>) {
    for claimant in claimants {
        for address in &claimant.node.tunnel_addresses {
            let known = lost.get(claimant.name);
            let has = |block: &&IpNet| {
                block.contains(address) && known.is_none_or(|lost| !lost.workloads.contains_key(*block))
            };
            if claimant.node.workloads.iter().any(|block| has(&block)) {
                continue;
            }
            let what = format!(
                "its tunnel address {address} lies in none of its workload CIDRs; choose one of its workload addresses \
                 that no workload has"
            );
            let values = &mut lost_by(lost, *claimant).tunnel_addresses;
            values.entry(*address).or_insert_with(|| reason(*claimant, what));
        }
    }
}

fn lost_by<'a>(lost: &'a mut BTreeMap<String, Lost>, claimant: Claimant<'_>) -> &'a mut Lost {
    lost.entry(claimant.name.to_owned()).or_default()
}

/// A node that has vanished cannot be corrected: that another one takes its place is as it should be.
fn reason(loser: Claimant<'_>, what: String) -> Reason {
    (loser.standing != Standing::Vanished).then_some(what)
}
