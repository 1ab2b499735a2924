//! What a cluster's promises and failures depend on.

use std::fmt;

use crate::{PodNetwork, ProxyMode};

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

impl fmt::Display for Situation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wireloom = if self.wireloom { "with Wireloom" } else { "without Wireloom" };
        write!(f, "{wireloom}, kube-proxy in {} mode, {}", self.proxy, self.network)
    }
}
