//! The mesh from a store, a real etcd: nobody writes a mesh file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use base64ct::{Base64, Encoding as _};
use serde_json::Value;
use tempfile::TempDir;
use wireloom_lab::{
    Lab, Layout, Matrix, Node, PATIENCE, Pinger, Promise, Space,
    agent::{self, Agent},
    mesh::{KeyPair, Mesh, SETTINGS, write_key},
    until,
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::{
        fleet::{Fleet, rules, run},
        prometheus::get,
    },
    wireloom,
};

/// The etcd's address, on the network between the nodes.
const ADDRESS: &str = "192.168.1.250";

/// An etcd beside the nodes. Dropping it ends it.
pub(super) struct Etcd {
    process: Option<Child>,
    data: TempDir,
    space: Space,
}

impl Etcd {
    pub(super) fn start(lab: &Lab) -> Self {
        // The files and processes of the one who runs the test, on the nodes' network.
        let space = lab.underlay().network_only();
        space.run(&format!("ip address replace {ADDRESS}/24 dev underlay")).unwrap();
        let mut etcd = Self { process: None, data: tempfile::tempdir().unwrap(), space };
        etcd.run();
        etcd
    }

    /// Starts the program, with the data that it had.
    fn run(&mut self) {
        let [client, peer] = [2379, 2380].map(|port| format!("http://{ADDRESS}:{port}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.data.path());
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(self.space.spawn(&mut command).unwrap());
        let address: SocketAddr = format!("{ADDRESS}:2379").parse().unwrap();
        until(PATIENCE, "etcd to listen", || {
            self.space.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()).unwrap()
        })
        .unwrap();
    }

    pub(super) fn put_pool(&self, name: &str, cidr: &str) {
        self.put(&format!("pools/{name}"), &format!(r#"{{"cidr": "{cidr}"}}"#));
    }

    /// Writes a value, by etcd's gateway for JSON.
    fn put(&self, name: &str, value: &str) {
        let key = format!("/wireloom/v1/default/{name}");
        let [key, value] = [&key, value].map(|text| Base64::encode_string(text.as_bytes()));
        let body = format!(r#"{{"key": "{key}", "value": "{value}"}}"#);
        let head = "POST /v3/kv/put HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length:";
        let request = format!("{head} {}\r\n\r\n{body}", body.len());
        let mut answer = String::new();
        let asked = self.space.inside(|| {
            let mut socket = TcpStream::connect(format!("{ADDRESS}:2379"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(request.as_bytes())?;
            socket.read_to_string(&mut answer)
        });
        asked.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}

fn write_settings(node: &Node, name: &str) {
    let [v4, v6] = node.block;
    let text = format!(
        r#"
        node = "{name}"
        [routing]
        table = "auto"
        [membership]
        source = "etcd"
        endpoints = ["http://{ADDRESS}:2379"]
        workloads = ["{v4}", "{v6}"]
        [metrics]
        listen = "127.0.0.1:9586"
        "#
    );
    node.host.space.write(SETTINGS, &text).unwrap();
}

pub(super) fn fleet(nodes: u8) -> Fleet {
    let lab = Lab::new(&Layout { nodes, ..Layout::default() }).unwrap();
    lab.nodes.iter().for_each(|node| write_settings(node, &node.name));
    Fleet { lab, mesh: Mesh::default(), keys: Vec::new(), agents: Vec::new(), patience: PATIENCE }
}

fn status(node: &Node) -> Value {
    serde_json::from_str(&run(node, "status --json").1).unwrap_or_default()
}

/// Whether its agent reports that it does not reach etcd.
fn misses_store(node: &Node) -> bool {
    status(node)["errors"].to_string().contains(ADDRESS)
}

/// The processor time that an agent has taken, in ticks of 10 ms (utime and stime, proc_pid_stat(5)).
fn work(agent: &Agent) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// The key by which a node knows another one.
fn key_of(node: &Node, other: &str) -> Option<String> {
    let status = status(node);
    let peer = status["peers"].as_array()?.iter().find(|peer| peer["name"] == other)?;
    peer["public_key"].as_str().map(str::to_owned)
}

fn ping(fleet: &Fleet) -> Vec<Pinger> {
    let [a, b] = &fleet.lab.nodes[..2] else { panic!("two nodes") };
    let ping = |family| Pinger::start(&a.pods[0], &b.pods[0], family, Duration::from_millis(10)).unwrap();
    [Family::V4, Family::V6].map(ping).into()
}

#[track_caller]
fn assert_none_lost(fleet: &Fleet, pingers: Vec<Pinger>) {
    for pinger in pingers {
        let report = pinger.stop().unwrap();
        println!("figure: {report:?}");
        assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.logs());
    }
}

#[test]
fn nodes_find_each_other_in_etcd_and_need_it_for_changes_only() {
    let mut fleet = fleet(3);
    fleet.start();
    fleet.wait("the store to be missed", |fleet| misses_store(&fleet.lab.nodes[0]));
    let before = work(&fleet.agents[0]);
    thread::sleep(Duration::from_secs(2));
    let busy = work(&fleet.agents[0]) - before;
    assert!(busy < 20, "an agent that waits for its first mesh works {busy} ticks in 2 s\n{}", fleet.logs());
    let mut etcd = Etcd::start(&fleet.lab);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    for node in &fleet.lab.nodes {
        fleet.wait_until_done(node);
        let own = "from 10.161.";
        assert!(rules(node).iter().any(|rule| rule.starts_with(own) && rule.ends_with("lookup 15700")));
        assert_eq!(run(node, "reload").0, 0, "{}", fleet.logs());
        assert_eq!(node.host.space.read(wireloom_lab::mesh::MEMBERS).unwrap(), None);
    }

    let node = &fleet.lab.nodes[1];
    let metric = |name: &str| {
        let scrape = get(&node.host.space, "127.0.0.1:9586", "/metrics").unwrap();
        scrape.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok())
    };
    fleet.wait("the metrics of the store", |_| metric("wireloom_record_published") == Some(1.0));
    assert!(metric("wireloom_membership_age_seconds").is_some_and(|age| age < 60.0));
    assert_eq!(metric("wireloom_mesh_nodes"), Some(3.0));

    // Somebody else's record does not make a node another one, however often it comes.
    let node = &fleet.lab.nodes[2];
    let guard_before = rules(node);
    for _ in 0..3 {
        for foreign in ["{}", r#"{"encrypt": false}"#] {
            etcd.put(&format!("nodes/{}", node.name), foreign);
        }
    }
    fleet.wait("the warning", |_| agent::log(node).unwrap().contains("is not what its agent published"));
    fleet.wait("the record to be restored", |_| {
        agent::log(node).unwrap().contains("the store has this node's record as it was published again")
    });
    let log = agent::log(node).unwrap();
    assert!(!log.contains("stop guarding"), "{log}");
    assert_eq!(rules(node), guard_before);

    // Without the store, traffic goes on, and so it does when an agent starts.
    let pingers = ping(&fleet);
    etcd.stop();
    fleet.agents.remove(0).terminate().unwrap();
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.wait("the outage to be reported", |fleet| misses_store(&fleet.lab.nodes[0]));
    fleet.wait("the recorded mesh to be in force", |fleet| run(&fleet.lab.nodes[0], "plan").0 == 0);
    fleet.settle(Promise::SCOPED);
    assert_none_lost(&fleet, pingers);
    fleet.wait("the agent to be ready", |fleet| run(&fleet.lab.nodes[0], "health ready").0 == 0);
    let node = &fleet.lab.nodes[1];
    let scrape = get(&node.host.space, "127.0.0.1:9586", "/metrics").unwrap();
    assert!(
        !scrape.contains("\nwireloom_store_errors_total 0\n") && scrape.contains("\nwireloom_ready 1\n"),
        "{scrape}"
    );

    // A key that is new meanwhile reaches the others when the store is back.
    let [a, b, _] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    let key = KeyPair::generate(wireloom(), b).unwrap();
    write_key(b, &key).unwrap();
    fleet.wait("the new key", |_| agent::log(b).unwrap().contains(&key.public));
    etcd.run();
    fleet.wait("the new key to be known", |_| key_of(a, &b.name) == Some(key.public.clone()));
    fleet.wait("the end of the report", |_| !misses_store(a));
    assert!(run(a, "status").1.contains("in plaintext"), "nobody warns of http://");
    fleet.settle(Promise::SCOPED);
}

/// The peers' first endpoints are dead; their second ones answer. Then a node leaves, comes back under another name,
/// and so with another key. Takes a minute: the waits are the promise.
#[cfg(feature = "slow")]
#[test]
fn a_node_leaves_without_loss_and_comes_back_with_another_name_and_key() {
    let mut fleet = fleet(2);
    let _etcd = Etcd::start(&fleet.lab);
    fleet.refuse_wireguard_over_ipv4();
    fleet.start();
    let matrix = Matrix::settle(&fleet.lab, Promise::SCOPED, Duration::from_secs(60)).unwrap();
    assert!(
        matrix.broken(Promise::SCOPED).is_empty(),
        "{}\n{:?}",
        fleet.logs(),
        matrix.broken(Promise::SCOPED)
    );
    fleet.wait_for_proofs();

    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let key = key_of(a, &b.name);
    let pingers = ping(&fleet);
    let (exit, _, errors) = run(b, "leave");
    assert_eq!(exit, 0, "{errors}\n{}", fleet.logs());
    fleet.settle(Promise::PLAINTEXT);
    assert_none_lost(&fleet, pingers);

    fleet.agents.remove(1).terminate().unwrap();
    write_settings(&fleet.lab.nodes[1], "node-z");
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    fleet.wait("a new key", |_| agent::log(b).unwrap().contains("it gets a new key"));
    fleet.wait_for_report(b, &fleet.agents[1]);
    assert!(run(b, "status").1.contains("has left the mesh"), "{}", fleet.logs());
    fleet.settle(Promise::PLAINTEXT);
    let (exit, _, errors) = run(b, "join");
    assert_eq!(exit, 0, "{errors}\n{}", fleet.logs());
    fleet.wait("the new name and key", |_| {
        let new = key_of(a, "node-z");
        new.is_some() && new != key
    });
    let matrix = Matrix::settle(&fleet.lab, Promise::SCOPED, Duration::from_secs(60)).unwrap();
    assert!(
        matrix.broken(Promise::SCOPED).is_empty(),
        "{}\n{:?}",
        fleet.logs(),
        matrix.broken(Promise::SCOPED)
    );
}
