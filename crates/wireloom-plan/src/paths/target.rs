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
    routing::{Family, RouteKind},
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
    /// The longest packet that is worth a try: that of the interface, or what the path carries as far as is known.
    /// Bytes.
    pub full: u32,
}

/// The peers that can be probed: the proven ones that are in a session and in force, where both we and they have an
/// address inside of the tunnel, and our table leads from one to the other. So no request goes to an address that
/// others are to have, and no peer is asked that answers in plaintext. `own` is this node's name.
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
    if !own.encrypt {
        return BTreeMap::new();
    }
    let routed = Routed::of(observed);
    let proven = standings.iter().filter(|(_, standing)| standing.egress);
    let reached = proven.filter(|(_, standing)| in_session.contains(&standing.key));
    reached
        .filter_map(|(name, standing)| {
            let in_force = |node: &&Node| node.encrypt && node.public_key == Some(standing.key);
            let node = cluster.nodes.get(name).filter(in_force)?;
            let endpoint = device.peers.get(&standing.key)?.endpoint?.ip().to_canonical();
            let between = |from: &IpAddr| {
                let to = tunnel_address(node, Family::of(*from))?;
                routed.to(to).then_some((*from, to))
            };
            let (from, to) = ours.iter().flatten().find_map(between)?;
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

/// Where our table leads.
struct Routed<'a> {
    observed: &'a Observed,
    /// The lengths of the prefixes in it, of each family.
    lengths: [BTreeSet<u8>; 2],
}

impl<'a> Routed<'a> {
    fn of(observed: &'a Observed) -> Self {
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        for route in &observed.routes {
            let destination = route.destination;
            lengths[Family::of(destination.addr()) as usize].insert(destination.prefix_len());
        }
        Self { observed, lengths }
    }

    /// Whether it leads to this address through the tunnel. The longest prefix decides.
    fn to(&self, address: IpAddr) -> bool {
        let lengths = &self.lengths[Family::of(address) as usize];
        let prefixes = lengths.iter().rev().filter_map(|length| IpNet::new(address, *length).ok());
        let mut routes = prefixes.filter_map(|prefix| self.observed.routes_to(prefix.trunc()).next());
        routes.next().is_some_and(|route| matches!(route.kind, RouteKind::Device { .. }))
    }
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
