//! The pools and the nodes of the mesh, as a membership source reports them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wireloom_types::PublicKey;

use crate::endpoint_name::EndpointName;

/// A snapshot of the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The ranges from which workloads get their addresses; no host bits set.
    pub pools: BTreeSet<IpNet>,
    /// Every node by name, this one included.
    pub nodes: BTreeMap<String, Node>,
    /// The file, at the same place on every node, with the key that all nodes mix into their handshakes besides their
    /// own; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key_file: Option<PathBuf>,
}

impl Cluster {
    /// The addresses of the endpoints that are declared by name, as far as they are known.
    pub fn known_addresses(&self) -> BTreeMap<EndpointName, SocketAddr> {
        self.nodes.values().filter_map(|node| Some((node.endpoint_name.clone()?, node.endpoint?))).collect()
    }

    /// The workload CIDRs of all nodes.
    pub fn workloads(&self) -> BTreeSet<IpNet> {
        self.nodes.values().flat_map(|node| &node.workloads).copied().collect()
    }

    /// Gives every endpoint that is declared by name its address. Those that are not among `addresses` have none
    /// afterwards.
    pub fn resolve(&mut self, addresses: &BTreeMap<EndpointName, SocketAddr>) {
        for node in self.nodes.values_mut() {
            if let Some(name) = &node.endpoint_name {
                node.endpoint = addresses.get(name).copied();
            }
        }
    }
}

/// One node: where it is and which workloads run on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Absent when the node does not encrypt.
    pub public_key: Option<PublicKey>,
    /// Where its WireGuard listens; without one, only the node itself can start sessions. If it is declared by name,
    /// the address that the name led to last.
    pub endpoint: Option<SocketAddr>,
    /// Where else it listens: tried in turn while nothing answers at `endpoint`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_endpoints: Vec<SocketAddr>,
    /// The name by which its endpoint is declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_name: Option<EndpointName>,
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
            other_endpoints: Vec::new(),
            endpoint_name: None,
            addresses: BTreeSet::new(),
            workloads: BTreeSet::new(),
            link_addresses: BTreeSet::new(),
            tunnel_addresses: BTreeSet::new(),
            encrypt: true,
        }
    }
}
