//! The agent repairs what others break, takes settings while it runs, and reports what it has programmed.

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;
use wireloom_lab::{
    Layout, Node, Promise,
    agent::{self, Agent},
    mesh::{KEY, KeyPair, MEMBERS, SETTINGS, write_key},
    until,
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, LONG, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

const RULES: [&str; 2] =
    ["from 10.161.0.0/16 fwmark 0/0xa lookup 1", "from fd00:10:161::/48 fwmark 0/0xa lookup 1"];

/// Everything that the agent programs on a node, as iproute2 and `wg` print it, without what traffic changes.
fn programmed(node: &Node) -> String {
    let lines = [
        "ip rule show",
        "ip -6 rule show",
        "ip -d route show table 1",
        "ip -6 -d route show table 1",
        "ip address show dev wg0",
        "ip -d link show dev wg0",
        "wg show wg0 allowed-ips",
        "wg show wg0 listen-port",
        "wg show wg0 fwmark",
        "wg show wg0 persistent-keepalive",
    ];
    let shown = lines.map(|line| node.run(line).unwrap_or_default()).concat();
    // Without the interface's index: it changes when the interface is made anew.
    shown.lines().map(|line| line.split_once(": wg0:").map_or(line, |(_, rest)| rest)).fold(
        String::new(),
        |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        },
    )
}

fn settle(fleet: &Fleet) {
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_cables();
    fleet.wait_until_done(&fleet.lab.nodes[0]);
}

/// As [`settle`], and waits until node-a's proof of its peer is 15 s old: what is programmed then is to stay.
#[track_caller]
fn settle_for_good(fleet: &Fleet) -> String {
    settle(fleet);
    let node = &fleet.lab.nodes[0];
    fleet.wait_for_usual_keepalives(node);
    programmed(node)
}

fn status(node: &Node) -> Value {
    let (code, shown, errors) = run(node, "status --json");
    assert_eq!((code, errors.as_str()), (0, ""));
    serde_json::from_str(&shown).unwrap()
}

#[test]
fn whatever_others_break_is_repaired() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let whole = settle_for_good(&fleet);
    for damage in [
        &["ip rule del pref 99", "ip -6 rule del pref 99"][..],
        &["ip route flush table 1", "ip -6 route flush table 1"],
        &["ip rule add from 10.9.0.0/16 lookup 1 pref 98 protocol 157"],
        &["ip address add 10.9.9.9/32 dev wg0"],
        &["ip link set wg0 mtu 1280"],
        &["ip link set wg0 down"],
        &["ip link delete wg0"],
        // The kernel's WireGuard has none.
        &["rm -f /run/wireguard/wg0.sock"],
    ] {
        damage.iter().for_each(|line| drop(node.run(line).unwrap()));
        fleet.wait(&format!("{damage:?} to be repaired"), |_| programmed(node) == whole);
    }
    fleet.settle(Promise::SCOPED);
}

/// The kernel does not announce changes that are made through the control socket. A periodic pass finds them, or one
/// that is asked for.
#[test]
fn sighup_makes_the_agent_repair_what_nobody_announces() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let whole = settle_for_good(&fleet);
    node.run(&format!("wg set wg0 peer {} remove", fleet.keys[1].public)).unwrap();
    node.run("wg set wg0 fwmark 0 listen-port 7").unwrap();
    fleet.agents[0].reload().unwrap();
    fleet.wait("the device to be repaired", |_| programmed(node) == whole);
}

#[test]
fn a_running_agent_takes_every_setting() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let whole = settle_for_good(&fleet);
    let settings = format!(
        "node = \"{}\"\n[wireguard]\nlisten_port = 51999\nmtu = 1380\npersistent_keepalive = 7\n\
         [routing]\nrule_priority = 90\nfwmark = 4\n",
        node.name
    );
    node.host.space.write(SETTINGS, &settings).unwrap();
    fleet.wait("the settings to be taken", |_| {
        let shown = programmed(node);
        ["51999\n", "mtu 1380 ", "\t7\n", "90:\tfrom 10.161.0.0/16 fwmark 0/0x4 lookup 1", "\n0x4\n"]
            .iter()
            .all(|part| shown.contains(part))
            && rules(node).is_empty()
    });
    fleet.wait_until_done(node);
    node.host.space.write(SETTINGS, &format!("node = \"{}\"\n", node.name)).unwrap();
    fleet.wait("the defaults to be back", |_| programmed(node) == whole);
    fleet.settle(Promise::SCOPED);
}

#[test]
fn a_mistake_in_the_settings_leaves_the_last_good_ones_in_force() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    let whole = settle_for_good(&fleet);
    let good = node.host.space.read(SETTINGS).unwrap().unwrap();
    node.host.space.write(SETTINGS, &format!("{good}fwmark = 0\n")).unwrap();
    let told = "a firewall mark is 1 to 0xffffffff, such as \"0xa\"; its bits must be Wireloom's own; the previous \
                settings stay in force";
    fleet.wait("the mistake to be logged", |_| agent::log(node).unwrap().contains(told));
    assert_eq!(programmed(node), whole);
    let (code, shown, errors) = run(node, "status");
    let place = format!("agent.toml:{}: a firewall mark is", good.lines().count() + 1);
    assert!(code == 1 && shown.contains(&place), "{code} {shown}{errors}");
    assert!(shown.starts_with("node-a: encrypted\n") && shown.contains("node-b  up"), "{shown}");
    node.host.space.write(SETTINGS, &good).unwrap();
    // Until the agent has read the file, the status ends with 1.
    fleet.wait("the error to go from the status", |_| {
        let report: Value = serde_json::from_str(&run(node, "status --json").1).unwrap_or_default();
        report["agent"].as_object().is_some_and(|agent| agent["settings_error"].is_null())
    });
}

#[test]
fn a_new_private_key_is_taken_on_sighup() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    let key = KeyPair::generate(wireloom(), &fleet.lab.nodes[0]).unwrap();
    write_key(&fleet.lab.nodes[0], &key).unwrap();
    fleet.edit(|mesh| mesh.nodes[0].public_key = Some(key.public.clone()));
    fleet.agents[0].reload().unwrap();
    fleet.wait("the new key", |fleet| {
        fleet.lab.nodes[0].run("wg show wg0 public-key").unwrap().trim() == key.public
    });
    fleet.settle(Promise::SCOPED);
}

/// The agent leaves the endpoint of a peer that roams alone, unless the mesh file has a new one.
#[test]
fn a_new_endpoint_in_the_mesh_file_is_taken_and_a_roaming_peer_is_left_alone() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    fleet.refuse_wireguard_over_ipv4();
    assert!(fleet.agents.remove(0).terminate().unwrap().success());
    let endpoint = fleet.lab.nodes[1].endpoint(Family::V6);
    fleet.edit(|mesh| mesh.nodes[1].endpoint = Some(endpoint));
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.wait("the new endpoint", |fleet| {
        fleet.lab.nodes[0].run("wg show wg0 endpoints").unwrap().contains(&endpoint.to_string())
    });
    fleet.settle(Promise::SCOPED);

    // Where a peer roams to is nothing to repair.
    fleet.agents.remove(1).kill().unwrap();
    let [one, other] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    fleet.wait_until_done(one);
    other.run("wg set wg0 listen-port 51999").unwrap();
    let ping = format!("ping -c 1 -W 1 {}", one.pods[0].addresses.v4);
    fleet.wait("an answer to a ping", |_| other.pods[0].space.run(&ping).is_ok());
    // A proof that becomes 15 s old meanwhile changes other things.
    fleet.wait("nothing to be planned", |_| run(one, "plan").0 == 0);
    let endpoints = one.run("wg show wg0 endpoints").unwrap();
    assert!(endpoints.contains(":51999"), "{endpoints}");
}

/// The kernel would refuse IPv6 routes there, and the IPv4 rules would wait for them.
#[test]
fn a_node_with_ipv6_turned_off_encrypts_ipv4() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    node.host.space.set_sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1")]).unwrap();
    fleet.start();
    let node = &fleet.lab.nodes[0];
    fleet.wait("the rules", |_| rules(node) == RULES);
    fleet.wait_until_done(node);
    // The operator turns it off again while the agent runs.
    node.host.space.set_sysctls(&[("net/ipv6/conf/all/disable_ipv6", "1")]).unwrap();
    fleet.agents[0].reload().unwrap();
    fleet.wait_until_done(node);
    fleet.wait("the routes into the interface", |_| {
        ["-4", "-6"]
            .iter()
            .all(|family| node.run(&format!("ip {family} route show table 1")).unwrap().contains("dev wg0"))
    });
}

/// The agent may be killed between making the interface and marking it as its own.
#[test]
fn an_interface_that_a_killed_agent_did_not_mark_is_adopted() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    node.host.space.write("/var/lib/wireloom/creating", "wg0").unwrap();
    node.run(&format!("{} device wg0", wireloom().display())).unwrap();
    let before = interface_index(node);
    fleet.start();
    fleet.settle(Promise::SCOPED);
    assert_eq!(interface_index(&fleet.lab.nodes[0]), before);
    assert!(!log(&fleet).contains("ERROR"), "{}", log(&fleet));
}

/// The agent may give up on a device that is slow to come up.
#[test]
fn an_interface_that_comes_up_late_is_adopted() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    let node = &fleet.lab.nodes[0];
    let before = interface_index(node);
    node.host.space.write("/var/lib/wireloom/creating", "wg0").unwrap();
    node.run("ip link set wg0 alias nobody").unwrap();
    fleet.wait("the agent's alias on the interface", |fleet| {
        let shown = fleet.lab.nodes[0].run("ip link show wg0").unwrap();
        shown.contains("alias wireloom")
    });
    fleet.wait("the end of the creation", |_| {
        node.host.space.read("/var/lib/wireloom/creating").unwrap().is_none()
    });
    assert_eq!(interface_index(node), before);
}

/// Of our interface.
fn interface_index(node: &Node) -> u32 {
    let shown = node.run("ip -o link show wg0").unwrap();
    shown.split(':').next().and_then(|index| index.parse().ok()).unwrap_or_else(|| panic!("{shown}"))
}

fn log(fleet: &Fleet) -> String {
    agent::log(&fleet.lab.nodes[0]).unwrap()
}

/// A new name must not leave the old interface behind, with a tunnel that no agent maintains.
#[test]
fn another_interface_name_or_table_needs_a_down_first() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    let node = &fleet.lab.nodes[0];
    let settings =
        format!("node = \"{}\"\n[wireguard]\ninterface = \"wg7\"\n[routing]\ntable = 7\n", node.name);
    node.host.space.write(SETTINGS, &settings).unwrap();
    fleet.wait("the refusal", |fleet| log(fleet).contains("cannot change while the agent runs"));
    assert_eq!(rules(node), RULES);

    assert!(fleet.agents.remove(0).terminate().unwrap().success());
    let (code, _, errors) = run(node, "agent");
    assert_eq!(code, 1);
    assert!(
        errors.contains(
            "agent.toml asks for interface wg7 and table 7, but interface wg0 and table 1 are still programmed; run \
             `wireloom down` first"
        ),
        "{errors}"
    );

    // `down` removes what was programmed, whatever the settings say now.
    agent::down(wireloom(), node).unwrap();
    assert!(node.run("ip link show wg0").is_err());
    assert!(rules(node).is_empty());
    fleet.agents.insert(0, Agent::start(wireloom(), node).unwrap());
    fleet.settle(Promise::SCOPED);
    assert!(rules(node)[0].ends_with("lookup 7"));
}

#[test]
fn down_is_refused_while_the_agent_runs_and_needs_no_valid_settings() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    let node = &fleet.lab.nodes[0];
    let (code, _, errors) = run(node, "down");
    assert_eq!(code, 1);
    assert!(errors.contains("the agent is running (process "), "{errors}");
    assert_eq!(rules(node), RULES);

    fleet.agents.remove(0).kill().unwrap();
    node.host.space.write(SETTINGS, "interface = [").unwrap();
    agent::down(wireloom(), node).unwrap();
    assert!(rules(node).is_empty());
    // The time of the last handshake stays with the key.
    assert_eq!(node.run("ls --ignore=wg0.timestamp /var/lib/wireloom").unwrap(), "wg0.key\n");
    assert_eq!(node.run("ls /run/wireloom").unwrap(), "");
}

/// A device process that does not answer must not keep anything from being removed.
#[test]
fn down_ends_a_device_that_hangs() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    assert!(fleet.agents.remove(0).terminate().unwrap().success());
    let node = &fleet.lab.nodes[0];
    let device = node.run("pgrep -f device.*wg0").unwrap();
    node.run(&format!("kill -STOP {}", device.trim())).unwrap();
    agent::down(wireloom(), node).unwrap();
    assert!(node.run("ip link show wg0").is_err());
    assert!(node.run("pgrep -f device.*wg0").is_err());
    assert_eq!(node.run("ls /run/wireguard").unwrap(), "");
}

#[test]
fn status_shows_the_same_to_people_and_as_json() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    settle(&fleet);
    let node = &fleet.lab.nodes[0];
    fleet.wait_for_report(node, &fleet.agents[0]);
    let report = status(node);
    assert_eq!(report["node"], node.name);
    assert_eq!(report["mode"], "scoped");
    assert_eq!(report["interface"]["state"], "up");
    assert_eq!(report["interface"]["public_key"], fleet.keys[0].public);
    assert!(report["agent"]["pid"].as_u64().is_some());
    let peer = &report["peers"][0];
    assert_eq!(peer["name"], fleet.lab.nodes[1].name);
    // REJECT_AFTER_TIME: an older session is not used (section 6.1 of the WireGuard paper).
    assert!(peer["handshake_age_seconds"].as_u64().is_some_and(|age| age < 180), "{peer}");
    assert!(peer["received"].as_u64() > Some(0) && peer["sent"].as_u64() > Some(0), "{peer}");
    for empty in ["pending", "warnings", "errors"] {
        assert_eq!(report[empty], serde_json::json!([]), "{empty}");
    }
    let (_, shown, _) = run(node, "status");
    for part in ["scoped", "wg0, up, MTU 1420, port 51820", RULES[0], RULES[1], &fleet.lab.nodes[1].name] {
        assert!(shown.contains(part), "{part:?} is not in:\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "no colours but on a terminal");
    for path in ["/run/wireloom", "/run/wireloom/wg0.json", KEY] {
        let mode = node.run(&format!("stat -c %a {path}")).unwrap();
        assert!(mode.trim().ends_with("00"), "{path} is open to others: {mode}");
    }
}

/// At this size, work that is done more often than necessary shows.
#[test]
fn five_thousand_nodes_are_programmed_and_one_of_them_changed() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    fleet.patience = LONG;
    let node = &fleet.lab.nodes[0];
    let mut mesh = node.host.space.read(MEMBERS).unwrap().unwrap();
    // Nobody answers for them. An earlier agent has had a proof of each, so that they have routes, and elements in the
    // guard's sets.
    let mut proofs = serde_json::Map::new();
    for number in 1..5_000u32 {
        let (high, low) = (number >> 8, number & 0xff);
        // Any 32 bytes are a public key.
        let key = format!("{number:042}A=");
        let _ = write!(
            mesh,
            "\n[[nodes]]\nname = \"n{number}\"\npublic_key = \"{key}\"\nendpoint = \"172.16.{high}.{low}:51820\"\n\
             addresses = [\"172.16.{high}.{low}\"]\n\
             workloads = [\"10.{}.{low}.0/24\", \"fd00:10:162:{number:x}::/64\"]\n",
            100 + high
        );
        proofs.insert(
            format!("n{number}"),
            serde_json::json!({
                "key": key, "since": { "secs": 1_700_000_000, "nanos": 0 }, "ingress": true, "ending": null,
                "direct": false, "left": null, "addresses": [], "workloads": [], "given_up": {},
            }),
        );
    }
    node.host.space.write(MEMBERS, &mesh).unwrap();
    let proofs = serde_json::json!({ "nodes": proofs });
    node.host.space.write("/var/lib/wireloom/proofs.json", &proofs.to_string()).unwrap();
    fleet.start();
    let node = &fleet.lab.nodes[0];
    let routes = |node: &Node| node.run("ip route show table 1 dev wg0").unwrap_or_default();
    let refused = |direction: &str| {
        let shown = node.run(&format!("nft list set inet wireloom refused_{direction}")).unwrap();
        shown.matches("/24").count()
    };
    fleet.wait("the routes", |_| routes(node).lines().count() == 4_999 && rules(node).len() == 2);
    assert_eq!(node.run("wg show wg0 peers").unwrap().lines().count(), 4_999);
    fleet.wait_until_done(node);
    assert_eq!(["out4", "in4"].map(refused), [4_999; 2]);

    assert!(mesh.contains("\"10.100.77.0/24\""));
    node.host.space.write(MEMBERS, &mesh.replace("\"10.100.77.0/24\"", "\"10.250.77.0/24\"")).unwrap();
    fleet.wait("the changed node", |_| routes(node).contains("10.250.77.0/24"));
    // What it gave up is not in plaintext at once: others may not have heard of it.
    assert!(routes(node).contains("10.100.77.0/24"));
    fleet.wait_until_done(node);
    assert_eq!(["out4", "in4"].map(refused), [5_000; 2]);
    until(Duration::from_secs(60) + LONG, "what it gave up to go", || {
        (!routes(node).contains("10.100.77.0/24")).then_some(())
    })
    .unwrap();
    fleet.wait_until_done(node);
    assert_eq!(["out4", "in4"].map(refused), [4_999; 2]);
    fleet.print_what_the_agents_took();
}
