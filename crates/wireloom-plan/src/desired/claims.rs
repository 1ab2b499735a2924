//! Who claims what: the nodes of the cluster by key, by link address and by prefix.

use std::collections::{BTreeMap, btree_map};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PeerLookup, PublicKey};

use super::{
    Host, View,
    member::{Identity, Member},
    neighbours,
};
use crate::{
    cluster::{Cluster, Node},
    routing::Family,
    settings::Settings,
};

/// The claims of all nodes. Claimants are sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    keys: BTreeMap<PublicKey, Vec<String>>,
    /// Nodes and their keys by link address; empty except in link mode.
    link_addresses: BTreeMap<LinkAddress, Vec<(String, PublicKey)>>,
    /// The link address of each key: looking it up is cheaper than hashing the key again.
    link_address_of: BTreeMap<PublicKey, LinkAddress>,
    prefixes: BTreeMap<IpNet, Vec<String>>,
    /// The number of claimed prefixes of each length. A mesh uses few lengths.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl Index {
    pub(crate) fn of(cluster: &Cluster, settings: &Settings, host: &Host) -> Self {
        let mut index = Self::default();
        // The device has the key of the key file, whatever the membership says.
        index.insert_key(host.public_key, &settings.node, settings);
        for (name, node) in &cluster.nodes {
            index.insert(name, node, settings);
        }
        index
    }

    fn insert(&mut self, name: &str, node: &Node, settings: &Settings) {
        if let Some(key) = node.public_key {
            self.insert_key(key, name, settings);
        }
        for prefix in prefixes(node, settings) {
            if claim(&mut self.prefixes, prefix, name) {
                *self.lengths.entry(length(prefix)).or_default() += 1;
            }
        }
    }

    fn insert_key(&mut self, key: PublicKey, name: &str, settings: &Settings) {
        claim(&mut self.keys, key, name);
        if settings.peer_lookup == PeerLookup::Gateway {
            let link_address = *self.link_address_of.entry(key).or_insert_with(|| LinkAddress::of(key));
            let holders = self.link_addresses.entry(link_address).or_default();
            let holder = (name.to_owned(), key);
            if let Err(place) = holders.binary_search(&holder) {
                holders.insert(place, holder);
            }
        }
    }

    /// Replaces the claims of a node other than our own.
    pub(crate) fn replace(&mut self, name: &str, [old, new]: [Option<&Node>; 2], settings: &Settings) {
        if let Some(old) = old {
            self.remove(name, old, settings);
        }
        if let Some(new) = new {
            self.insert(name, new, settings);
        }
    }

    fn remove(&mut self, name: &str, node: &Node, settings: &Settings) {
        if let Some(key) = node.public_key {
            withdraw(&mut self.keys, &key, name);
            if let Some(link_address) = self.link_address_of.get(&key)
                && let Some(holders) = self.link_addresses.get_mut(link_address)
            {
                holders.retain(|(other, _)| other != name);
                if holders.is_empty() {
                    self.link_addresses.remove(link_address);
                }
            }
            if !self.keys.contains_key(&key) {
                self.link_address_of.remove(&key);
            }
        }
        for prefix in prefixes(node, settings) {
            if withdraw(&mut self.prefixes, &prefix, name)
                && let Some(count) = self.lengths.get_mut(&length(prefix))
            {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length(prefix));
                }
            }
        }
    }

    /// The nodes that claim the key.
    pub(super) fn holders(&self, key: PublicKey) -> &[String] {
        self.keys.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The nodes whose keys hash to the link address, and those keys.
    pub(super) fn link_address_holders(&self, link_address: LinkAddress) -> &[(String, PublicKey)] {
        self.link_addresses.get(&link_address).map_or(&[], Vec::as_slice)
    }

    /// The link addresses to which more than one claimed key hashes.
    pub(super) fn shared_link_addresses(&self) -> impl Iterator<Item = LinkAddress> {
        self.link_addresses
            .iter()
            .filter(|(_, holders)| holders.len() > 1)
            .map(|(link_address, _)| *link_address)
    }

    /// The nodes that claim exactly this prefix.
    pub(super) fn claimants(&self, prefix: IpNet) -> &[String] {
        self.prefixes.get(&prefix).map_or(&[], Vec::as_slice)
    }

    pub(super) fn shared_keys(&self) -> impl Iterator<Item = PublicKey> {
        self.keys.iter().filter(|(_, nodes)| nodes.len() > 1).map(|(key, _)| *key)
    }

    /// The claim of exactly this prefix, if somebody claims it.
    pub(super) fn claim(&self, prefix: IpNet) -> Option<Claim<'_>> {
        let mut after = self.prefixes.range(prefix..);
        let (_, claimants) = after.next().filter(|(first, _)| **first == prefix)?;
        Some(Claim { prefix, claimants, after })
    }

    /// The claimed prefixes that contain this one, the narrowest first.
    pub(super) fn around(&self, prefix: IpNet) -> impl Iterator<Item = IpNet> {
        let (family, length) = length(prefix);
        let wider = self.lengths.range((family, 0)..(family, length)).rev();
        wider
            .filter_map(move |((_, length), _)| Some(IpNet::new(prefix.addr(), *length).ok()?.trunc()))
            .filter(|wider| self.prefixes.contains_key(wider))
    }
}

/// A prefix that somebody claims.
#[derive(Clone)]
pub(super) struct Claim<'a> {
    pub(super) prefix: IpNet,
    /// Sorted by name.
    pub(super) claimants: &'a [String],
    /// The claims after this one.
    after: btree_map::Range<'a, IpNet, Vec<String>>,
}

impl<'a> Claim<'a> {
    /// The claimed prefixes inside this one, and their claimants.
    pub(super) fn inside(&self) -> impl Iterator<Item = (IpNet, &'a [String])> + use<'a> {
        // `IpNet` orders by network address, then by length: a prefix comes before all that it contains, with
        // nothing else in between.
        let prefix = self.prefix;
        let inside = self.after.clone().take_while(move |(inner, _)| prefix.contains(*inner));
        inside.map(|(inner, nodes)| (*inner, nodes.as_slice()))
    }
}

/// The prefixes that a node claims.
pub(super) fn prefixes(node: &Node, settings: &Settings) -> impl Iterator<Item = IpNet> {
    let addresses = settings.encrypt_host_traffic.then_some(&node.addresses).into_iter().flatten();
    let addresses = addresses.map(|address| IpNet::from(*address));
    let on_the_link = neighbours::declared(node, settings).map(IpNet::from);
    // An address may be a workload too; one claim suffices.
    let addresses = addresses.chain(on_the_link).filter(|prefix| !node.workloads.contains(prefix));
    node.workloads.iter().copied().chain(addresses)
}

fn length(prefix: IpNet) -> (Family, u8) {
    (Family::of(prefix.addr()), prefix.prefix_len())
}

/// Adds a claim; true if it is the first one of its key.
fn claim<K: Ord>(claims: &mut BTreeMap<K, Vec<String>>, key: K, name: &str) -> bool {
    let names = claims.entry(key).or_default();
    if let Err(place) = names.binary_search_by(|other| other.as_str().cmp(name)) {
        names.insert(place, name.to_owned());
        return names.len() == 1;
    }
    false
}

/// Removes a claim; true if it was the last one of its key.
fn withdraw<K: Ord>(claims: &mut BTreeMap<K, Vec<String>>, key: &K, name: &str) -> bool {
    let Some(names) = claims.get_mut(key) else { return false };
    names.retain(|other| other != name);
    let last = names.is_empty();
    if last {
        claims.remove(key);
    }
    last
}

impl<'a> View<'a> {
    /// The node that gets the prefix.
    pub(super) fn owner(&self, prefix: IpNet) -> Option<&'a str> {
        self.first(self.index.claimants(prefix))
    }

    /// The claimant that gets the prefix: this node, because its workloads are really here; otherwise the
    /// first by name, so that all nodes decide alike.
    pub(super) fn first(&self, claimants: &'a [String]) -> Option<&'a str> {
        claimants.iter().find(|name| self.is_own(name)).or(claimants.first()).map(String::as_str)
    }

    /// The prefixes that this node claims and gets.
    pub(super) fn owned(&self, member: &Member<'a>) -> impl Iterator<Item = Claim<'a>> {
        let claims = prefixes(member.node, self.settings).filter_map(|prefix| self.index.claim(prefix));
        claims.filter(|claim| self.first(claim.claimants) == Some(member.name))
    }

    /// The nodes that claim the key.
    pub(crate) fn holders(&self, key: PublicKey) -> impl Iterator<Item = &Node> {
        self.index.holders(key).iter().filter_map(|name| self.cluster.nodes.get(name))
    }

    /// The nodes that claim exactly this prefix.
    pub(crate) fn claimants(&self, prefix: IpNet) -> impl Iterator<Item = &Node> {
        self.index.claimants(prefix).iter().filter_map(|name| self.cluster.nodes.get(name))
    }

    /// The prefixes that this node claims.
    pub(crate) fn claimed(&self, node: &Node) -> impl Iterator<Item = IpNet> {
        prefixes(node, self.settings)
    }

    /// The identity of the peer with this name and key, if it is the rightful holder of the key and we are that of
    /// ours.
    pub(super) fn identity(&self, name: &str, key: PublicKey) -> Option<Identity> {
        // After `encrypt = false`, the peer stays until both sides are direct.
        let both = || self.own.encrypt && self.cluster.nodes.get(name).is_some_and(|node| node.encrypt);
        let wanted = self.standings.contains_key(name) || both();
        let usable = wanted && self.can_encrypt() && self.rightful_holder(key) == Some(name);
        usable.then(|| Identity { key, link_address: self.in_link_mode().then(|| self.link_address_of(key)) })
    }

    /// Of the nodes that claim the key, the one that has it: the only one, or the one that proved it (for the key in
    /// our key file, we did). `None` without such a node, and when another key hashes to the same link address.
    pub(super) fn rightful_holder(&self, key: PublicKey) -> Option<&'a str> {
        if self.in_link_mode() {
            let holders = self.index.link_address_holders(self.link_address_of(key));
            if holders.iter().any(|(_, other)| *other != key) {
                return None;
            }
        }
        let has_proved =
            |name: &&String| self.standings.get(*name).is_some_and(|standing| standing.key == key);
        match self.index.holders(key) {
            [only] => Some(only),
            several if key == self.host.public_key => several.iter().find(|name| self.is_own(name)),
            several => {
                let mut proved = several.iter().filter(has_proved);
                proved.next().filter(|_| proved.next().is_none())
            }
        }
        .map(String::as_str)
    }

    /// The link address of the peer with this key.
    pub(crate) fn link_address_of(&self, key: PublicKey) -> LinkAddress {
        self.index.link_address_of.get(&key).copied().unwrap_or_else(|| LinkAddress::of(key))
    }

    /// The nodes that are ambiguous with one that has this key: those with the same key or, in link mode, with
    /// the same link address.
    pub(crate) fn sharers(&self, key: PublicKey) -> impl Iterator<Item = &Node> {
        let on_the_link = if self.in_link_mode() {
            self.index.link_address_holders(self.link_address_of(key))
        } else {
            &[]
        };
        let others = on_the_link.iter().filter_map(|(name, _)| self.cluster.nodes.get(name));
        self.holders(key).chain(others)
    }

    /// Whether this node has a key in the membership, and no other node claims that key or the key file's.
    pub(crate) fn can_encrypt(&self) -> bool {
        self.can_encrypt
    }

    /// The families in which the mesh has any prefix.
    pub(super) fn families(&self) -> impl Iterator<Item = Family> {
        let mut used = [false; 2];
        let ends = [self.index.prefixes.first_key_value(), self.index.prefixes.last_key_value()];
        let claims = ends.into_iter().flatten().map(|(prefix, _)| prefix);
        // Every IPv4 prefix orders before every IPv6 prefix, so the first and the last show both families.
        for prefix in claims.chain(&self.cluster.pools) {
            used[usize::from(prefix.addr().is_ipv6())] = true;
        }
        Family::ALL.into_iter().zip(used).filter_map(|(family, used)| used.then_some(family))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection, prelude::*};

    use super::*;
    use crate::paths::Paths;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// From a space so small that prefixes often contain each other.
    fn prefix() -> impl Strategy<Value = IpNet> {
        (0..64_u8, 0..=8_u8, any::<bool>()).prop_map(|(low, shorter, v4)| {
            let text = if v4 { format!("10.0.0.{low}") } else { format!("fd00::{low:x}") };
            let widest = if v4 { 32 } else { 128 };
            IpNet::new(text.parse().unwrap(), widest - shorter).unwrap().trunc()
        })
    }

    fn node() -> impl Strategy<Value = Node> {
        (0..3_u8, collection::btree_set(prefix(), 0..8)).prop_map(|(key, workloads)| Node {
            public_key: Some(PublicKey::from_bytes([key; 32])),
            endpoint: None,
            addresses: BTreeSet::new(),
            workloads,
            ..Node::default()
        })
    }

    proptest! {
        #[test]
        fn an_updated_index_equals_one_built_from_scratch(
            changes in collection::vec((0..3_usize, prop::option::of(node())), 1..12),
            asked in prefix(),
        ) {
            let settings = Settings { peer_lookup: PeerLookup::Gateway, ..Settings::defaults("own") };
            let host = Host {
                public_key: PublicKey::from_bytes([9; 32]),
                preshared_key: None,
                underlays: BTreeMap::new(),
                strict: BTreeSet::new(),
                all_strict: false,
                outward: BTreeSet::new(),
                here: BTreeSet::new(),
                here_outward: BTreeSet::new(),
                paths: Paths::default(),
            };
            let mut cluster = Cluster::default();
            let mut index = Index::of(&cluster, &settings, &host);
            for (name, node) in changes {
                let old = cluster.nodes.remove(NAMES[name]);
                index.replace(NAMES[name], [old.as_ref(), node.as_ref()], &settings);
                cluster.nodes.extend(node.map(|node| (NAMES[name].to_owned(), node)));
                prop_assert_eq!(&index, &Index::of(&cluster, &settings, &host));
            }

            let claimed: BTreeSet<_> = cluster.nodes.values().flat_map(|node| node.workloads.clone()).collect();
            let mut around: Vec<_> =
                claimed.iter().copied().filter(|wider| *wider != asked && wider.contains(&asked)).collect();
            around.sort_by_key(|wider| std::cmp::Reverse(wider.prefix_len()));
            prop_assert_eq!(index.around(asked).collect::<Vec<_>>(), around);
            prop_assert_eq!(index.claim(asked).is_some(), claimed.contains(&asked));
            for wider in claimed.iter().copied() {
                let inside: Vec<_> = index.claim(wider).unwrap().inside().map(|(inner, _)| inner).collect();
                let expected: Vec<_> =
                    claimed.iter().copied().filter(|inner| *inner != wider && wider.contains(inner)).collect();
                prop_assert_eq!(inside, expected);
            }
        }
    }
}
