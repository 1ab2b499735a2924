//! What the firewall's table refused, by node.

use std::collections::{BTreeMap, BTreeSet};

use wireloom_kernel::{GuardCounters, Refusals};
use wireloom_plan::{address_range::AddressRange, cluster::Cluster, desired::Owners};
use wireloom_types::LinkAddress;

use super::{Growth, NODES_MAX};

/// Packets by direction (`in` or `out`), reason and node, where there is one.
pub(crate) type Packets = BTreeMap<(&'static str, &'static str, Option<String>), u64>;

/// A counter of the table. It goes with its node, and begins at 0 when the table is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Counter {
    Out(AddressRange),
    In(AddressRange),
    /// A peer in link mode.
    Source(LinkAddress),
    Of(&'static str, &'static str),
}

/// The packets that were refused since the agent started.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    growth: Growth<Counter>,
    packets: Packets,
}

impl Refused {
    /// Takes the table's counters. `None`: it has no such rules.
    pub(crate) fn take(
        &mut self,
        guard: Option<&GuardCounters>,
        sources: Option<&Refusals>,
        owners: &Owners<'_>,
        cluster: &Cluster,
    ) {
        let mut counters = BTreeMap::new();
        if let Some(guard) = guard {
            counters.extend(guard.outgoing.iter().map(|(range, count)| (Counter::Out(*range), *count)));
            counters.extend(guard.incoming.iter().map(|(range, count)| (Counter::In(*range), *count)));
            counters.extend([
                (Counter::Of("out", "unproven"), guard.unproven_out),
                (Counter::Of("in", "unproven"), guard.unproven_in),
                (Counter::Of("out", "returned"), guard.returned),
                (Counter::Of("in", "forged"), guard.forged),
                (Counter::Of("out", "icmp_error"), guard.errors),
            ]);
        }
        let mut peers = BTreeMap::new();
        if let Some(sources) = sources {
            counters.extend(sources.peers.iter().map(|(peer, count)| (Counter::Source(*peer), *count)));
            counters.insert(Counter::Of("in", "stranger"), sources.strangers);
            let keys = cluster.nodes.iter().filter_map(|(name, node)| Some((node.public_key?, name)));
            peers = keys.map(|(key, name)| (LinkAddress::of(key), name.as_str())).collect();
        }
        let of_node = |direction, reason, node: Option<&str>| (direction, reason, node.map(str::to_owned));
        let label = |counter: &Counter| match counter {
            Counter::Out(range) => of_node("out", "proven", owners.owner(range.first())),
            Counter::In(range) => of_node("in", "proven", owners.owner(range.first())),
            Counter::Source(peer) => of_node("in", "source", peers.get(peer).copied()),
            Counter::Of(direction, reason) => (*direction, *reason, None),
        };
        // A series that begins with the first packet would hide it: there is no growth to be seen.
        for counter in counters.keys() {
            self.packets.entry(label(counter)).or_default();
        }
        let Self { growth, packets } = self;
        growth.take(counters.iter().map(|(counter, count)| (counter, *count)), |counter, more| {
            *packets.entry(label(counter)).or_default() += more;
        });
    }

    /// What is exported for a mesh of these nodes: none that have left, and sums if they are many.
    pub(crate) fn exported(&self, nodes: &BTreeSet<&str>) -> Packets {
        let mut exported = Packets::new();
        for ((direction, reason, node), packets) in &self.packets {
            let node = match node {
                Some(_) if nodes.len() > NODES_MAX => None,
                Some(node) if !nodes.contains(node.as_str()) => continue,
                node => node.clone(),
            };
            *exported.entry((*direction, *reason, node)).or_default() += packets;
        }
        exported
    }
}
