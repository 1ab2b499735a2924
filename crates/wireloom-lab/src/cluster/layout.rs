//! The size of a cluster, and what differs between clusters.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::network::layout::pools;

/// The size of a cluster, and what differs between clusters.
#[derive(Debug, Clone, Copy)]
pub struct ClusterLayout {
    /// How many nodes: 1 to 25. One more machine has the control plane.
    pub nodes: u8,
    /// How kube-proxy implements services.
    pub proxy: ProxyMode,
    /// How the pods are connected.
    pub network: PodNetwork,
}

impl Default for ClusterLayout {
    fn default() -> Self {
        Self { nodes: 2, proxy: ProxyMode::Iptables, network: PodNetwork::Bridge }
    }
}

/// How kube-proxy implements services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// With iptables' NAT.
    Iptables,
    /// With nftables' NAT.
    Nftables,
}

impl fmt::Display for ProxyMode {
    /// Its name in kube-proxy's configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// How the pods are connected: what the network plugin does on every node. A bridge connects the pods of a node in
/// each case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// Routes to the other nodes' pods in the table main.
    Bridge,
    /// The same, and connections that leave the node get the node's address (the bridge plugin's `ipMasq`).
    MasqueradingBridge,
    /// Routes to the other nodes' pods through a VXLAN interface, which has the first address of the node's pod CIDR,
    /// as flannel does it.
    Vxlan,
}

impl fmt::Display for PodNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bridge => "pods on a bridge",
            Self::MasqueradingBridge => "pods on a masquerading bridge",
            Self::Vxlan => "pods on a bridge, VXLAN between nodes",
        })
    }
}

/// The API server's port.
pub(super) const API_PORT: u16 = 6443;

/// The prefixes of services' addresses, as programs take them: IPv4 first.
pub(super) const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:10:96::/112";

/// The API server's addresses as a service: the first of [`SERVICE_CIDRS`].
pub(super) const API_SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1))];

/// The pools of the pods' addresses, as programs take them: IPv4 first.
pub(super) fn cluster_cidrs() -> String {
    pools().map(|pool| pool.to_string()).join(",")
}
