//! What the membership source says: the pools and the nodes of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::PublicKey;

/// The whole mesh, as one membership source sees it at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// The ranges that workload addresses are taken from; no host bits set.
    pub pools: BTreeSet<IpNet>,
    /// Every node by its name, this one included.
    pub nodes: BTreeMap<String, Node>,
}

/// One node: where it is and what lives on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Absent: this node does not encrypt.
    pub public_key: Option<PublicKey>,
    /// Where its WireGuard listens.
    pub endpoint: Option<SocketAddr>,
    /// The host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Where this node's workloads live, no host bits set; single addresses may be borrowed from
    /// another node's block.
    pub workloads: BTreeSet<IpNet>,
    /// Addresses on the WireGuard interface, for link mode.
    pub link_addresses: BTreeSet<IpAddr>,
}
