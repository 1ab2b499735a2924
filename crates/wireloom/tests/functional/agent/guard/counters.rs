//! What the guard refused is in the status, by peer, and so is a peer that does not encrypt although it is proven.

use serde_json::Value;

use super::{Mode, Watched, delete_rules, kill_agent, start_agent, status};
use crate::fixtures::fleet::{Fleet, run};

/// A counter in the status of a node, about its only peer.
fn refused(fleet: &Fleet, node: usize, counter: &str) -> u64 {
    let node = &fleet.lab.nodes[node];
    let shown: Value = serde_json::from_str(&run(node, "status --json").1).unwrap_or_default();
    shown["peers"][0][counter].as_u64().unwrap_or_default()
}

#[test]
fn what_the_guard_refuses_is_counted_for_its_peer_and_explained() {
    let mut watched = Watched::new(Mode::Scoped);
    watched.settle();
    let (name, peer) = (watched.fleet.lab.nodes[0].name.clone(), watched.fleet.lab.nodes[1].name.clone());

    // Without an agent and its rules, the guard alone refuses what goes out.
    kill_agent(&mut watched.fleet, 0);
    delete_rules(&watched.fleet.lab.nodes[0]);
    watched.fleet.wait("refused packets to the peer", |fleet| refused(fleet, 0, "refused_out") > 10);
    start_agent(&mut watched.fleet, 0);
    watched.settle();

    // The other side loses its guard, too: what it sends in plaintext is refused where it comes in.
    kill_agent(&mut watched.fleet, 1);
    watched.fleet.lab.nodes[1].run("nft delete table inet wireloom").unwrap();
    delete_rules(&watched.fleet.lab.nodes[1]);
    watched.fleet.wait("refused packets from the peer", |fleet| refused(fleet, 0, "refused_in") > 10);
    let told = format!("{peer} has not proved us");
    watched.fleet.wait("the reason", |fleet| status(&fleet.lab.nodes[0]).contains(&told));
    let shown = status(&watched.fleet.lab.nodes[0]);
    watched
        .check("the reason names what to look at", shown.contains(&format!("`wireloom status` on {peer}")));
    let row = shown.lines().find(|line| line.starts_with(&peer)).unwrap_or_default();
    watched.check("the peer's row has both counters", row.contains(" out ") && row.ends_with(" in"));
    let log = wireloom_lab::agent::log(&watched.fleet.lab.nodes[0]).unwrap();
    watched.check(&format!("the log of {name} says so, too"), log.contains(&told));
    start_agent(&mut watched.fleet, 1);
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn a_sysctl_that_takes_the_drop_from_our_routes_is_named() {
    let watched = Watched::new(Mode::Scoped);
    watched.settle();
    let node = &watched.fleet.lab.nodes[0];
    let sysctl = "net.ipv4.conf.all.ignore_routes_with_linkdown";
    node.run(&format!("sysctl -w {sysctl}=1")).unwrap();
    let persistent = super::is_userspace();
    assert_eq!(status(node).contains(&format!("`sysctl -w {sysctl}=0`")), persistent, "{}", status(node));
    node.run(&format!("sysctl -w {sysctl}=0")).unwrap();
    assert!(!status(node).contains(sysctl));
}
