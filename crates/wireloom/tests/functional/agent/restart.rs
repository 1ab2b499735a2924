//! The agent ends and comes back, and no packet is lost; `down` leaves nothing behind.

use std::time::Duration;

use wireloom_lab::{
    Capture, Content, Layout, Node, Packet, Pinger, Promise, Stream,
    agent::{self, Agent},
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const HOST: &str = "encrypt_host_traffic = true";

/// Ends the agent of node-a in this way and starts it again, twice, while TCP streams run from pod to pod.
fn no_loss_when(routing: &str, promise: Promise, end: impl Fn(Agent)) {
    let mut fleet = Fleet::new(Layout { pod_mtu: 1420, ..Layout::default() }, routing);
    fleet.settle(promise);
    let interface = |fleet: &Fleet| fleet.lab.nodes[0].run("ip -o link show wg0").unwrap();
    let before = interface(&fleet);
    let streams = [Family::V4, Family::V6].map(|family| {
        let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
        Stream::start(&a.pods[0], &b.pods[0], family).unwrap()
    });
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let flows_on = |fleet: &Fleet| {
        for stream in &streams {
            let so_far = stream.received();
            fleet.wait("the stream to flow on", |_| stream.received() > so_far + 500_000);
        }
    };
    flows_on(&fleet);
    for _ in 0..2 {
        end(fleet.agents.remove(0));
        flows_on(&fleet);
        fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
        fleet.wait("the agent to be back", |fleet| {
            let (status, shown, _) = run(&fleet.lab.nodes[0], "status");
            status == 0 && shown.contains("node-b")
        });
        flows_on(&fleet);
    }
    let reports = streams.map(|stream| stream.stop().unwrap());
    println!("{reports:?}");
    assert!(reports.iter().all(|report| report.intact && report.sent == report.received), "{reports:?}");
    assert!(reports.iter().all(|report| report.lost == 0), "{reports:?}\n{}", fleet.counters());
    // And nothing of the streams crossed the underlay in plaintext.
    let packets = capture.drain().unwrap();
    assert_eq!(packets.iter().find(|packet| matches!(packet.content, Content::Tcp { .. })), None);
    assert_eq!(interface(&fleet), before, "the interface is the one from before");
    fleet.settle(promise);
}

#[test]
pub(crate) fn an_agent_that_gets_sigterm_leaves_the_data_path_up() {
    no_loss_when(SCOPED, Promise::SCOPED, |agent| {
        assert!(agent.terminate().unwrap().success());
    });
}

#[test]
pub(crate) fn an_agent_that_is_killed_leaves_the_data_path_up() {
    no_loss_when(SCOPED, Promise::SCOPED, |agent| agent.kill().unwrap());
}

#[test]
pub(crate) fn an_agent_that_is_killed_leaves_the_data_path_up_in_host_mode() {
    no_loss_when(HOST, Promise::HOST, |agent| agent.kill().unwrap());
}

#[test]
pub(crate) fn a_restarted_agent_catches_up_on_what_changed_without_it() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.agents.clear();
    fleet.route(HOST);
    fleet.lab.nodes[0].run("ip rule del pref 99").unwrap();
    fleet.lab.nodes[1].run("ip route flush table 1").unwrap();
    fleet.start();
    fleet.settle(Promise::HOST);
}

/// The device process ends with its interface, and the agent makes both again.
#[test]
pub(crate) fn a_deleted_interface_is_made_again() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    node.run("ip link del wg0").unwrap();
    fleet.settle(Promise::SCOPED);
}

/// The mesh file does not say where node-b is. A new device that knew no more could only wait until node-b gives up
/// the session: 15 s (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, section 6.2 of the WireGuard paper).
#[test]
pub(crate) fn a_new_device_greets_its_peers_at_the_endpoints_that_the_old_one_learnt() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let mut mesh = fleet.mesh.clone();
    mesh.nodes[1].endpoint = None;
    mesh.write_on(&fleet.lab.nodes[0]).unwrap();
    fleet.start();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let pinger = Pinger::start(&b.pods[0], &a.pods[0], Family::V4, Duration::from_millis(20)).unwrap();
    fleet.wait("answers to pings", |_| pinger.answered() > 20);
    let ended = |fleet: &Fleet| {
        fleet.agents[0].reload().unwrap();
        let (_, status, _) = run(a, "status --json");
        serde_json::from_str::<serde_json::Value>(&status).unwrap()["agent"]["last_pass"].as_u64()
    };
    // The new device begins the handshake. Without that, the peer would, once it gave up the old session. An emulated
    // machine may be that late itself.
    const TRIES: usize = 3;
    let greets = || {
        // Pings are answered without the mesh as well, in plaintext.
        fleet.wait("a session", |_| {
            let shown = a.run("wg show wg0 latest-handshakes").unwrap_or_default();
            shown.split_whitespace().nth(1).is_some_and(|time| time != "0")
        });
        // The second pass that ends from now on has also begun from now on, so it has seen the session.
        for _ in 0..2 {
            let before = ended(&fleet);
            fleet.wait("the agent to know of the session", |fleet| ended(fleet) > before);
        }
        let capture = Capture::open(fleet.lab.underlay()).unwrap();
        let answered = pinger.answered();
        a.run("ip link del wg0").unwrap();
        fleet.wait("answers to pings", |_| pinger.answered() > answered + 20);
        let is_initiation = |packet: &Packet| matches!(packet.content, Content::WireGuard { message: 1, .. });
        let first = capture.drain().unwrap().into_iter().find(is_initiation);
        first.is_some_and(|packet| packet.source == a.host.addresses.of(Family::V4))
    };
    assert!((0..TRIES).any(|_| greets()), "{:?}", pinger.stop().unwrap());
}

#[test]
pub(crate) fn down_leaves_the_machine_as_it_was() {
    for rp_filter in [1, 0] {
        let layout = Layout { rp_filter, ..Layout::default() };
        let mut fleet = Fleet::without_agents(layout, HOST);
        fleet.wait_for_cables();
        let before: Vec<_> = fleet.lab.nodes.iter().map(machine).collect();
        fleet.start();
        fleet.settle(Promise::HOST);
        assert_ne!(machine(&fleet.lab.nodes[0]), before[0]);
        for agent in std::mem::take(&mut fleet.agents) {
            assert!(agent.terminate().unwrap().success());
        }
        for (node, before) in fleet.lab.nodes.iter().zip(&before) {
            agent::down(wireloom(), node).unwrap();
            assert_eq!(differences(before, &machine(node)), [""; 0], "{}", node.name);
            // And once more, with nothing left to take down.
            agent::down(wireloom(), node).unwrap();
            assert_eq!(differences(before, &machine(node)), [""; 0], "{}", node.name);
            // The key is there for the next agent, until somebody says that there will be none.
            let key = node.host.space.read(wireloom_lab::mesh::KEY).unwrap();
            assert!(key.is_some(), "{}", node.name);
            node.run(&format!("{} down --purge", wireloom().display())).unwrap();
            let left = node.run("find /var/lib/wireloom -mindepth 1").unwrap_or_default();
            assert_eq!(left, "", "{}", node.name);
        }
        fleet.settle(Promise::PLAINTEXT);
    }
}

/// A broken file must not keep anybody from taking everything down.
#[test]
pub(crate) fn down_works_with_broken_files() {
    let mut fleet = Fleet::without_agents(Layout::default(), HOST);
    fleet.wait_for_cables();
    let before = machine(&fleet.lab.nodes[0]);
    fleet.start();
    fleet.settle(Promise::HOST);
    fleet.agents.clear();
    let node = &fleet.lab.nodes[0];
    node.host.space.write(wireloom_lab::mesh::MEMBERS, "[[nodes").unwrap();
    agent::down(wireloom(), node).unwrap();
    assert_eq!(differences(&before, &machine(node)), [""; 0]);
    assert!(rules(node).is_empty());
}

/// The lines that only one of the two has.
fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let missing = |from: &[String], to: &[String], sign: char| -> Vec<String> {
        from.iter().filter(|line| !to.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    [missing(before, after, '-'), missing(after, before, '+')].concat()
}

/// All that an agent may change on a node, line by line.
fn machine(node: &Node) -> Vec<String> {
    let mut state: Vec<String> = [
        "ip -o -4 rule show",
        "ip -o -6 rule show",
        "ip -d -4 route show table all",
        "ip -d -6 route show table all",
        "ip -o address show",
        "ip -o link show",
        "nft list ruleset",
        // Without what belongs to the private key, which stays as well.
        "find /var/lib/wireloom /run/wireguard /run/wireloom ! -name wg0.timestamp ( -type f -o -type s )",
    ]
    .iter()
    .map(|line| {
        // The first start makes the run directories, and they stay.
        let _ = node.run("mkdir -p -m 0700 /run/wireguard /run/wireloom");
        node.run(line).unwrap()
    })
    .collect();
    for interface in ["all", "default", "lo", "eth0", "cni0", "pod-1"] {
        for name in ["rp_filter", "src_valid_mark", "forwarding", "send_redirects"] {
            let path = format!("net/ipv4/conf/{interface}/{name}");
            state.push(format!("{path} = {}", node.host.space.sysctl(&path).unwrap()));
        }
    }
    state.iter().flat_map(|shown| shown.lines()).map(str::to_owned).collect()
}
