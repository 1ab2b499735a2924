//! What disturbances cost the traffic between pods: pings lost at one in 10 ms over each family, and packets in
//! plaintext on the network between the nodes.

use std::{
    fmt, thread,
    time::{Duration, Instant},
};

use serde_json::json;
use wireloom_lab::{
    Capture, Cluster, ClusterLayout, Content, FAMILIES, PATIENCE, Packet, Pinger, Place, WORKLOAD_IMAGE,
    until,
};

use crate::fixtures::{TAGS, WithWireloom};

/// Time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long pings continue before and after a disturbance.
const MARGIN: Duration = Duration::from_secs(1);

/// What a disturbance cost.
#[derive(Debug, Default)]
struct Cost {
    sent: usize,
    lost: usize,
    outage: Duration,
    plaintext: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, outage, plaintext } = self;
        let outage = outage.as_secs_f64();
        write!(f, "{lost} of {sent} pings lost, {outage:.2} s at most; {plaintext} packets in plaintext")
    }
}

/// Three nodes with Wireloom, and a pod on each: `pod-a`, `pod-b`, `pod-c`.
struct Stage {
    on: WithWireloom,
}

impl Stage {
    fn new() -> Self {
        let on = WithWireloom::new(&ClusterLayout { nodes: 3, ..ClusterLayout::default() });
        let pod = |node: &str| {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": node.replace("node", "pod") },
                "spec": {
                    "nodeName": node,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{ "name": "c", "image": WORKLOAD_IMAGE, "imagePullPolicy": "Never" }],
                },
            })
        };
        let pods = on.cluster.nodes().iter().map(|node| pod(&node.name)).collect::<Vec<_>>();
        let pods = json!({ "apiVersion": "v1", "kind": "List", "items": pods });
        on.cluster.apply(&pods.to_string()).unwrap();
        on.cluster.wait_for_pods("--all").unwrap();
        Self { on }
    }

    fn cluster(&self) -> &Cluster {
        &self.on.cluster
    }

    fn pod(&self, name: &str) -> Place {
        self.cluster().pod(name).unwrap()
    }

    /// Measures what `disturb` costs the traffic from one pod to another; both must still be there afterwards.
    fn cost(&mut self, from: &str, to: &str, disturb: impl FnOnce(&mut WithWireloom)) -> Cost {
        let (from, to) = (self.pod(from), self.pod(to));
        wait_for_answer(&from, &to);
        let capture = Capture::open(self.cluster().lab.underlay()).unwrap();
        let pingers = FAMILIES.map(|family| Pinger::start(&from, &to, family, INTERVAL).unwrap());
        thread::sleep(MARGIN);
        disturb(&mut self.on);
        for pinger in &pingers {
            let before = pinger.answered();
            until(PATIENCE, "pings to be answered again", || (pinger.answered() > before).then_some(()))
                .unwrap();
        }
        thread::sleep(MARGIN);
        let mut cost = Cost::default();
        for report in pingers.map(|pinger| pinger.stop().unwrap()) {
            cost.sent += report.sent;
            cost.lost += report.lost;
            cost.outage = cost.outage.max(report.outage);
        }
        cost.plaintext = plaintext(&capture.drain().unwrap(), &self.on.cluster);
        cost
    }
}

/// Waits until a pod answers another one over both families.
fn wait_for_answer(from: &Place, to: &Place) {
    let pingers = FAMILIES.map(|family| Pinger::start(from, to, family, INTERVAL).unwrap());
    for pinger in pingers {
        until(PATIENCE, "a pod to answer", || (pinger.answered() > 0).then_some(())).unwrap();
        pinger.end();
    }
}

/// How many packets are between pods and not encrypted.
fn plaintext(packets: &[Packet], cluster: &Cluster) -> usize {
    let is_pod =
        |address| cluster.nodes().iter().flat_map(|node| node.block).any(|block| block.contains(&address));
    let is_plaintext = |packet: &&Packet| {
        is_pod(packet.source)
            && is_pod(packet.destination)
            && !matches!(packet.content, Content::WireGuard { .. } | Content::Link)
    };
    packets.iter().filter(is_plaintext).count()
}

#[test]
fn nothing_is_lost_while_the_api_server_is_away() {
    let mut stage = Stage::new();
    let cost = stage.cost("pod-a", "pod-b", |on| {
        on.cluster.stop_api_server();
        thread::sleep(Duration::from_secs(60));
        on.cluster.start_api_server().unwrap();
    });
    println!("figure: API server away for a minute: {cost}");
    assert_eq!((cost.lost, cost.plaintext), (0, 0), "{cost}");
}

#[test]
fn a_rollout_costs() {
    let mut stage = Stage::new();
    let cost = stage.cost("pod-a", "pod-b", |on| on.daemon_set.roll_out(&on.cluster, TAGS[1]).unwrap());
    println!("figure: rollout of a new version: {cost}");
}

#[test]
fn a_killed_container_costs() {
    let mut stage = Stage::new();
    let cost = stage.cost("pod-a", "pod-b", |on| {
        let agent = on.daemon_set.agent(&on.cluster, 1).unwrap();
        on.cluster.nodes()[1].run(&format!("kill -KILL {agent}")).unwrap();
        until(PATIENCE, "another agent", || {
            on.daemon_set.agent(&on.cluster, 1).ok().filter(|other| *other != agent)
        })
        .unwrap();
        on.daemon_set.wait(&on.cluster).unwrap();
    });
    println!("figure: container killed: {cost}");
}

#[test]
fn others_lose_nothing_while_a_node_is_drained_and_deleted() {
    let mut stage = Stage::new();
    let cost = stage.cost("pod-a", "pod-b", |on| {
        on.cluster.kubectl("drain node-c --ignore-daemonsets --force").unwrap();
        on.cluster.kubectl("delete node node-c").unwrap();
    });
    println!("figure: node drained and deleted, pods of the others: {cost}");
    assert_eq!((cost.lost, cost.plaintext), (0, 0), "{cost}");
}

#[test]
fn a_node_restarts() {
    let mut stage = Stage::new();
    let began = Instant::now();
    let mut back = Duration::ZERO;
    let cost = stage.cost("pod-a", "pod-b", |on| {
        let began = Instant::now();
        on.cluster.restart_node(2).unwrap();
        on.cluster.wait_for_nodes().unwrap();
        on.daemon_set.wait(&on.cluster).unwrap();
        back = began.elapsed();
    });
    println!("figure: node restarted, pods of the others: {cost}; {back:?} {:?}", began.elapsed());
}
