//! What the operator says of Kubernetes.

use std::{collections::BTreeSet, path::PathBuf};

use ipnet::IpNet;

/// Which API server, and where this node's workloads come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The kubeconfig; without it, the service account of the pod that the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Where this node's workloads come from.
    pub workloads: Workloads,
    /// The pools; empty: Calico's, or none.
    pub pools: BTreeSet<IpNet>,
    /// Whether keys and addresses are shared with Calico's Felix by annotations on Nodes.
    pub felix_peers: bool,
}

/// Where a node's workloads come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Workloads {
    /// Calico's block affinities where this host has one, else the Node's `podCIDRs`.
    #[default]
    Auto,
    /// The Node's `podCIDRs`.
    PodCidrs,
    /// Calico's block affinities of this host.
    Calico,
}
