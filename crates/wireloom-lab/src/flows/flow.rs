//! The rows of the table.

use std::fmt;

use super::cast::{HEADLESS, Network, PODS, ServiceKind, service};

/// A row of the table: who calls whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// What it is called.
    pub name: &'static str,
    pub(super) from: From,
    pub(super) to: To,
    pub(super) path: Path,
    pub(super) sees: Sees,
}

/// A group of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// From a pod to a pod or a service.
    Pod,
    /// From a pod to a port of a node that leads to a pod: a node port or a host port.
    PodToPort,
    /// From a pod to a node itself.
    PodToNode,
    /// From a node.
    Node,
    /// From a machine that is not a node.
    Outside,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pod => "From a pod to a pod or a service",
            Self::PodToPort => "From a pod to a node port or a host port",
            Self::PodToNode => "From a pod to a node",
            Self::Node => "From a node",
            Self::Outside => "From a machine that is not a node",
        })
    }
}

/// Who calls. Nodes are indices into [`NODES`](super::NODES).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Pod(&'static str),
    Node(usize),
    Outside,
}

/// Who is called. Nodes are indices into [`NODES`](super::NODES).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// A pod's own address.
    Pod(&'static str),
    /// The address of the headless service's endpoint.
    Headless,
    /// A service's cluster address.
    Service(&'static str),
    /// A service's port of this node.
    NodePort(&'static str, usize),
    /// The host port of the pod on this node.
    HostPort(usize),
    /// The server in this node's own network.
    Node(usize),
}

/// The path of a flow, as far as promises depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// Both ends are on one node.
    OnNode,
    /// From a pod to a pod on another node. If the pod calls another address, its own node translates it.
    PodToPod,
    /// From a node's address, or one outside, to a pod on another node.
    NodeToPod,
    /// From anywhere to an address of another node, which answers itself or has the pod that does.
    ToNode,
    /// From a pod to an address of another node, which forwards to a pod on yet another one.
    Relayed,
    /// From outside to a node that must not answer.
    Refused,
}

/// The client's address, as the server sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sees {
    /// The client's own.
    Client,
    /// Another one: a node forwards the call under an address of its own.
    Another,
    /// Not promised.
    Any,
}

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// The flows, in the order of their groups. Clients are pod-a, node-a and the machine outside. Services have their
/// endpoint on node-b, unless the name says otherwise, and `externalTrafficPolicy: Cluster`, unless it says `Local`.
#[rustfmt::skip]
pub const FLOWS: &[Flow] = &[
    pod("pod → pod on another node", To::Pod("pod-b"), Path::PodToPod),
    pod("pod → pod on its own node", To::Pod("pod-a2"), Path::OnNode),
    pod("pod → endpoint of a headless service", To::Headless, Path::PodToPod),
    pod("pod → service", To::Service("service-b"), Path::PodToPod),
    pod("pod → service, session affinity", To::Service("sticky"), Path::PodToPod),
    pod("pod → service, endpoint on its own node", To::Service("service-a2"), Path::OnNode),
    pod("pod → service → itself", To::Service("service-a"), Path::OnNode),

    pod("pod → node port of its own node", To::NodePort("cluster-b", A), Path::PodToPod),
    pod("pod → node port of the endpoint's node", To::NodePort("cluster-b", B), Path::ToNode),
    pod("pod → node port of a third node", To::NodePort("cluster-b", C), Path::Relayed),
    pod("pod → node port of its own node → itself", To::NodePort("cluster-a", A), Path::OnNode),
    pod("pod → node port of another node → itself", To::NodePort("cluster-a", B), Path::Relayed),
    pod("pod → node port of its own node, Local", To::NodePort("local-b", A), Path::PodToPod),
    pod("pod → node port of the endpoint's node, Local", To::NodePort("local-b", B), Path::ToNode),
    pod("pod → host port of another node", To::HostPort(B), Path::ToNode),
    pod("pod → host port of its own node", To::HostPort(A), Path::OnNode).called_by("pod-a2"),
    pod("pod → host port of its own node → itself", To::HostPort(A), Path::OnNode),

    pod("pod → another node", To::Node(B), Path::ToNode),
    pod("pod → its own node", To::Node(A), Path::OnNode),

    node("node → pod on another node", To::Pod("pod-b"), Path::NodeToPod),
    node("node → its own pod", To::Pod("pod-a"), Path::OnNode),
    node("node → service", To::Service("service-b"), Path::NodeToPod),
    node("node → its own node port", To::NodePort("cluster-b", A), Path::NodeToPod),
    node("node → node port of the endpoint's node", To::NodePort("cluster-b", B), Path::ToNode),
    node("node → node port of a third node", To::NodePort("cluster-b", C), Path::NodeToPod),
    node("node → host port of another node", To::HostPort(B), Path::ToNode),
    node("node → its own host port", To::HostPort(A), Path::OnNode),
    node("node → another node", To::Node(B), Path::ToNode),

    outside("outside → node port of the endpoint's node", To::NodePort("cluster-b", B), Path::ToNode, Sees::Another),
    outside("outside → node port of another node", To::NodePort("cluster-b", C), Path::NodeToPod, Sees::Another),
    outside(
        "outside → node port of the endpoint's node, Local", To::NodePort("local-b", B), Path::ToNode, Sees::Client,
    ),
    outside("outside → node port of another node, Local", To::NodePort("local-b", C), Path::Refused, Sees::Any),
    outside("outside → host port", To::HostPort(B), Path::ToNode, Sees::Client),
    outside("outside → node", To::Node(B), Path::ToNode, Sees::Client),
];

const fn pod(name: &'static str, to: To, path: Path) -> Flow {
    Flow { name, from: From::Pod("pod-a"), to, path, sees: Sees::Any }
}

const fn node(name: &'static str, to: To, path: Path) -> Flow {
    Flow { name, from: From::Node(A), to, path, sees: Sees::Any }
}

const fn outside(name: &'static str, to: To, path: Path, sees: Sees) -> Flow {
    Flow { name, from: From::Outside, to, path, sees }
}

/// How often a sticky client calls: each time the same endpoint has to answer.
const STICKY_CALLS: usize = 5;

impl Flow {
    const fn called_by(self, name: &'static str) -> Self {
        Self { from: From::Pod(name), ..self }
    }

    /// The group that it is shown in.
    #[must_use]
    pub fn group(&self) -> Group {
        match (self.from, self.to) {
            (From::Pod(_), To::Pod(_) | To::Headless | To::Service(_)) => Group::Pod,
            (From::Pod(_), To::NodePort(..) | To::HostPort(_)) => Group::PodToPort,
            (From::Pod(_), To::Node(_)) => Group::PodToNode,
            (From::Node(_), _) => Group::Node,
            (From::Outside, _) => Group::Outside,
        }
    }

    /// The names of the pods that may answer.
    pub(super) fn servers(&self) -> Vec<&'static str> {
        match self.to {
            To::Pod(name) => vec![name],
            To::Headless => service(HEADLESS).pods.to_vec(),
            To::Service(name) | To::NodePort(name, _) => service(name).pods.to_vec(),
            To::HostPort(n) => on_node(n, Network::OwnAndHostPort),
            To::Node(n) => on_node(n, Network::Host),
        }
    }

    /// How many calls make up a cell.
    pub(super) fn calls(&self) -> usize {
        match self.to {
            To::Service(name) if service(name).kind == ServiceKind::Sticky => STICKY_CALLS,
            _ => 1,
        }
    }
}

fn on_node(n: usize, network: Network) -> Vec<&'static str> {
    PODS.iter().filter(|pod| pod.node == n && pod.network == network).map(|pod| pod.name).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flow_has_a_name_of_its_own_and_a_server() {
        assert_eq!(FLOWS.iter().map(|flow| flow.name).collect::<BTreeSet<_>>().len(), FLOWS.len());
        for flow in FLOWS {
            assert!(!flow.servers().is_empty(), "{}", flow.name);
        }
    }

    #[test]
    fn groups_are_not_interrupted() {
        let mut groups: Vec<_> = FLOWS.iter().map(Flow::group).collect();
        groups.dedup();
        assert_eq!(groups, [Group::Pod, Group::PodToPort, Group::PodToNode, Group::Node, Group::Outside]);
    }

    /// The path says what the client's and the servers' nodes say.
    #[test]
    fn only_flows_on_one_node_have_client_and_server_there() {
        for flow in FLOWS {
            let client = match flow.from {
                From::Pod(name) => PODS.iter().find(|pod| pod.name == name).map(|pod| pod.node),
                From::Node(n) => Some(n),
                From::Outside => None,
            };
            let called = match flow.to {
                To::NodePort(_, n) | To::HostPort(n) | To::Node(n) => Some(n),
                To::Pod(_) | To::Headless | To::Service(_) => client,
            };
            let servers = PODS.iter().filter(|pod| flow.servers().contains(&pod.name));
            let all_here = servers.clone().all(|pod| Some(pod.node) == client);
            assert_eq!(flow.path == Path::OnNode, all_here && called == client, "{}", flow.name);
            let all_called = servers.clone().all(|pod| Some(pod.node) == called);
            assert_eq!(flow.path == Path::ToNode, all_called && called != client, "{}", flow.name);
        }
    }
}
