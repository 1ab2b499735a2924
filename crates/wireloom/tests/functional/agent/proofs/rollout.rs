//! A fleet is rolled out node by node, and taken back, without losing a packet.

use std::{thread, time::Duration};

use wireloom_lab::{Capture, FAMILIES, Layout, Promise, Stream, mesh::MEMBERS};

use super::{DIRECT, ENCRYPTED, SCOPED, layout};
use crate::fixtures::fleet::{Fleet, run};

#[test]
fn half_a_fleet_is_in_plaintext_and_becomes_encrypted_without_losing_a_packet() {
    let mut fleet = Fleet::without_agents(layout(), SCOPED);
    let pingers = fleet.ping(0, 1);
    let first = fleet.start_agent(0);
    fleet.wait_for_standing(0, "node-b", false);
    fleet.expect_pods(0, 1, DIRECT);
    fleet.expect_pods(1, 0, DIRECT);
    fleet.wait("the status to say why", |fleet| {
        let shown = run(&fleet.lab.nodes[0], "status").1;
        shown.contains("\nnode-b ")
            && shown.contains("unproven since")
            && shown.contains("because it has not answered")
    });
    let second = fleet.start_agent(1);
    fleet.agents = vec![first, second];
    fleet.wait_for_standing(0, "node-b", true);
    fleet.wait_for_standing(1, "node-a", true);
    // Until both have begun to refuse plaintext, 15 s after the proof.
    thread::sleep(Duration::from_secs(18));
    fleet.assert_none_lost(pingers);
    fleet.settle(Promise::SCOPED);
}

/// With every kind of source validation in one fleet, at any distance in time, and TCP streams with segments that the
/// tunnel has to make smaller.
#[test]
fn a_fleet_is_rolled_out_and_taken_back_in_any_order_without_losing_a_packet() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 6, ..layout() }, SCOPED);
    for (node, rp_filter) in fleet.lab.nodes.iter().zip(["0", "1", "2"].into_iter().cycle()) {
        for interface in ["all", "eth0"] {
            let sysctl = format!("net/ipv4/conf/{interface}/rp_filter");
            node.host.space.set_sysctls(&[(&sysctl, rp_filter)]).unwrap();
        }
    }
    let pingers = (0..6).flat_map(|node| fleet.ping(node, (node + 1) % 6)).collect();
    let pod = |node: usize| &fleet.lab.nodes[node].pods[0];
    let streams = FAMILIES.map(|family| Stream::start(pod(0), pod(3), family).unwrap());

    for (node, pause) in [(3, 50), (0, 5000), (5, 300), (2, 1000), (4, 0), (1, 2000)] {
        let started = fleet.start_agent(node);
        fleet.agents.push(started);
        thread::sleep(Duration::from_millis(pause));
    }
    fleet.wait_for_proofs();
    // Until all have begun to refuse plaintext, 15 s after the proof.
    thread::sleep(Duration::from_secs(18));
    fleet.expect_pods(0, 3, ENCRYPTED);

    for (node, pause) in [(4, 300), (1, 0), (0, 2000), (2, 50), (5, 0), (3, 0)] {
        fleet.edit(|mesh| mesh.nodes[node].encrypt = false);
        thread::sleep(Duration::from_millis(pause));
    }
    for (node, other) in [(0, "node-d"), (3, "node-a"), (5, "node-e"), (1, "node-c")] {
        fleet.wait_for_standing(node, other, false);
    }
    fleet.expect_pods(0, 3, DIRECT);
    let before = streams.each_ref().map(Stream::received);
    fleet.wait("the streams to go on", |_| {
        streams.iter().zip(before).all(|(it, before)| it.received() > before)
    });
    for stream in streams {
        assert!(stream.stop().unwrap().intact);
    }
    fleet.assert_none_lost(pingers);
}

#[test]
fn a_node_that_says_so_goes_direct_again_without_losing_a_packet() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    thread::sleep(Duration::from_secs(18));
    let pingers = fleet.ping(0, 1);
    // The two hear of it five seconds apart.
    fleet.mesh.nodes[1].encrypt = false;
    fleet.mesh.write_on(&fleet.lab.nodes[1]).unwrap();
    thread::sleep(Duration::from_secs(5));
    fleet.mesh.write_on(&fleet.lab.nodes[0]).unwrap();
    fleet.wait_for_standing(0, "node-b", false);
    fleet.wait_for_standing(1, "node-a", false);
    fleet.expect_pods(0, 1, DIRECT);
    fleet.expect_pods(1, 0, DIRECT);
    fleet.assert_none_lost(pingers);
    // And encrypted again.
    let pingers = fleet.ping(0, 1);
    fleet.edit(|mesh| mesh.nodes[1].encrypt = true);
    fleet.expect_pods(0, 1, ENCRYPTED);
    fleet.expect_pods(1, 0, ENCRYPTED);
    thread::sleep(Duration::from_secs(18));
    fleet.assert_none_lost(pingers);
}

#[test]
fn nobody_is_asked_while_this_machine_does_not_forward() {
    let mut fleet = Fleet::without_agents(layout(), SCOPED);
    fleet.lab.nodes[0].run("sysctl -qw net.ipv6.conf.all.forwarding=0").unwrap();
    fleet.agents = vec![fleet.start_agent(0)];
    fleet.wait("the status to say why", |fleet| {
        run(&fleet.lab.nodes[0], "status").1.contains("this machine does not forward IPv6")
    });
    fleet.lab.nodes[0].run("sysctl -qw net.ipv6.conf.all.forwarding=1").unwrap();
    fleet.agents.push(fleet.start_agent(1));
    fleet.settle(Promise::SCOPED);
}

#[test]
fn down_names_who_still_expects_encryption_and_forgets_the_proofs() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.agents.remove(0).terminate().unwrap();
    let (status, said, _) = run(&fleet.lab.nodes[0], "down");
    assert_eq!(status, 0);
    assert!(said.contains("still expect encryption") && said.contains("node-b"), "{said}");
    let left = fleet.lab.nodes[0].run("ls /var/lib/wireloom").unwrap();
    assert!(!left.contains("proofs.json"), "{left}");
}

#[test]
fn nothing_of_a_proven_node_is_in_plaintext_when_its_record_changes() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let pingers = fleet.ping(0, 1);
    // The mesh file of node-a loses node-b's key, then all of node-b.
    let good = fleet.lab.nodes[0].host.space.read(MEMBERS).unwrap().unwrap();
    fleet.mesh.nodes[1].public_key = None;
    fleet.mesh.write_on(&fleet.lab.nodes[0]).unwrap();
    fleet.wait("node-b to be gone from the device", |fleet| {
        fleet.lab.nodes[0].run("wg show wg0 peers").unwrap().trim().is_empty()
    });
    thread::sleep(Duration::from_secs(2));
    fleet.mesh.nodes.pop();
    fleet.mesh.write_on(&fleet.lab.nodes[0]).unwrap();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(fleet.plain(&capture), []);
    fleet.lab.nodes[0].host.space.write(MEMBERS, &good).unwrap();
    fleet.settle(Promise::SCOPED);
    assert_eq!(fleet.plain(&capture), []);
    drop(pingers);
}
