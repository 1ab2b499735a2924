//! What a proof outlives.

use std::{thread, time::Duration};

use wireloom_lab::{Capture, Layout, Promise, agent};

use super::{DIRECT, ENCRYPTED, REFUSED, SCOPED, layout};
use crate::fixtures::fleet::Fleet;

#[test]
fn a_proof_outlives_agent_and_device_of_the_other_side() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_standing(0, "node-b", true);
    // All of node-b's Wireloom goes, and the agent of node-a starts anew.
    for agent in fleet.agents.drain(..) {
        agent.terminate().unwrap();
    }
    fleet.lab.nodes[1].run("ip link delete wg0").unwrap();
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let pingers = fleet.ping(0, 1);
    fleet.agents = vec![fleet.start_agent(0)];
    fleet.wait_for_report(&fleet.lab.nodes[0], &fleet.agents[0]);
    thread::sleep(Duration::from_secs(3));
    assert!(fleet.standing(0, "node-b").get("proven").is_some());
    assert_eq!(fleet.plain(&capture), []);
    drop(pingers);
    fleet.agents.push(fleet.start_agent(1));
    fleet.settle(Promise::SCOPED);
}

/// As after an upgrade from a version without proofs: sessions, and nothing recorded.
#[test]
fn an_agent_that_finds_sessions_takes_them_for_proofs_before_it_plans() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_standing(0, "node-b", true);
    let pingers = fleet.ping(0, 1);
    fleet.agents.remove(0).terminate().unwrap();
    for remove in
        ["rm /var/lib/wireloom/proofs.json /var/lib/wireloom/guard.nft", "nft delete table inet wireloom"]
    {
        fleet.lab.nodes[0].run(remove).unwrap();
    }
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let started = fleet.start_agent(0);
    fleet.agents.insert(0, started);
    fleet.wait_for_report(&fleet.lab.nodes[0], &fleet.agents[0]);
    fleet.wait_for_standing(0, "node-b", true);
    assert_eq!(fleet.plain(&capture), []);
    fleet.assert_none_lost(pingers);
}

#[test]
fn a_node_that_claims_the_key_of_a_proven_one_does_not_put_it_out() {
    let mut fleet = Fleet::new(Layout { nodes: 3, ..layout() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    for (node, other) in [(0, "node-b"), (2, "node-b"), (1, "node-a")] {
        fleet.wait_for_standing(node, other, true);
    }
    let pingers = fleet.ping(0, 1);
    let b = fleet.mesh.nodes[1].public_key.clone();
    let c = std::mem::replace(&mut fleet.mesh.nodes[2].public_key, b);
    for node in [0, 1] {
        fleet.mesh.write_on(&fleet.lab.nodes[node]).unwrap();
    }
    thread::sleep(Duration::from_secs(3));
    fleet.assert_none_lost(pingers);
    fleet.expect_pods(0, 1, ENCRYPTED);
    // The other one is left out, and has been proven too.
    fleet.wait_for_status(&["node-b", "node-c", "same", "node-b has proved that it has it"]);
    fleet.expect_pods(0, 2, REFUSED);
    fleet.mesh.nodes[2].public_key = c;
    fleet.edit(|_| {});
    fleet.settle(Promise::SCOPED);
}

#[test]
fn damaged_proofs_are_set_aside_and_everything_is_proven_again() {
    let mut fleet = Fleet::new(layout(), SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_standing(0, "node-b", true);
    fleet.agents.remove(0).terminate().unwrap();
    let node = &fleet.lab.nodes[0];
    node.run("truncate -s 0 /var/lib/wireloom/proofs.json").unwrap();
    let started = fleet.start_agent(0);
    fleet.agents.insert(0, started);
    fleet.wait_for_standing(0, "node-b", true);
    let log = agent::log(&fleet.lab.nodes[0]).unwrap();
    assert!(log.contains("proofs.json is damaged") && log.contains("proofs in it are lost"), "{log}");
    fleet.settle(Promise::SCOPED);
}

#[test]
fn an_unproven_node_is_direct_and_with_reject_refused() {
    let mut fleet = Fleet::without_agents(layout(), SCOPED);
    fleet.agents = vec![fleet.start_agent(0)];
    fleet.expect_pods(0, 1, DIRECT);
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    fleet.route("unproven_peers = \"reject\"");
    fleet.expect_pods(0, 1, REFUSED);
    fleet.plain(&capture);
    let pingers = fleet.ping(0, 1);
    fleet.agents.push(fleet.start_agent(1));
    // Before its first agent has read a mesh, this node knows no pool, and what its pods send of their own accord is in
    // plaintext. Until then they only answer.
    fleet.wait_until_done(&fleet.lab.nodes[1]);
    fleet.settle(Promise::SCOPED);
    assert_eq!(fleet.plain(&capture), []);
    drop(pingers);
}
