//! Records of nodes whose Felix encrypts: made from what Felix and Calico's IPAM publish, so that Wireloom and Felix
//! can encrypt with each other while a cluster moves from one to the other.
//!
//! Felix has a WireGuard device for each family, with a key and a port of its own. A record has one key, so its IPv4
//! half is used: IPv6 between a Felix node and a Wireloom node stays direct, on both sides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use wireloom_plan::cluster::Node;

use super::{affinity::Block, annotations::Annotations, own::outside};
use crate::Complaint;

/// The port of Felix's IPv4 device (`wireguardListeningPort` of FelixConfiguration, by default). All Felixes of a
/// cluster have the same, and expect it of each other.
const PORT: u16 = 51820;

/// How many nodes a cluster may have while keys are shared with Felix: every agent then follows the metadata of all
/// Nodes, which every kubelet's heartbeats touch.
pub(crate) const NODES_MAX: usize = 500;

/// The records of all nodes by their annotations (by name) and the blocks of all hosts. While there are too many nodes,
/// of those `in_force` alone, as peers must not lose keys because a node joins; and a complaint.
pub(crate) fn guests(
    annotations: &BTreeMap<String, Annotations>,
    blocks: &BTreeSet<Block>,
    in_force: &BTreeSet<String>,
) -> (BTreeMap<String, Node>, BTreeSet<Complaint>) {
    let is_within = annotations.len() <= NODES_MAX;
    let record = |(name, annotations): (&String, &Annotations)| {
        let blocks = blocks.iter().filter(|block| block.host == *name);
        (name.clone(), record(annotations, blocks))
    };
    let nodes = annotations.iter().filter(|(name, _)| is_within || in_force.contains(*name));
    let complaints = if is_within { BTreeSet::new() } else { [no_more(annotations.len())].into() };
    (nodes.map(record).collect(), complaints)
}

/// That keys are shared with no further nodes.
fn no_more(nodes: usize) -> Complaint {
    complaint("keys are shared with the Felixes that were there before, and with no further ones", nodes)
}

/// That keys are not shared with Felix.
pub(super) fn too_many(nodes: usize) -> Complaint {
    complaint("no keys are shared with Felix", nodes)
}

fn complaint(consequence: &str, nodes: usize) -> Complaint {
    let what = format!(
        "{consequence}: the cluster has {nodes} nodes, and every agent would follow the metadata of all, which is done \
         up to {NODES_MAX} nodes; set felix_peers = false in agent.toml"
    );
    Complaint { record: "felix_peers".into(), what }
}

/// Without a key, it is a node that does not encrypt.
fn record<'a>(annotations: &Annotations, blocks: impl Iterator<Item = &'a Block>) -> Node {
    let ipv4 = |address: &&IpAddr| address.is_ipv4();
    let mut workloads: BTreeSet<_> =
        blocks.map(|block| block.cidr).filter(|cidr| cidr.addr().is_ipv4()).collect();
    let tunnel_addresses: BTreeSet<IpAddr> =
        annotations.tunnel_addresses.iter().filter(ipv4).copied().collect();
    workloads.extend(outside(&tunnel_addresses, &workloads));
    Node {
        public_key: annotations.public_key.filter(|_| annotations.ipv4.is_some()),
        endpoint: annotations.ipv4.map(|address| SocketAddr::new(address, PORT)),
        addresses: annotations.addresses.clone(),
        workloads,
        tunnel_addresses,
        ..Node::default()
    }
}
