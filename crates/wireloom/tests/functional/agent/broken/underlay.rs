//! Encrypted packets do not arrive: it is said of whom, and what may be the matter.

use std::time::{Duration, Instant};

use wireloom_lab::{Layout, Pinger, mesh::Mesh};
use wireloom_plan::routing::Family;

use super::{Broken, SCOPED, assert_refused, expect_gone, expect_told, write_on};
use crate::fixtures::fleet::{Fleet, run};

#[test]
fn a_peer_whose_packets_do_not_arrive_is_named_whatever_the_cause() {
    let fleet = Fleet::without_agents(Layout { nodes: 6, ..Layout::default() }, SCOPED);
    let nodes = &fleet.lab.nodes;
    // node-f and the others look for each other where nobody is. (With one right endpoint, WireGuard learns the other.)
    let nowhere = |mesh: &mut Mesh, node: usize| {
        mesh.nodes[node].endpoint = Some("192.168.1.99:51820".parse().unwrap());
    };
    (0..5).for_each(|node| write_on(&fleet, &nodes[node], |mesh| nowhere(mesh, 5)));
    write_on(&fleet, &nodes[5], |mesh| (0..5).for_each(|node| nowhere(mesh, node)));
    let mut fleet = fleet;
    fleet.start();
    let nodes = &fleet.lab.nodes;
    fleet.wait("the others to be proven", |_| {
        let (_, shown, _) = run(&nodes[0], "status");
        shown.matches(" up ").count() == 4
    });
    let pingers: Vec<_> = nodes[1..5]
        .iter()
        .map(|to| {
            let (from, to) = (&nodes[0].pods[0], &to.pods[0]);
            Pinger::steady(from, to, Family::V4, Duration::from_millis(200)).unwrap()
        })
        .collect();
    for pinger in &pingers {
        fleet.wait("every peer to answer", |_| pinger.answered() > 0);
    }

    let since = Instant::now();
    let chain = |hook: &str, rule: &str| {
        format!("table inet broken {{ chain broken {{ type filter hook {hook} priority 0; {rule}; }}\n}}\n")
    };
    for (node, rules) in [
        (1, chain("input", "udp dport 51820 drop")),
        (2, chain("output", "udp sport 51820 drop")),
        (3, chain("input", "udp dport 51820 reject with icmp type admin-prohibited")),
    ] {
        nodes[node].host.space.feed("nft -f -", &rules).unwrap();
    }
    nodes[4].run("ip link set eth0 down").unwrap();
    expect_told(
        &fleet,
        since,
        &[
            silent("UDP dropped at the peer's input", &["node-b is silent"]),
            silent("UDP dropped at the peer's output", &["node-c is silent"]),
            silent("UDP rejected by ICMP", &["node-d is silent"]),
            silent("the peer is down", &["node-e is silent"]),
            silent("a wrong endpoint", &["node-f has never answered at 192.168.1.99:51820"]),
        ],
    );
    let none = "node-a: NOT encrypted: plaintext with node-f (unproven); nothing passes to node-b, node-c, node-d, \
                node-e (no answer)\n";
    fleet.wait("nothing to be encrypted", |_| run(&nodes[0], "status").1.starts_with(none));
    (1..5).for_each(|peer| assert_refused(&fleet, 0, peer));

    for node in &nodes[1..4] {
        node.run("nft delete table inet broken").unwrap();
    }
    for node in &nodes[1..4] {
        expect_gone(&fleet, 0, &[&format!("{} is silent", node.name)]);
    }
    drop(pingers);
}

fn silent<'a>(what: &'static str, words: &'a [&'a str]) -> Broken<'a> {
    // How many of them are silent by now is another matter.
    Broken { what, on: 0, words, headline: "", exit: &[1, 2] }
}
