//! The pools and the nodes of the mesh, as a membership source reports them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wireloom_types::PublicKey;

/// A snapshot of the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The ranges from which workloads get their addresses; no host bits set.
    pub pools: BTreeSet<IpNet>,
    /// Every node by name, this one included.
    pub nodes: BTreeMap<String, Node>,
}

/// One node: where it is and which workloads run on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Absent when the node does not encrypt.
    pub public_key: Option<PublicKey>,
    /// Where its WireGuard listens; without one, only the node itself can start sessions.
    pub endpoint: Option<SocketAddr>,
    /// The host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The prefixes of this node's workloads; no host bits set. Single addresses may be borrowed from another
    /// node's block.
    pub workloads: BTreeSet<IpNet>,
    /// The node's IP addresses on the WireGuard interface, for link mode.
    pub link_addresses: BTreeSet<IpAddr>,
    /// Those of its workload addresses that its WireGuard interface has. Masqueraded packets that leave by it have them
    /// as their source.
    pub tunnel_addresses: BTreeSet<IpAddr>,
    /// Whether it encrypts. A node that is to leave the mesh says `false` first, and goes direct again.
    pub encrypt: bool,
}

impl Node {
    /// The host's own addresses by which other machines reach it: those that lie in its workload CIDRs, such as that of
    /// the pods' bridge, are left out.
    pub fn underlay_addresses(&self) -> BTreeSet<IpAddr> {
        let inside = |address: &&IpAddr| self.workloads.iter().any(|workload| workload.contains(*address));
        self.addresses.iter().filter(|address| !inside(address)).copied().collect()
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            public_key: None,
            endpoint: None,
            addresses: BTreeSet::new(),
            workloads: BTreeSet::new(),
            link_addresses: BTreeSet::new(),
            tunnel_addresses: BTreeSet::new(),
            encrypt: true,
        }
    }
}
