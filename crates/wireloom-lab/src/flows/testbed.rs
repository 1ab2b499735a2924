//! What measuring needs to know of the running cluster.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;
use wireloom_plan::routing::Family;

use super::{
    cast::{HEADLESS, HOST_PORT, POD_PORT, PODS, SERVER_PORT, SERVICE_PORT, SERVICES, service},
    flow::{From, To},
    manifest::manifest,
};
use crate::{Addresses, Cluster, Error, Place, Result, Space, WORKLOAD_IMAGE};

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
    /// Starts the cast in a cluster of three nodes, and waits until every pod answers to Kubernetes.
    ///
    /// # Errors
    /// When the API server refuses it, or a pod is not ready in time.
    ///
    /// # Panics
    /// When the cluster has another number of nodes.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        cluster.apply(&manifest(WORKLOAD_IMAGE))?;
        cluster.wait_for_pods("--all")?;
        let place = |place: &Place| Place { name: place.name.clone(), space: place.space.clone(), ..*place };
        let nodes: Vec<_> = cluster.nodes().iter().map(|node| place(&node.host)).collect();
        let pods = PODS.iter().filter(|pod| pod.has_addresses());
        let pods =
            pods.map(|pod| Ok((pod.name.to_owned(), cluster.pod(pod.name)?))).collect::<Result<_>>()?;
        let mut services = BTreeMap::new();
        for service in SERVICES.iter().filter(|service| service.name != HEADLESS) {
            let object = cluster.get(&format!("service {}", service.name))?;
            services.insert(service.name.to_owned(), addresses(&object["spec"]["clusterIPs"], service.name)?);
        }
        let slices = format!("endpointslices --selector kubernetes.io/service-name={HEADLESS}");
        let slices = cluster.get(&slices)?;
        let slices = slices["items"].as_array().into_iter().flatten();
        let headless: Vec<_> = slices.map(|slice| slice["endpoints"][0]["addresses"][0].clone()).collect();
        Ok(Self {
            underlay: cluster.lab.underlay().clone(),
            nodes: nodes.try_into().expect("the cluster has three nodes"),
            outside: place(&cluster.outside().host),
            pods,
            services,
            headless: addresses(&headless.into(), HEADLESS)?,
        })
    }

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

/// One address of each family, in any order, out of what the API server says of `name`.
fn addresses(both: &Value, name: &str) -> Result<Addresses> {
    let all = both.as_array().into_iter().flatten().filter_map(|address| address.as_str()?.parse().ok());
    let (mut v4, mut v6) = (None, None);
    for address in all {
        match address {
            IpAddr::V4(address) => v4 = Some(address),
            IpAddr::V6(address) => v6 = Some(address),
        }
    }
    v4.zip(v6).map(|(v4, v6)| Addresses { v4, v6 }).ok_or_else(|| Error::Output {
        what: format!("the API server, asked for the addresses of {name},"),
        output: both.to_string(),
    })
}

fn named<'a, T>(all: &'a BTreeMap<String, T>, name: &str) -> &'a T {
    all.get(name).unwrap_or_else(|| panic!("the testbed has no {name}"))
}
