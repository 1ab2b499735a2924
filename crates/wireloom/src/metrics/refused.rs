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
        let is_large = cluster.nodes.len() > NODES_MAX;
        let owner = |range: &AddressRange| match is_large {
            true => None,
            false => owners.owner(range.first()).map(str::to_owned),
        };
        let label = |counter: &Counter| match counter {
            Counter::Out(range) => ("out", "proven", owner(range)),
            Counter::In(range) => ("in", "proven", owner(range)),
            Counter::Source(peer) => {
                ("in", "source", peers.get(peer).filter(|_| !is_large).map(|name| (*name).to_owned()))
            }
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

#[cfg(test)]
mod tests {
    use wireloom_plan::{cluster::Node, settings::Settings};

    use super::*;

    fn mesh(nodes: u8) -> Cluster {
        let workloads = |number: u8| [format!("10.161.{number}.0/24").parse().unwrap()].into();
        let node = |number| (format!("n{number}"), Node { workloads: workloads(number), ..Node::default() });
        Cluster { nodes: (0..nodes).map(node).collect(), ..Cluster::default() }
    }

    fn range(number: u8) -> AddressRange {
        format!("10.161.{number}.0/24").parse::<ipnet::IpNet>().unwrap().into()
    }

    fn take(refused: &mut Refused, mesh: &Cluster, outgoing: &[(u8, u64)], forged: u64) -> Packets {
        let outgoing = outgoing.iter().map(|(number, count)| (range(*number), *count)).collect();
        let guard = GuardCounters { outgoing, forged, ..GuardCounters::default() };
        refused.take(Some(&guard), None, &Owners::of(mesh, &Settings::defaults("n0")), mesh);
        refused.exported(&mesh.nodes.keys().map(String::as_str).collect())
    }

    #[test]
    fn what_is_refused_is_counted_by_node_and_survives_a_new_table() {
        let (mut refused, mesh) = (Refused::default(), mesh(3));
        let to = |node: &str| ("out", "proven", Some(node.to_owned()));
        let first = take(&mut refused, &mesh, &[(1, 7), (2, 0)], 4);
        assert_eq!((first[&to("n1")], first[&to("n2")], first[&("in", "forged", None)]), (0, 0, 0));
        take(&mut refused, &mesh, &[(1, 9), (2, 1)], 4);
        let last = take(&mut refused, &mesh, &[(1, 3), (2, 0)], 5);
        assert_eq!((last[&to("n1")], last[&to("n2")], last[&("in", "forged", None)]), (5, 1, 1));
    }

    #[test]
    fn a_node_that_left_has_no_series_and_many_nodes_share_one() {
        let mut refused = Refused::default();
        take(&mut refused, &mesh(3), &[(1, 0), (2, 0)], 0);
        take(&mut refused, &mesh(3), &[(1, 2), (2, 3)], 0);
        let left = take(&mut refused, &mesh(2), &[(1, 2)], 0);
        assert!(left.keys().all(|(_, _, node)| node.as_deref() != Some("n2")), "{left:?}");
        let many = take(&mut refused, &mesh(101), &[(1, 4)], 0);
        assert_eq!(many[&("out", "proven", None)], 7);
        assert!(many.keys().all(|(_, _, node)| node.is_none()), "{many:?}");
    }
}
