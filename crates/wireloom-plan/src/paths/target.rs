//! To which peers an echo request can be sent through the tunnel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wireloom_types::PublicKey;

use super::{Known, Paths};
use crate::{
    cluster::{Cluster, Node},
    observed::Observed,
    routing::Family,
    standing::Standings,
};

/// A peer, and between which addresses its path is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Where the datagrams go.
    pub endpoint: IpAddr,
    /// Our address inside of the tunnel.
    pub from: IpAddr,
    /// The peer's.
    pub to: IpAddr,
    /// The longest packet that is worth a try: that of the interface, or what the path carries as far as is known. Bytes.
    pub full: u32,
}

/// The peers that can be probed: the proven ones that are in a session, where both we and they have an address inside of
/// the tunnel. `own` is this node's name.
pub fn targets(
    cluster: &Cluster,
    own: &str,
    standings: &Standings,
    observed: &Observed,
    in_session: &BTreeSet<PublicKey>,
) -> BTreeMap<PublicKey, Target> {
    let (Some(interface), Some(device), Some(own)) =
        (&observed.interface, &observed.device, cluster.nodes.get(own))
    else {
        return BTreeMap::new();
    };
    let ours = Family::ALL.map(|family| {
        let here = observed.addresses.iter().map(IpNet::addr);
        here.filter(|address| Family::of(*address) == family).find(|address| is_workload(own, *address))
    });
    let proven = standings.iter().filter(|(_, standing)| standing.egress);
    let reached = proven.filter(|(_, standing)| in_session.contains(&standing.key));
    reached
        .filter_map(|(name, standing)| {
            let node = cluster.nodes.get(name)?;
            let endpoint = device.peers.get(&standing.key)?.endpoint?.ip().to_canonical();
            let (from, to) = ours
                .iter()
                .flatten()
                .find_map(|from| Some((*from, tunnel_address(node, Family::of(*from))?)))?;
            let full = full(&observed.paths, standing.key, interface.mtu);
            Some((standing.key, Target { endpoint, from, to, full }))
        })
        .collect()
}

/// The address inside of the tunnel of a node, if its record has one.
fn tunnel_address(node: &Node, family: Family) -> Option<IpAddr> {
    let inside = node.addresses.iter().filter(|address| is_workload(node, **address));
    node.tunnel_addresses.iter().chain(inside).copied().find(|address| Family::of(*address) == family)
}

fn is_workload(node: &Node, address: IpAddr) -> bool {
    node.workloads.iter().any(|workload| workload.contains(&address))
}

fn full(paths: &Paths, key: PublicKey, interface: u32) -> u32 {
    let Some(path) = paths.get(key) else { return interface };
    // What probes found before is to be found again.
    let path = if path.known == Known::Probed { super::Path { mtu: path.way_out, ..*path } } else { *path };
    path.narrower_than(interface).unwrap_or(interface)
}
