//! Connections by which machines are administered: in host mode, what is between proven nodes goes through the tunnel
//! alone, and with a wrong key nobody gets in to correct it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::Serialize;

use crate::{
    cluster::Cluster,
    settings::{HostTransition, Settings},
    standing::Standings,
    warning::Warning,
};

/// The well-known port of SSH (RFC 4253, section 4.1).
const SSH: u16 = 22;

/// The ports of the services at whose loss a machine or its cluster is lost, and what uses them.
const SERVICES: [(u16, &str); 5] = [
    (SSH, "SSH"),
    (2379, "etcd clients"),
    (2380, "etcd peers"),
    (6443, "the Kubernetes API server"),
    (10250, "the kubelet"),
];

/// An established TCP connection of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Connection {
    /// The address of the other end.
    pub remote: IpAddr,
    /// The port of the service, whichever end has it.
    pub port: u16,
}

impl Connection {
    /// The ports of the services: no other connection is of interest.
    pub const PORTS: [u16; 5] = [SERVICES[0].0, SERVICES[1].0, SERVICES[2].0, SERVICES[3].0, SERVICES[4].0];

    /// `None` unless the ports are those of a connection by which machines are administered.
    pub fn of(remote: IpAddr, local_port: u16, remote_port: u16) -> Option<Self> {
        let port = [local_port, remote_port]
            .into_iter()
            .find(|port| SERVICES.iter().any(|(known, _)| known == port))?;
        // Whom we reach by SSH does not matter; who reaches us does.
        (port != SSH || local_port == SSH).then_some(Self { remote, port })
    }
}

/// What uses the port.
pub(crate) fn service(port: u16) -> &'static str {
    SERVICES.iter().find(|(known, _)| *known == port).map_or("another service", |(_, name)| name)
}

/// In host mode, the addresses of other nodes that have such connections and are not exempt.
pub(crate) fn warnings(
    connections: &BTreeSet<Connection>,
    cluster: &Cluster,
    settings: &Settings,
    standings: &Standings,
) -> BTreeSet<Warning> {
    let is_exempt = |address| settings.encrypt_host_exempt.iter().any(|prefix| prefix.contains(&address));
    let mut of_interest = connections.iter().filter(|it| !is_exempt(it.remote)).peekable();
    if !settings.encrypt_host_traffic || of_interest.peek().is_none() {
        return BTreeSet::new();
    }
    let others = cluster.nodes.iter().filter(|(name, _)| **name != settings.node);
    let others = others.filter(|(_, node)| node.public_key.is_some() && node.encrypt);
    let owners: BTreeMap<IpAddr, &String> = others
        .flat_map(|(name, node)| node.underlay_addresses().into_iter().map(move |it| (it, name)))
        .collect();
    let warning = |connection: &Connection| {
        let node = owners.get(&connection.remote)?;
        let proven = standings.get(*node).is_some_and(|standing| standing.egress);
        let already = proven && settings.host_transition != Some(HostTransition::Accept);
        let (node, address) = ((*node).clone(), connection.remote);
        Some(Warning::TunnelOnly { node, address, port: connection.port, already })
    };
    of_interest.filter_map(warning).collect()
}
