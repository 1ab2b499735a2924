//! What measuring needs to know of the running cluster.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use wireloom_plan::routing::Family;

use super::{
    cast::{HOST_PORT, POD_PORT, SERVER_PORT, SERVICE_PORT, service},
    flow::{From, To},
};
use crate::{Addresses, Place, Space};

/// A cluster in which the pods and services of [`manifest`](super::manifest()) are running.
#[derive(Debug)]
pub struct Testbed {
    /// The network between the nodes, for the capture.
    pub underlay: Space,
    /// The nodes' own networks, in the order of [`NODES`](super::NODES).
    pub nodes: [Place; 3],
    /// A machine on the underlay that is not a node.
    pub outside: Place,
    /// The pods with addresses of their own, by name.
    pub pods: BTreeMap<String, Place>,
    /// The services' cluster addresses, by name. The headless service has none.
    pub services: BTreeMap<String, Addresses>,
    /// The addresses of the headless service's endpoint, from its EndpointSlices. Nothing else about the flow is
    /// special: a resolver would only tell the client these addresses.
    pub headless: Addresses,
}

impl Testbed {
    /// Where a call starts.
    ///
    /// # Panics
    /// When the pod is missing in [`Testbed::pods`].
    pub(super) fn client(&self, from: From) -> &Place {
        match from {
            From::Pod(name) => named(&self.pods, name),
            From::Node(n) => &self.nodes[n],
            From::Outside => &self.outside,
        }
    }

    /// The address and port that a call goes to.
    ///
    /// # Panics
    /// When the pod or service is missing in [`Testbed::pods`] or [`Testbed::services`].
    pub(super) fn target(&self, to: To, family: Family) -> SocketAddr {
        let (addresses, port) = match to {
            To::Pod(name) => (named(&self.pods, name).addresses, POD_PORT),
            To::Headless => (self.headless, POD_PORT),
            To::Service(name) => (*named(&self.services, name), SERVICE_PORT),
            To::NodePort(name, n) => {
                let port = service(name).node_port().expect("the service has a node port");
                (self.nodes[n].addresses, port)
            }
            To::HostPort(n) => (self.nodes[n].addresses, HOST_PORT),
            To::Node(n) => (self.nodes[n].addresses, SERVER_PORT),
        };
        (addresses.of(family), port).into()
    }

    /// The name of the place that has this address, for messages; the address itself when none is known to have it.
    pub(super) fn owner(&self, address: IpAddr) -> String {
        let mut places = self.nodes.iter().chain(self.pods.values()).chain([&self.outside]);
        let owner = places.find(|place| place.addresses.both().contains(&address));
        owner.map_or_else(|| address.to_string(), |place| place.name.clone())
    }
}

fn named<'a, T>(all: &'a BTreeMap<String, T>, name: &str) -> &'a T {
    all.get(name).unwrap_or_else(|| panic!("the testbed has no {name}"))
}
