//! A mesh file that loses most of its nodes: they stay in force for 30 s, unless the operator means it.

use std::time::{Duration, Instant};

use serde_json::Value;
use wireloom_lab::{Capture, Content, Layout, Pinger, Promise, agent::Agent, mesh::MEMBERS, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// The peers of node-a: node-b, node-c and node-d.
const PEERS: u8 = 3;

impl Fleet {
    fn of_four() -> Self {
        let fleet = Self::new(Layout { nodes: 1 + PEERS, ..Layout::default() }, SCOPED);
        fleet.settle(Promise::SCOPED);
        fleet
    }

    /// Leaves node-a alone in its own mesh file, and returns the whole one.
    fn cut(&self) -> String {
        let space = &self.lab.nodes[0].host.space;
        let whole = space.read(MEMBERS).unwrap().unwrap();
        let mut cut = self.mesh.clone();
        cut.nodes.truncate(1);
        cut.write_on(&self.lab.nodes[0]).unwrap();
        whole
    }

    fn put_back(&self, whole: &str) {
        self.lab.nodes[0].host.space.write(MEMBERS, whole).unwrap();
    }

    /// How many peers node-a's device has.
    fn peers(&self) -> u8 {
        self.lab.nodes[0].run("wg show wg0 peers").unwrap().lines().count().try_into().unwrap()
    }

    /// What node-a's agent says that it holds back.
    fn held(&self) -> Vec<String> {
        let status: Value = serde_json::from_str(&run(&self.lab.nodes[0], "status --json").1).unwrap();
        let names = status["agent"]["held"]["nodes"].as_array().cloned().unwrap_or_default();
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn wait_for_hold(&self) {
        self.wait("the removals to be held back", |fleet| {
            fleet.held() == ["node-b", "node-c", "node-d"] && fleet.peers() == PEERS
        });
    }
}

#[test]
fn a_mesh_that_lost_most_of_its_nodes_costs_no_packet_and_its_return_ends_the_hold() {
    let fleet = Fleet::of_four();
    let node = &fleet.lab.nodes[0];
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let (a, b) = (&node.pods[0], &fleet.lab.nodes[1].pods[0]);
    let pinger = Pinger::start(a, b, Family::V4, Duration::from_millis(10)).unwrap();
    let whole = fleet.cut();
    fleet.wait_for_hold();
    let (_, shown, _) = run(node, "status");
    let warned = "warning: the mesh no longer has 3 nodes, most of this node's peers (node-b, node-c, node-d); they \
                  stay in force for";
    assert!(shown.contains(warned) && shown.contains("`wireloom reload --now`"), "{shown}");
    assert!(!shown.contains("pending:"), "{shown}");
    // To read the same once more changes nothing.
    let (status, said, errors) = run(node, "reload");
    assert_eq!((status, fleet.peers()), (0, PEERS), "{said}{errors}");
    assert!(said.contains("the mesh no longer has 3 nodes"), "{said}");
    let answered = pinger.answered();
    fleet.wait("pings to go on", |_| pinger.answered() > answered + 100);
    fleet.put_back(&whole);
    fleet.wait("the hold to end", |fleet| fleet.held().is_empty());
    let answered = pinger.answered();
    fleet.wait("pings to go on", |_| pinger.answered() > answered + 100);
    let report = pinger.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.counters());
    let packets = capture.drain().unwrap();
    let plain = packets.iter().filter(|packet| matches!(packet.content, Content::Echo { .. })).count();
    assert_eq!(plain, 0, "pings in plaintext");
    assert!(!run(node, "status").1.contains("the mesh no longer has"));
    assert_eq!(fleet.peers(), PEERS);
}

#[test]
fn an_operator_who_means_it_is_obeyed_at_once_and_hears_of_mistakes() {
    let mut fleet = Fleet::of_four();
    let whole = fleet.cut();
    fleet.wait_for_hold();
    let node = &fleet.lab.nodes[0];
    let (status, said, errors) = run(node, "reload --now");
    assert_eq!((status, fleet.peers()), (0, 0), "{said}{errors}");
    assert_eq!(fleet.held(), [""; 0]);
    // A new file and the word that it is meant, at once after each other.
    fleet.put_back(&whole);
    assert_eq!((run(node, "reload").0, fleet.peers()), (0, PEERS));
    fleet.cut();
    let (status, said, errors) = run(node, "reload --now");
    assert_eq!((status, fleet.peers()), (0, 0), "{said}{errors}");
    fleet.put_back(&format!("{whole}\nmistake = 1\n"));
    let (status, _, errors) = run(node, "reload");
    assert_eq!(status, 1);
    assert!(errors.contains("mesh.toml:") && errors.contains("the previous mesh stays in force"), "{errors}");
    fleet.put_back(&whole);
    assert_eq!(run(node, "reload").0, 0);
    fleet.agents.remove(0).terminate().unwrap();
    let (status, _, errors) = run(&fleet.lab.nodes[0], "reload");
    assert_eq!(status, 1);
    assert!(errors.contains("no agent is running"), "{errors}");
}

/// Against the record of an earlier agent. This one test waits for the end of the hold.
#[test]
fn an_agent_that_starts_with_a_cut_mesh_holds_the_nodes_and_then_lets_them_go() {
    let mut fleet = Fleet::of_four();
    fleet.wait("the mesh to be recorded", |fleet| {
        fleet.lab.nodes[0].run("cat /var/lib/wireloom/mesh.json").is_ok_and(|mesh| mesh.contains("node-d"))
    });
    fleet.agents.remove(0).kill().unwrap();
    fleet.cut();
    let started = Instant::now();
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.wait_for_hold();
    until(Duration::from_secs(45), "the nodes to go", || (fleet.peers() == 0).then_some(())).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(30), "{:?}", started.elapsed());
    fleet.wait("the hold to end", |fleet| fleet.held().is_empty());
    fleet.agents.clear();
    wireloom_lab::agent::down(wireloom(), &fleet.lab.nodes[0]).unwrap();
    assert!(fleet.lab.nodes[0].run("ls /var/lib/wireloom/mesh.json").is_err());
}

#[test]
fn a_fifo_in_place_of_the_key_hangs_neither_the_start_nor_reload() {
    const KEY: &str = "/var/lib/wireloom/wg0.key";
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    node.run(&format!("mv {KEY} {KEY}.old")).unwrap();
    node.run(&format!("mkfifo {KEY}")).unwrap();
    let (status, _, errors) = run(node, "reload");
    assert_eq!(status, 1);
    let named = format!("the private key {KEY} is a FIFO, not a file");
    assert!(errors.contains(&named), "{errors}");
    fleet.agents.remove(0).terminate().unwrap();
    let node = &fleet.lab.nodes[0];
    let mut started = Agent::start(wireloom(), node).unwrap();
    let ended = until(wireloom_lab::PATIENCE, "the agent to end", || started.ended().unwrap()).unwrap();
    assert!(!ended.success());
    let log = wireloom_lab::agent::log(node).unwrap();
    assert!(log.contains(&named), "{log}");
}
