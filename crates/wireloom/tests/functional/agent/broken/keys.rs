//! Nodes that do not agree on keys, addresses or modes: each says what it sees of that, and whom to ask.

use std::{
    net::UdpSocket,
    process::Stdio,
    time::{Duration, Instant},
};

use wireloom_lab::{
    Layout, Pinger,
    mesh::{KeyPair, write_key, write_settings},
};
use wireloom_plan::routing::Family;

use super::{Broken, SCOPED, assert_refused, expect_told, write_on};
use crate::{fixtures::fleet::Fleet, wireloom};

/// Bytes of a handshake initiation (WireGuard paper, section 5.4.2).
const INITIATION: usize = 148;

/// Where a handshake initiation is captured that node-a sends or receives.
const CAPTURE: &str = "/run/initiation.pcap";

/// Bytes from the end of the IPv4 header's destination address to that of the datagram: its UDP header and payload.
const DATAGRAM: usize = 8 + INITIATION;

#[test]
fn nodes_that_do_not_agree_say_so_and_whom_to_ask() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 6, ..Layout::default() }, SCOPED);
    let mut tcpdump = std::process::Command::new("tcpdump");
    tcpdump.args(["-i", "eth0", "-c", "1", "-U", "-w", CAPTURE, "udp[8] == 1 and host 192.168.1.6"]);
    let said = tempfile::NamedTempFile::new().unwrap();
    tcpdump.stdout(Stdio::null()).stderr(said.reopen().unwrap());
    let mut tcpdump = fleet.lab.nodes[0].host.space.spawn(&mut tcpdump).unwrap();
    // There is one handshake in two minutes.
    fleet.wait("tcpdump to listen", |_| std::fs::read_to_string(&said).unwrap().contains("listening on"));
    fleet.start();
    fleet.wait_for_proofs();
    let nodes = &fleet.lab.nodes;
    // Each end has something to say to the other.
    let ping = |from: usize, to: usize| {
        let (from, to) = (&nodes[from].pods[0], &nodes[to].pods[0]);
        Pinger::steady(from, to, Family::V4, Duration::from_millis(200)).unwrap()
    };
    let mut pingers: Vec<_> = (1..6).flat_map(|node| [ping(0, node), ping(node, 0)]).collect();
    // Between their own addresses, too.
    let (from, to) = (&nodes[4].host, &nodes[0].host);
    pingers.push(Pinger::steady(from, to, Family::V4, Duration::from_millis(200)).unwrap());
    for pinger in &pingers {
        fleet.wait("every peer to answer", |_| pinger.answered() > 0);
    }

    let since = Instant::now();
    let other = KeyPair::generate(wireloom(), &nodes[0]).unwrap();
    // node-a takes another key for node-b's.
    write_on(&fleet, &nodes[0], |mesh| mesh.nodes[1].public_key = Some(other.public.clone()));
    // node-c has another key than the mesh says.
    write_key(&nodes[2], &KeyPair::generate(wireloom(), &nodes[2]).unwrap()).unwrap();
    fleet.agents[2].reload().unwrap();
    // node-d's mesh lacks node-a.
    write_on(&fleet, &nodes[3], |mesh| drop(mesh.nodes.remove(0)));
    // node-e alone is in host mode.
    write_settings(&nodes[4], "encrypt_host_traffic = true").unwrap();
    // An older handshake than the last: such are those of a machine whose clock went back. (No namespace has a clock of
    // its own.)
    fleet.wait("the captured handshake", |_| tcpdump.try_wait().unwrap().is_some());
    let captured = nodes[0].host.space.inside(|| std::fs::read(CAPTURE).unwrap()).unwrap();
    let (before, datagram) = captured.split_at(captured.len() - DATAGRAM);
    let receiver = usize::from(*before.last().unwrap()) - 1;
    let socket = nodes[5].host.space.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    // As often as a machine tries again.
    for _ in 0..4 {
        socket.send_to(&datagram[8..], nodes[receiver].endpoint(Family::V4)).unwrap();
    }

    expect_told(
        &fleet,
        since,
        &[
            says("a wrong key for the peer", 0, &["node-b", "has never answered"]),
            says(
                "a wrong key for the peer, seen by it",
                1,
                &["in the last minute", "bad-mac1", "`wireloom key public`"],
            ),
            Broken {
                headline: "NOT encrypted: the mesh does not have this node's key",
                exit: &[2],
                ..says("own key wrong", 2, &["key file holds", "membership says"])
            },
            says("own key wrong, seen by a peer", 0, &["in the last minute", "unknown-peer", "key"]),
            says("one node's mesh lacks this node", 0, &["node-d is silent"]),
            says("host mode on one side only", 0, &["in the last minute", "source-not-allowed", "host"]),
            Broken {
                headline: "",
                exit: &[1, 2],
                ..says("a clock an hour back", receiver, &["in the last minute", "stale-timestamp", "clock"])
            },
        ],
    );
    assert_refused(&fleet, 0, 1);
    assert_refused(&fleet, 0, 2);
    drop(pingers);
}

/// What is so between this node and some others.
fn says<'a>(what: &'static str, on: usize, words: &'a [&'a str]) -> Broken<'a> {
    Broken { what, on, words, headline: "partly: ", exit: &[1] }
}
