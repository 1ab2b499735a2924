//! What a cluster's promises and failures depend on.

use std::fmt;

/// A configuration of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Whether Wireloom runs on every node, in scoped mode (`encrypt_host_traffic = false`).
    pub wireloom: bool,
    /// How kube-proxy programs the kernel.
    pub proxy: ProxyMode,
    /// How pods are connected.
    pub network: PodNetwork,
}

/// kube-proxy's `mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyMode {
    /// `iptables`.
    Iptables,
    /// `nftables`.
    Nftables,
}

/// The network of the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodNetwork {
    /// A bridge on each node, and routes between the nodes.
    Bridge,
    /// The same; pods appear under their node's address to everything beyond their own node's block (`ipMasq`).
    MasqueradingBridge,
    /// A bridge on each node, and VXLAN between the nodes. Each node's vxlan device has an address of its block.
    Vxlan,
}

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wireloom = if self.wireloom { "with Wireloom" } else { "without Wireloom" };
        write!(f, "{wireloom}, kube-proxy in {} mode, {}", self.proxy, self.network)
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
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
