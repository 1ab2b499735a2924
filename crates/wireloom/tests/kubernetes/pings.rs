//! Pings between pods while something happens: how many are lost, at one in 10 ms, and how many packets between pods
//! are in plaintext on the network between the nodes.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;
use serde_json::{Value, json};
use wireloom_lab::{
    Capture, Cluster, Content, FAMILIES, Node, PATIENCE, Packet, Pinger, Place, WORKLOAD_IMAGE,
    WORKLOAD_PROGRAM, until,
};

/// Time between two pings.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);

/// How many packets in plaintext the output shows.
const SHOWN: usize = 10;

/// What a disturbance cost.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) outage: Duration,
    pub(crate) plaintext: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, outage, plaintext } = self;
        let outage = outage.as_secs_f64();
        write!(f, "{lost} of {sent} pings lost, for {outage:.2} s at most; {plaintext} packets in plaintext")
    }
}

/// Pods that ping each other in both families, and a capture.
pub(crate) struct Pings {
    pingers: Vec<Pinger>,
    capture: Capture,
    /// The pods' addresses.
    pods: Vec<IpNet>,
}

impl Pings {
    /// `pod-a` and `pod-b` ping each other. Starts as soon as both answer.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self::among(cluster, &cluster.nodes()[..2])
    }

    /// The pods of [`start_pods`] on these nodes: each pings every other one. Starts as soon as all answer.
    pub(crate) fn among(cluster: &Cluster, nodes: &[Node]) -> Self {
        let places: Vec<_> = nodes.iter().map(|node| cluster.pod(&pod_name(node)).unwrap()).collect();
        let ordered = places.iter().flat_map(|from| places.iter().map(move |to| (from, to)));
        let pairs: Vec<_> = ordered.filter(|(from, to)| from.name != to.name).collect();
        pairs.iter().for_each(|(from, to)| wait_for_answer(from, to));
        let capture = Capture::open(cluster.lab.underlay()).unwrap();
        let pingers = pairs
            .iter()
            .flat_map(|(from, to)| FAMILIES.map(|family| Pinger::start(from, to, family, INTERVAL).unwrap()));
        let pods = cluster.nodes().iter().flat_map(|node| node.block).collect();
        Self { pingers: pingers.collect(), capture, pods }
    }

    /// Waits until pings are answered that are sent from now on.
    pub(crate) fn wait_for_answers(&self) {
        for pinger in &self.pingers {
            let before = pinger.answered();
            until(PATIENCE, "pings to be answered again", || (pinger.answered() > before).then_some(()))
                .unwrap();
        }
    }

    pub(crate) fn stop(self) -> Cost {
        self.pingers.iter().for_each(Pinger::end);
        let mut cost = Cost::default();
        for report in self.pingers.into_iter().map(|pinger| pinger.stop().unwrap()) {
            cost.sent += report.sent;
            cost.lost += report.lost;
            cost.outage = cost.outage.max(report.outage);
        }
        let is_pod =
            |address| self.pods.iter().any(|block| block.contains(&address) && !is_bridge(*block, address));
        let is_plaintext = |packet: &&Packet| {
            is_pod(packet.source)
                && is_pod(packet.destination)
                && !matches!(packet.content, Content::WireGuard { .. })
        };
        let packets = self.capture.drain().unwrap();
        let plaintext: Vec<_> = packets.iter().filter(is_plaintext).collect();
        for packet in plaintext.iter().take(SHOWN) {
            println!("in plaintext: {packet:?}");
        }
        cost.plaintext = plaintext.len();
        cost
    }
}

/// Whether it is the first address of a node's block: the node's own, on the bridge to its pods. From there agents
/// measure path MTUs.
fn is_bridge(block: IpNet, address: IpAddr) -> bool {
    match (block.network(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => network.to_bits() + 1 == address.to_bits(),
        (IpAddr::V6(network), IpAddr::V6(address)) => network.to_bits() + 1 == address.to_bits(),
        _ => false,
    }
}

/// Waits until a pod answers another one over both families.
pub(crate) fn wait_for_answer(from: &Place, to: &Place) {
    let pingers = FAMILIES.map(|family| Pinger::start(from, to, family, INTERVAL).unwrap());
    for pinger in pingers {
        until(PATIENCE, "a pod to answer", || (pinger.answered() > 0).then_some(())).unwrap();
        pinger.end();
    }
}

/// A pod that runs a program.
pub(crate) fn pod(name: &str, node: &str, image: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": image, "imagePullPolicy": "Never", "command": command }],
        },
    })
}

/// Starts these pods, and waits until all of the cluster's are ready.
pub(crate) fn start(cluster: &Cluster, pods: &[Value]) {
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }).to_string()).unwrap();
    cluster.wait_for_pods("--all").unwrap();
}

/// Starts a pod on each of these nodes: `pod-a` on `node-a`, and so on.
pub(crate) fn start_pods(cluster: &Cluster, nodes: &[Node]) {
    let pods = nodes.iter().map(|node| pod(&pod_name(node), &node.name, WORKLOAD_IMAGE, &[WORKLOAD_PROGRAM]));
    start(cluster, &pods.collect::<Vec<_>>());
}

/// The name of the pod that [`start_pods`] starts on a node.
pub(crate) fn pod_name(node: &Node) -> String {
    node.name.replace("node", "pod")
}
