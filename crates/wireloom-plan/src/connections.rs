//! Connections by which machines are administered.

use std::net::IpAddr;

use serde::Serialize;

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
