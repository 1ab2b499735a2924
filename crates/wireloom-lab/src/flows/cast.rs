//! The pods and services that the flows are between.

/// The cluster's nodes: names as in [`Lab::nodes`](crate::Lab::nodes).
pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// The port on which pods listen, TCP and UDP.
pub(super) const POD_PORT: u16 = 8080;
/// The port of a node that leads to its pod (`hostPort`).
pub(super) const HOST_PORT: u16 = 31080;
/// The port on which pods in a node's own network listen: below those of node ports and clients.
pub(super) const SERVER_PORT: u16 = 9080;
/// The services' port at their cluster addresses.
pub(super) const SERVICE_PORT: u16 = 80;

/// A pod that runs `wireloom-workload`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Its name, which it puts into its answers.
    pub name: &'static str,
    /// The node that it runs on, as an index into [`NODES`].
    pub node: usize,
    pub(super) network: Network,
}

/// How a pod is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// An address of its own.
    Own,
    /// An address of its own, and [`HOST_PORT`] of its node.
    OwnAndHostPort,
    /// The node's network (`hostNetwork`). It listens on [`SERVER_PORT`], as a kubelet does on port 10250.
    Host,
}

impl Pod {
    /// Whether it has addresses of its own; if not, it has its node's.
    #[must_use]
    pub fn has_addresses(&self) -> bool {
        self.network != Network::Host
    }

    /// The port on which it listens, TCP and UDP.
    #[must_use]
    pub fn port(&self) -> u16 {
        if self.has_addresses() { POD_PORT } else { SERVER_PORT }
    }
}

/// The pods: one on each node, one more on the first, and one in each node's own network.
pub const PODS: [Pod; 7] = [
    Pod { name: "pod-a", node: 0, network: Network::OwnAndHostPort },
    Pod { name: "pod-a2", node: 0, network: Network::Own },
    Pod { name: "pod-b", node: 1, network: Network::OwnAndHostPort },
    Pod { name: "pod-c", node: 2, network: Network::OwnAndHostPort },
    Pod { name: "server-a", node: 0, network: Network::Host },
    Pod { name: "server-b", node: 1, network: Network::Host },
    Pod { name: "server-c", node: 2, network: Network::Host },
];

/// A service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// The names of its endpoints.
    pub pods: &'static [&'static str],
    /// How clients reach it.
    pub kind: ServiceKind,
}

/// How clients reach a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// A cluster address.
    ClusterIp,
    /// A cluster address whose clients keep the endpoint that they got first (`sessionAffinity: ClientIP`).
    Sticky,
    /// No address: clients take the endpoints'.
    Headless,
    /// A port of every node; nodes without an endpoint forward to one, under their own address
    /// (`externalTrafficPolicy: Cluster`).
    NodePort(u16),
    /// A port of every node; only nodes with an endpoint answer, and it sees the client's address
    /// (`externalTrafficPolicy: Local`).
    LocalNodePort(u16),
}

/// The name of the headless service: its endpoint's addresses belong in [`Testbed::headless`](super::Testbed).
pub const HEADLESS: &str = "headless";

/// The services.
pub const SERVICES: [Service; 8] = [
    Service { name: "service-a", pods: &["pod-a"], kind: ServiceKind::ClusterIp },
    Service { name: "service-a2", pods: &["pod-a2"], kind: ServiceKind::ClusterIp },
    Service { name: "service-b", pods: &["pod-b"], kind: ServiceKind::ClusterIp },
    Service { name: "sticky", pods: &["pod-b", "pod-c"], kind: ServiceKind::Sticky },
    Service { name: HEADLESS, pods: &["pod-b"], kind: ServiceKind::Headless },
    Service { name: "cluster-a", pods: &["pod-a"], kind: ServiceKind::NodePort(30081) },
    Service { name: "cluster-b", pods: &["pod-b"], kind: ServiceKind::NodePort(30082) },
    Service { name: "local-b", pods: &["pod-b"], kind: ServiceKind::LocalNodePort(30083) },
];

impl Service {
    /// Its port on every node; `None` when it has none.
    #[must_use]
    pub fn node_port(&self) -> Option<u16> {
        match self.kind {
            ServiceKind::NodePort(port) | ServiceKind::LocalNodePort(port) => Some(port),
            ServiceKind::ClusterIp | ServiceKind::Sticky | ServiceKind::Headless => None,
        }
    }
}

/// The service of this name.
///
/// # Panics
/// When there is none.
pub(super) fn service(name: &str) -> &'static Service {
    let mut all = SERVICES.iter();
    all.find(|service| service.name == name).unwrap_or_else(|| panic!("no service is named {name}"))
}

/// Whether servers of the cast listen on this port, at any kind of address.
pub(super) fn is_server_port(port: u16) -> bool {
    [POD_PORT, HOST_PORT, SERVER_PORT, SERVICE_PORT].contains(&port)
        || SERVICES.iter().any(|service| service.node_port() == Some(port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_servers_share_a_port_of_a_node() {
        let node_ports = SERVICES.iter().filter_map(Service::node_port);
        let ports: Vec<_> = node_ports.chain([HOST_PORT, SERVER_PORT]).collect();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
        for (node, name) in NODES.iter().enumerate() {
            for network in [Network::OwnAndHostPort, Network::Host] {
                let pods = PODS.iter().filter(|pod| pod.node == node && pod.network == network);
                assert_eq!(pods.count(), 1, "{network:?} on {name}");
            }
        }
    }

    #[test]
    fn every_endpoint_is_a_pod_with_an_address_of_its_own() {
        for endpoint in SERVICES.iter().flat_map(|service| service.pods) {
            let pod = PODS.iter().find(|pod| pod.name == *endpoint);
            assert!(pod.is_some_and(Pod::has_addresses), "{endpoint}");
        }
    }
}
