//! Membership from Kubernetes: `WireloomNode` objects, and this node's own Node.

use std::{collections::BTreeSet, io, path::PathBuf};

use ipnet::IpNet;
use wireloom_plan::cluster::Cluster;

use crate::{Error, Event, Following, Start};

pub(crate) mod collection;
mod credentials;
mod lines;
pub(crate) mod server;

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

/// The state of this node for people: `WireloomNodeStatus`, and an Event for each condition that begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One word or two, such as "Encrypted" or "NotEncrypted": what `kubectl get` shows.
    pub state: String,
    /// The agent's version.
    pub version: String,
    /// The verdict in a sentence, as `wireloom status` prints it.
    pub message: String,
    /// Peers that this node encrypts with, and how many there are.
    pub peers: (u32, u32),
    /// The warnings in sentences, worst first.
    pub warnings: Vec<String>,
}

/// Reads the mesh once.
pub(crate) fn read(settings: &Settings) -> Result<Cluster, Error> {
    let _ = settings;
    unimplemented!()
}

/// Follows the mesh.
pub(crate) fn follow(
    settings: &Settings,
    start: Start,
    deliver: impl Fn(Event) + Send + 'static,
) -> io::Result<Following> {
    let _ = (settings, start, deliver);
    unimplemented!()
}
