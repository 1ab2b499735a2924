//! The mesh file changes, and the mesh follows; a bad edit changes nothing, and neither does half of one.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use wireloom_lab::{
    Capture, Cell, Content, FAMILIES, Layout, PATIENCE, Packet, Pinger, Place, Promise, Wire,
    agent::{self, Agent},
    mesh::{KeyPair, MEMBERS, SETTINGS, write_key},
    probe::{Exchange, probe},
    until,
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };
const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };
const REFUSED: Cell = Cell { reachable: false, wire: Wire::Nothing };

impl Fleet {
    /// Waits until pings between two places give the expected result, over both families.
    #[track_caller]
    pub(super) fn expect(&self, from: &Place, to: &Place, expected: Cell) {
        for family in FAMILIES {
            let what = format!("{} to {} over {family:?}: {expected}", from.name, to.name);
            self.wait(&what, |fleet| {
                probe(fleet.lab.underlay(), from, to, family, Exchange::Ping).unwrap() == expected
            });
        }
    }

    /// As [`Fleet::expect`], between the first pods of two nodes.
    #[track_caller]
    pub(super) fn expect_pods(&self, from: usize, to: usize, expected: Cell) {
        self.expect(&self.lab.nodes[from].pods[0], &self.lab.nodes[to].pods[0], expected);
    }

    /// Waits until `wireloom status` on node-a says all of this.
    #[track_caller]
    pub(super) fn wait_for_status(&self, words: &[&str]) {
        self.wait(&format!("status to say {words:?}"), |fleet| {
            let (_, shown, _) = run(&fleet.lab.nodes[0], "status");
            words.iter().all(|word| shown.contains(word))
        });
    }
}

fn three_nodes(routing: &str) -> Fleet {
    Fleet::without_agents(Layout { nodes: 3, ..Layout::default() }, routing)
}

#[test]
pub(crate) fn a_node_without_a_key_is_reached_in_plaintext() {
    let mut fleet = three_nodes(SCOPED);
    let key = fleet.mesh.nodes[2].public_key.take();
    fleet.edit(|_| {});
    fleet.start();
    fleet.expect_pods(0, 1, ENCRYPTED);
    fleet.expect_pods(0, 2, DIRECT);
    fleet.expect_pods(2, 1, DIRECT);
    let table = fleet.lab.nodes[0].run("ip route show table 1").unwrap();
    assert!(table.contains("throw 10.161.3.0/24"), "{table}");
    fleet.wait_for_status(&["node-c"]);
    // When it gets its key, everything between pods is encrypted.
    fleet.edit(|mesh| mesh.nodes[2].public_key = key);
    fleet.settle(Promise::SCOPED);
}

#[test]
pub(crate) fn a_node_without_a_key_is_not_reached_where_the_settings_reject_it() {
    let mut fleet = three_nodes("unproven_peers = \"reject\"");
    fleet.mesh.nodes[2].public_key = None;
    fleet.edit(|_| {});
    fleet.start();
    fleet.expect_pods(0, 1, ENCRYPTED);
    fleet.expect_pods(0, 2, REFUSED);
    // And what is for a pool address that no node has does not leave in plaintext either. Refusing is the firewall's
    // work: the table has nothing for it.
    for (family, stray) in FAMILIES.into_iter().zip(STRAYS) {
        let gateway = fleet.lab.nodes[1].endpoint(family).ip();
        fleet.lab.nodes[0].run(&format!("ip route add {stray} via {gateway}")).unwrap();
    }
    assert_eq!(strays_that_leave(&fleet), [false; 2]);
    let tables = ["-4", "-6"]
        .map(|family| fleet.lab.nodes[0].run(&format!("ip {family} route show table 1")).unwrap())
        .concat();
    assert!(tables.contains("throw 10.161.3.0/24") && !tables.contains("unreachable"), "{tables}");
    // Switched live, both ways.
    fleet.route("unproven_peers = \"plaintext\"");
    fleet.expect_pods(0, 2, DIRECT);
    assert_eq!(strays_that_leave(&fleet), [true; 2]);
    fleet.route("unproven_peers = \"reject\"");
    fleet.expect_pods(0, 2, REFUSED);
    assert_eq!(strays_that_leave(&fleet), [false; 2]);
}

/// Addresses of the pools that no node has.
const STRAYS: [&str; 2] = ["10.161.200.1", "fd00:10:161:c8::1"];

/// Whether what node-a's first pod sends to [`STRAYS`] leaves the node as it is.
fn strays_that_leave(fleet: &Fleet) -> [bool; 2] {
    STRAYS.map(|stray| {
        let capture = Capture::open(fleet.lab.underlay()).unwrap();
        // Nobody answers.
        let _ = fleet.lab.nodes[0].pods[0].space.run(&format!("ping -c 1 -W 1 {stray}"));
        capture.drain().unwrap().iter().any(|packet| packet.destination.to_string() == stray)
    })
}

#[test]
pub(crate) fn nodes_with_one_key_are_both_left_out_and_reported() {
    // Neither has proved that it has the key: the one that has would keep it.
    let mut fleet = three_nodes(SCOPED);
    let (b, c) = (fleet.mesh.nodes[1].public_key.clone(), fleet.mesh.nodes[2].public_key.clone());
    fleet.edit(|mesh| mesh.nodes[2].public_key = b);
    fleet.start();
    fleet.expect_pods(0, 1, DIRECT);
    fleet.expect_pods(0, 2, DIRECT);
    fleet.wait_for_status(&["node-b", "node-c", "same"]);
    fleet.edit(|mesh| mesh.nodes[2].public_key = c);
    fleet.settle(Promise::SCOPED);
}

#[test]
pub(crate) fn a_changed_key_is_followed() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    // node-b starts again with another key, and the mesh file says so a moment later.
    let key = KeyPair::generate(wireloom(), &fleet.lab.nodes[1]).unwrap();
    drop(fleet.agents.remove(1));
    write_key(&fleet.lab.nodes[1], &key).unwrap();
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.edit(|mesh| mesh.nodes[1].public_key = Some(key.public.clone()));
    fleet.wait("the new key in place of the old on node-a", |fleet| {
        fleet.lab.nodes[0].run("wg show wg0 peers").unwrap().trim() == key.public
    });
    fleet.settle(Promise::SCOPED);
}

#[test]
pub(crate) fn a_changed_endpoint_is_followed() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    // From IPv4 to IPv6: both lead to the same node.
    fleet.refuse_wireguard_over_ipv4();
    let endpoint = fleet.lab.nodes[1].endpoint(Family::V6);
    fleet.edit(|mesh| mesh.nodes[1].endpoint = Some(endpoint));
    fleet.wait("the endpoint on node-a", |fleet| {
        let shown = fleet.lab.nodes[0].run("wg show wg0 endpoints").unwrap();
        shown.trim().ends_with(&endpoint.to_string())
    });
    fleet.settle(Promise::SCOPED);
}

#[test]
pub(crate) fn a_removed_node_leaves_no_trace() {
    let mut fleet = three_nodes(SCOPED);
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let gone = fleet.mesh.nodes[2].public_key.clone().unwrap();
    let removed = Instant::now();
    fleet.edit(|mesh| {
        mesh.nodes.pop();
    });
    let node = &fleet.lab.nodes[0];
    fleet.wait("node-c to go from node-a's device", |_| {
        !node.run("wg show wg0 peers").unwrap().contains(&gone)
    });
    let left = || {
        let places = [
            "ip -4 route show table 1",
            "ip -6 route show table 1",
            "nft list table inet wireloom",
            "cat /var/lib/wireloom/proofs.json",
        ];
        let shown = places.map(|line| node.run(line).unwrap()).concat();
        ["161.3.", "161:3:", "node-c"].iter().any(|trace| shown.contains(trace))
    };
    // It was proven, so what it gave up is refused until another node claims it or 60 s have passed. An emulated
    // machine may need longer to look even once.
    let is_late = || removed.elapsed() > Duration::from_secs(50);
    let (from, to) = (&fleet.lab.nodes[0].pods[0], &fleet.lab.nodes[2].pods[0]);
    for family in FAMILIES {
        let mut seen = None;
        fleet.wait("what it gave up to be refused", |fleet| {
            let cell = probe(fleet.lab.underlay(), from, to, family, Exchange::Ping).unwrap();
            let is_late = is_late();
            seen = (!is_late).then_some(cell).or(seen);
            is_late || cell == REFUSED
        });
        assert!(seen.is_none_or(|cell| cell == REFUSED), "{seen:?}");
    }
    assert!(left() || is_late());
    until(Duration::from_secs(60) + PATIENCE, "every trace to go", || (!left()).then_some(())).unwrap();
    fleet.expect_pods(0, 1, ENCRYPTED);
}

#[test]
pub(crate) fn a_borrowed_address_moves_between_nodes() {
    let mut fleet = three_nodes(SCOPED);
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let borrowed = fleet.lab.lend_address(0, 77, 1).unwrap();
    let mut home = 1;
    for next in [1, 2, 0, 2] {
        if next != home {
            fleet.lab.move_address(borrowed, next).unwrap();
        }
        fleet.edit(|mesh| {
            for node in &mut mesh.nodes {
                node.workloads.retain(|prefix| !borrowed.single().contains(prefix));
            }
            mesh.nodes[next].workloads.extend(borrowed.single());
        });
        home = next;
        let pod = fleet.lab.nodes[home].pods.last().unwrap();
        assert_eq!(pod.addresses, borrowed);
        for from in (0..3).filter(|n| *n != home) {
            fleet.expect(&fleet.lab.nodes[from].pods[0], pod, ENCRYPTED);
            fleet.expect(pod, &fleet.lab.nodes[from].pods[0], ENCRYPTED);
        }
        // The rest of the block has stayed where it was.
        fleet.expect_pods(1, 0, ENCRYPTED);
    }
}

/// Every kind of mistake, and the words that the agent's status must contain for it.
#[test]
fn every_mistake_in_the_mesh_file_is_reported_and_the_last_good_state_stays() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let good = a.host.space.read(MEMBERS).unwrap().unwrap();
    let key = &fleet.keys[1].public;
    let mistakes: [(String, &[&str]); 12] = [
        (format!("{good}\ncolour = \"red\"\n"), &["colour"]),
        (good.replace("10.161.0.0/16", "10.161.0.0/33"), &["10.161.0.0/33"]),
        (good.replace("10.161.2.0/24", "10.161.2.7/24"), &["10.161.2.7/24", "10.161.2.0/24"]),
        (good.replace(key.as_str(), "bm90IGEga2V5"), &["key"]),
        (good.replace("192.168.1.2:51820", "192.168.1.2"), &["192.168.1.2", "endpoint"]),
        (good.replace("node-b", "node-a"), &["node-a"]),
        (good.replace("10.161.2.0/24", "10.161.1.0/24"), &["10.161.1.0/24"]),
        (good.replace("10.161.2.0/24", "10.161.1.128/25"), &["10.161.1.128/25"]),
        (good.replace("fd00:10:161:2::/64", "fd00:10:161:1::/64"), &["fd00:10:161:1::/64"]),
        (good.replace("[[nodes]]", "[[nodes"), &[]),
        (String::new(), &["empty"]),
        (good.replace("192.168.1.2\"", "192.168.1.1\""), &["192.168.1.1"]),
    ];
    let pinger = Pinger::start(&a.pods[0], &b.pods[0], Family::V4, Duration::from_millis(10)).unwrap();
    let tables = || {
        let lines = [
            "ip rule show",
            "ip -6 rule show",
            "ip route show table 1",
            "ip -6 route show table 1",
            "wg show wg0 allowed-ips",
        ];
        lines.map(|line| a.run(line).unwrap())
    };
    let before = tables();
    for (text, names) in mistakes {
        assert_ne!(text, good, "not a mistake: {names:?}");
        a.host.space.write(MEMBERS, &text).unwrap();
        let located = if text.is_empty() { "mesh.toml" } else { "mesh.toml:" };
        fleet.wait_for_status(&[&[located][..], names].concat());
        assert_eq!(tables(), before, "{names:?}");
        a.host.space.write(MEMBERS, &good).unwrap();
        until(PATIENCE, "the report to go", || (!run(a, "status").1.contains("mesh.toml:")).then_some(()))
            .unwrap();
    }
    // The file itself gone is a mistake as well.
    a.run(&format!("rm {MEMBERS}")).unwrap();
    fleet.wait_for_status(&["mesh.toml"]);
    assert_eq!(tables(), before);
    let report = pinger.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.counters());
    // A good edit is taken: the file is still watched.
    let other_pool = good.replace("10.161.0.0/16", "10.160.0.0/15");
    a.host.space.write(MEMBERS, &other_pool).unwrap();
    fleet.wait("the edited pool", |fleet| {
        rules(&fleet.lab.nodes[0])[0] == "from 10.160.0.0/15 fwmark 0/0xa lookup 1"
    });
}

/// Before it has read a good mesh file, an agent removes nothing and makes nothing that depends on it.
#[test]
fn an_agent_without_a_mesh_file_waits_for_one() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for node in &fleet.lab.nodes {
        node.run(&format!("rm {MEMBERS}")).unwrap();
    }
    fleet.start();
    fleet.wait("the agent to log what it waits for", |fleet| {
        agent::log(&fleet.lab.nodes[0]).unwrap().contains(MEMBERS)
    });
    assert!(rules(&fleet.lab.nodes[0]).is_empty());
    fleet.edit(|_| {});
    fleet.settle(Promise::SCOPED);
}

/// A file on a node that is being written in place.
fn open_in_place(fleet: &Fleet, node: usize, path: &str) -> File {
    let open = || OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    fleet.lab.nodes[node].host.space.inside(open).unwrap()
}

/// Between a node's name and its key, the file is valid TOML for a node without a key.
#[test]
fn a_mesh_file_written_in_place_is_obeyed_once_it_is_closed() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let good = a.host.space.read(MEMBERS).unwrap().unwrap();
    let text = good.replace("10.161.0.0/16", "10.160.0.0/15");
    let name = "name = \"node-b\"\n";
    let (before, after) = text.split_at(text.find(name).unwrap() + name.len());
    let pingers = FAMILIES
        .map(|family| Pinger::start(&a.pods[0], &b.pods[0], family, Duration::from_millis(10)).unwrap());
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let begun = Instant::now();
    let mut file = open_in_place(&fleet, 0, MEMBERS);
    file.write_all(before.as_bytes()).unwrap();
    thread::sleep(Duration::from_secs(3));
    assert_eq!(rules(a)[0], "from 10.161.0.0/16 fwmark 0/0xa lookup 1");
    let complains = agent::log(a).unwrap().contains("mesh.toml");
    // After 5 s it does.
    assert!(!complains || begun.elapsed() > Duration::from_millis(4500), "three seconds are no reason");
    fleet.wait_for_status(&[
        "a program has been writing /etc/wireloom/mesh.toml",
        "the previous mesh stays in force",
    ]);
    assert!(agent::log(a).unwrap().contains("WARN"));
    file.write_all(after.as_bytes()).unwrap();
    let closed = Instant::now();
    drop(file);
    fleet.wait("the edited pool", |fleet| {
        rules(&fleet.lab.nodes[0])[0] == "from 10.160.0.0/15 fwmark 0/0xa lookup 1"
    });
    println!("figure: in force {} ms after the close", closed.elapsed().as_millis());
    until(PATIENCE, "the report to go", || (!run(a, "status").1.contains("mesh.toml")).then_some(()))
        .unwrap();
    for pinger in pingers {
        let report = pinger.stop().unwrap();
        assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.counters());
    }
    let packets = capture.drain().unwrap();
    let encrypted = |packet: &&Packet| matches!(packet.content, Content::WireGuard { .. });
    assert!(packets.iter().filter(encrypted).count() > 100, "{} packets", packets.len());
    let plain = packets.iter().filter(|packet| matches!(packet.content, Content::Echo { .. })).count();
    assert_eq!(plain, 0, "pings in plaintext");
}

/// Half of the settings is the settings with defaults for the other half. An absent file is all defaults.
#[test]
fn settings_written_in_place_are_obeyed_once_they_are_closed() {
    let fleet = Fleet::new(Layout::default(), "encrypt_host_traffic = true");
    fleet.settle(Promise::HOST);
    let node = &fleet.lab.nodes[0];
    let good = node.host.space.read(SETTINGS).unwrap().unwrap();
    let half = good.split("encrypt_host_traffic").next().unwrap();
    let host_mode = rules(node);
    let mut file = open_in_place(&fleet, 0, SETTINGS);
    file.write_all(half.as_bytes()).unwrap();
    fleet.wait_for_status(&[
        "a program has been writing /etc/wireloom/agent.toml",
        "the previous settings stay in force",
    ]);
    fleet.agents[0].reload().unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(rules(node), host_mode);
    drop(file);
    // Now the file is whole, and scoped mode is the default.
    fleet.wait("scoped rules", |fleet| rules(&fleet.lab.nodes[0]) != host_mode);
    node.host.space.write(SETTINGS, &good).unwrap();
    fleet.wait("host mode", |fleet| rules(&fleet.lab.nodes[0]) == host_mode);
    node.run(&format!("rm {SETTINGS}")).unwrap();
    let absent = ["cannot read /etc/wireloom/agent.toml", "the previous settings stay in force"];
    let settings_error = || {
        let status: Value = serde_json::from_str(&run(node, "status --json").1).unwrap();
        status["agent"]["settings_error"].as_str().unwrap_or_default().to_owned()
    };
    fleet.wait("the absent file", |_| absent.iter().all(|words| settings_error().contains(words)));
    fleet.agents[0].reload().unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(rules(node), host_mode);
    assert!(settings_error().contains(absent[0]));
    node.host.space.write(SETTINGS, &good).unwrap();
    fleet.wait("the report to go", |_| settings_error().is_empty());
    fleet.settle(Promise::HOST);
}

/// What may lie where a file should, how it is made at `FILE`, and what the agent calls it.
const NO_FILES: [(&str, &str); 4] = [
    ("mkdir FILE", "mesh.toml is a directory, not a file"),
    ("mkfifo FILE", "mesh.toml is a FIFO, not a file"),
    ("ln -s /dev/zero FILE", "mesh.toml is a character device, not a file"),
    ("truncate -s 10G FILE", "mesh.toml has 10737418240 bytes"),
];

#[test]
fn what_is_no_mesh_file_is_refused_and_the_next_file_is_read() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let good = fleet.lab.nodes[0].host.space.read(MEMBERS).unwrap().unwrap();
    let remove = |fleet: &Fleet| {
        fleet.lab.nodes[0].run(&format!("rm -rf {MEMBERS}")).unwrap();
    };
    let (a, b) = (&fleet.lab.nodes[0].pods[0], &fleet.lab.nodes[1].pods[0]);
    let pinger = Pinger::start(a, b, Family::V4, Duration::from_millis(10)).unwrap();
    for (make, words) in NO_FILES {
        remove(&fleet);
        fleet.lab.nodes[0].run(&make.replace("FILE", MEMBERS)).unwrap();
        fleet.wait_for_status(&[words, "the previous mesh stays in force"]);
        remove(&fleet);
        fleet.lab.nodes[0].host.space.write(MEMBERS, &good).unwrap();
        until(PATIENCE, "the report to go", || {
            (!run(&fleet.lab.nodes[0], "status").1.contains("mesh.toml")).then_some(())
        })
        .unwrap();
    }
    let report = pinger.stop().unwrap();
    assert_eq!(report.lost, 0, "{report:?}\n{}", fleet.counters());
    // At the start, an agent waits for a file.
    for (make, words) in NO_FILES {
        fleet.agents.remove(0).terminate().unwrap();
        remove(&fleet);
        fleet.lab.nodes[0].run(&make.replace("FILE", MEMBERS)).unwrap();
        fleet.lab.nodes[0].run("truncate -s 0 /run/agent.log").unwrap();
        fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
        fleet.wait(words, |fleet| agent::log(&fleet.lab.nodes[0]).unwrap().contains(words));
        let status = fs::read_to_string(format!("/proc/{}/status", fleet.agents[0].pid())).unwrap();
        let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        let kib: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib < 100 << 10, "{make}: {peak}");
        remove(&fleet);
        fleet.lab.nodes[0].host.space.write(MEMBERS, &good).unwrap();
        fleet.wait("the mesh", |fleet| {
            agent::log(&fleet.lab.nodes[0]).unwrap().contains("the mesh has 2 nodes")
        });
    }
    fleet.settle(Promise::SCOPED);
}

#[test]
fn settings_that_are_no_file_keep_the_agent_from_starting() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for (make, words) in NO_FILES {
        let node = &fleet.lab.nodes[0];
        node.run(&format!("rm -rf {SETTINGS}")).unwrap();
        node.run(&make.replace("FILE", SETTINGS)).unwrap();
        let mut started = Agent::start(wireloom(), node).unwrap();
        let ended = until(PATIENCE, "the agent to end", || started.ended().unwrap()).unwrap();
        assert!(!ended.success());
        let words = words.replace("mesh.toml", "agent.toml");
        let log = agent::log(node).unwrap();
        assert!(log.contains(&words), "{log}");
    }
    fleet.lab.nodes[0].run(&format!("rm -rf {SETTINGS}")).unwrap();
    fleet.route(SCOPED);
    fleet.start();
    fleet.settle(Promise::SCOPED);
}
