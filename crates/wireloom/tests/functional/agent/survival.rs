//! The device process dies, with the agent or without it: its interface stays, and nothing leaves in plaintext.

use std::time::Duration;

use wireloom_lab::{
    Capture, FAMILIES, Layout, Node, Pinger, Promise,
    agent::{self, Agent},
    probe::{Exchange, probe},
};

use super::matrix::is_from_pod_to_pod;
use crate::{
    fixtures::device::{has_interface, process, processes},
    fixtures::fleet::Fleet,
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// The interface's index, type, MTU and addresses.
fn interface(node: &Node) -> String {
    let shown =
        node.run("ip -d -o link show wg0").unwrap() + &node.run("ip -o address show dev wg0").unwrap();
    // Without its state, which the end of its device changes.
    let stays = |word: &&str| !word.starts_with('<') && !["UP", "DOWN", "UNKNOWN"].contains(word);
    shown.split_whitespace().filter(stays).collect::<Vec<_>>().join(" ")
}

/// Whether there are routes into the interface, all of them without a carrier.
fn routes_are_linkdown(node: &Node) -> bool {
    ["-4", "-6"].iter().all(|family| {
        let shown = node.run(&format!("ip {family} route show table 1")).unwrap();
        let into: Vec<_> = shown.lines().filter(|line| line.contains("dev wg0")).collect();
        !into.is_empty() && into.iter().all(|line| line.contains("linkdown"))
    })
}

/// Kills the first node's agent, and ends its device with this signal.
fn end_agent_and_device(fleet: &mut Fleet, signal: &str) {
    fleet.agents.remove(0).kill().unwrap();
    let node = &fleet.lab.nodes[0];
    node.run(&format!("kill -{signal} {}", process(node))).unwrap();
    fleet.wait("the routes into the interface to lose their carrier", |_| routes_are_linkdown(node));
    // At SIGTERM a device still saves what the next one needs.
    fleet.wait("the device to end", |_| processes(node).is_empty());
}

#[test]
pub(crate) fn without_agent_and_device_nothing_leaves_in_plaintext_until_an_agent_returns() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let before = interface(&fleet.lab.nodes[0]);
    for signal in ["KILL", "TERM"] {
        end_agent_and_device(&mut fleet, signal);
        let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
        assert_eq!(interface(a), before, "{signal}");
        let capture = Capture::open(fleet.lab.underlay()).unwrap();
        for family in FAMILIES {
            for exchange in [Exchange::Ping, Exchange::Udp] {
                for (from, to) in [(a, b), (b, a)] {
                    let cell =
                        probe(fleet.lab.underlay(), &from.pods[0], &to.pods[0], family, exchange).unwrap();
                    assert!(!cell.reachable, "{signal}: {} → {}, {family:?}: {cell:?}", from.name, to.name);
                }
            }
        }
        let packets = capture.drain().unwrap();
        assert_eq!(packets.iter().find(|packet| is_from_pod_to_pod(&fleet, packet)), None, "{signal}");
        fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
        fleet.settle(Promise::SCOPED);
        fleet.wait_until_done(&fleet.lab.nodes[0]);
        assert_eq!(interface(&fleet.lab.nodes[0]), before, "{signal}");
    }
}

#[test]
pub(crate) fn a_device_that_ends_is_replaced_behind_the_same_interface() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let agent = fleet.agents[0].pid_on_node().unwrap();
    let devices = || processes(a).into_iter().filter(|id| Some(*id) != agent).collect::<Vec<_>>();
    let before = interface(a);
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let pingers = FAMILIES
        .map(|family| Pinger::start(&a.pods[0], &b.pods[0], family, Duration::from_millis(10)).unwrap());
    for signal in ["KILL", "TERM"] {
        let [device] = devices()[..] else { panic!("{:?}", devices()) };
        a.run(&format!("kill -{signal} {device}")).unwrap();
        fleet.wait("a new device", |_| !devices().is_empty() && !devices().contains(&device));
        let answered = pingers.each_ref().map(Pinger::answered);
        fleet.wait("answers through the new device", |_| {
            pingers.iter().zip(answered).all(|(pinger, before)| pinger.answered() > before + 20)
        });
        fleet.wait_until_done(a);
        assert_eq!(interface(a), before, "{signal}");
    }
    for pinger in pingers {
        println!("figure: two devices ended: {:?}", pinger.stop().unwrap());
    }
    let packets = capture.drain().unwrap();
    assert_eq!(packets.iter().find(|packet| is_from_pod_to_pod(&fleet, packet)), None);
    fleet.settle(Promise::SCOPED);
}

#[test]
pub(crate) fn down_removes_an_interface_that_outlived_its_device() {
    // Nobody answers for the peer, so it is never proven. With "reject" it has routes all the same.
    let mut fleet = Fleet::new(Layout { nodes: 1, ..Layout::default() }, "unproven_peers = \"reject\"");
    fleet.edit(|mesh| {
        let mut peer = mesh.nodes[0].clone();
        peer.name = "peer".into();
        peer.public_key = Some("6YyJ8hm3h0ySUXUQeQZxnHSUDkmqZUz5LTo9s1e0NxA=".into());
        peer.addresses = Vec::new();
        peer.workloads = vec!["10.161.9.0/24".parse().unwrap(), "fd00:10:161:9::/64".parse().unwrap()];
        mesh.nodes.push(peer);
    });
    let into = |node: &Node| {
        ["-4", "-6"].map(|family| node.run(&format!("ip {family} route show table 1")).unwrap_or_default())
    };
    fleet.wait("the routes", |fleet| into(&fleet.lab.nodes[0]).iter().all(|shown| shown.contains("dev wg0")));
    end_agent_and_device(&mut fleet, "KILL");
    let node = &fleet.lab.nodes[0];
    agent::down(wireloom(), node).unwrap();
    assert!(!has_interface(node));
    assert_eq!(into(node), ["", ""]);
}
