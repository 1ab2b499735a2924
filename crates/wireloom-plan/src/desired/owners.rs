//! Whose the addresses are, for what people are told about counters.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::claims::prefixes;
use crate::{address_range::AddressRange, cluster::Cluster, settings::Settings};

/// Which node each address belongs to: the one that claims the longest prefix over it, as for routes and for
/// [`Desired::guarded`](super::Desired::guarded).
pub struct Owners<'a> {
    claims: BTreeMap<IpNet, &'a str>,
    /// The lengths of the claimed prefixes, the longest first.
    lengths: Vec<u8>,
}

impl<'a> Owners<'a> {
    /// Those of a mesh.
    pub fn of(cluster: &'a Cluster, settings: &Settings) -> Self {
        let mut claims = BTreeMap::new();
        // Of several claimants it is this node, else the first by name.
        let own = cluster.nodes.get_key_value(&settings.node);
        for (name, node) in own.into_iter().chain(&cluster.nodes) {
            for prefix in prefixes(node, settings) {
                claims.entry(prefix).or_insert(name.as_str());
            }
        }
        let lengths: BTreeSet<u8> = claims.keys().map(IpNet::prefix_len).collect();
        Self { claims, lengths: lengths.into_iter().rev().collect() }
    }

    /// The name of the node that the address belongs to.
    pub fn owner(&self, address: IpAddr) -> Option<&'a str> {
        let around = self.lengths.iter().filter_map(|length| IpNet::new(address, *length).ok());
        around.filter_map(|prefix| self.claims.get(&prefix.trunc())).copied().next()
    }

    /// Adds up what was counted by ranges of addresses, each of which belongs to one node. What belongs to nobody (any
    /// more) is left out.
    pub fn add_up(&self, counted: &BTreeMap<AddressRange, u64>) -> BTreeMap<&'a str, u64> {
        let mut sums = BTreeMap::new();
        for (range, packets) in counted {
            if let Some(owner) = self.owner(range.first()) {
                *sums.entry(owner).or_default() += packets;
            }
        }
        sums
    }
}
