//! Packets are as long as the path to each peer carries: the interface follows the way out, routes follow narrower paths,
//! and nothing is fragmented for long.

use std::{thread, time::Instant};

use serde_json::Value;
use wireloom_lab::{FAMILIES, Layout, Node, PATIENCE, agent::Agent, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::{
        fleet::{Fleet, run},
        transfer::streams,
    },
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// Chunks of 64 KiB.
const TEN_MEGABYTES: u64 = 160;

/// Each pod has its packets cut to the interface's MTU only by path MTU discovery.
fn layout(nodes: u8) -> Layout {
    Layout { nodes, block_address: true, ..Layout::default() }
}

/// A mesh in which every node has its tunnel addresses in its record.
fn fleet(nodes: u8) -> Fleet {
    let mut fleet = Fleet::without_agents(layout(nodes), SCOPED);
    fleet.edit(|mesh| {
        for (number, node) in (1..).zip(&mut mesh.nodes) {
            node.tunnel_addresses = [format!("10.161.{number}.1"), format!("fd00:10:161:{number}::1")]
                .map(|it| it.parse().unwrap())
                .to_vec();
        }
    });
    fleet
}

/// How many fragments of IP packets a node has made so far.
fn fragments(node: &Node) -> u64 {
    let counters = node.run("nstat -asz IpFragCreates Ip6FragCreates").unwrap();
    let of = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    counters.lines().filter(|line| line.contains("FragCreates")).filter_map(of).sum()
}

fn interface_mtu(node: &Node) -> u32 {
    let shown = node.run("ip -o link show wg0").unwrap();
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "mtu");
    words.next().unwrap().parse().unwrap()
}

/// The `mtu` of the route to the pods of another node.
fn route_mtu(node: &Node, to: &Node, family: Family) -> Option<u32> {
    let block = to.block.into_iter().find(|block| Family::of(block.addr()) == family).unwrap();
    let option = if family == Family::V4 { "-4" } else { "-6" };
    let shown = node.run(&format!("ip {option} route show table 1 {block}")).unwrap();
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "mtu");
    words.next().map(|mtu| mtu.parse().unwrap())
}

/// Sends this many chunks of 64 KiB from pod to pod, in each of these families.
#[track_caller]
fn transfer(from: &Node, to: &Node, families: &[Family], chunks: u64) {
    for family in families {
        streams(&from.pods[0].space, &to.pods[0].space, to.pods[0].addresses.of(*family), 1, chunks);
    }
}

/// How long the longest packets from one node to another are.
#[track_caller]
fn expect_mtus(fleet: &Fleet, from: usize, to: usize, interface: u32, route: [Option<u32>; 2]) {
    let [from, to] = [from, to].map(|place| &fleet.lab.nodes[place]);
    let mut seen = (0, [None; 2]);
    let result = until(PATIENCE, "the MTUs", || {
        seen = (interface_mtu(from), FAMILIES.map(|family| route_mtu(from, to, family)));
        (seen == (interface, route)).then_some(())
    });
    assert!(
        result.is_ok(),
        "from {} to {}: {seen:?}, not {interface} and {route:?}\n{}",
        from.name,
        to.name,
        fleet.logs()
    );
}

#[test]
fn the_interface_follows_the_way_out_to_the_endpoints() {
    let mut fleet = fleet(3);
    // The nodes' addresses are on eth0; the endpoints of the first two are elsewhere.
    let [a, b] = [0, 1].map(|place| fleet.lab.nodes[place].pid());
    let cable = format!("ip link add eth1 mtu 1450 netns {a} type veth peer name eth1 mtu 1450 netns {b}");
    fleet.lab.underlay().network_only().run(&cable).unwrap();
    for (number, node) in (1..).zip(&fleet.lab.nodes[..2]) {
        node.run("ip link set eth1 up").unwrap();
        node.run(&format!("ip address add 172.30.0.{number}/24 dev eth1")).unwrap();
    }
    fleet.edit(|mesh| {
        for (number, node) in (1..).zip(&mut mesh.nodes[..2]) {
            node.endpoint = Some(format!("172.30.0.{number}:51820").parse().unwrap());
        }
    });
    // The third does not reach the others where they are, so they call it.
    fleet.lab.nodes[2].run("ip route add 172.30.0.0/24 via 192.168.1.1").unwrap();
    fleet.start();
    fleet.wait_for_proofs();
    // The way to the third is wider.
    expect_mtus(&fleet, 0, 1, 1420, [Some(1376), Some(1376)]);
    expect_mtus(&fleet, 0, 2, 1420, [None, None]);
    fleet.edit(|mesh| drop(mesh.nodes.pop()));
    expect_mtus(&fleet, 0, 1, 1370, [None, None]);
    expect_mtus(&fleet, 1, 0, 1370, [None, None]);

    let pair = |fleet: &Fleet| [0, 1].map(|place| fragments(&fleet.lab.nodes[place]));
    let before = pair(&fleet);
    transfer(&fleet.lab.nodes[0], &fleet.lab.nodes[1], &FAMILIES, 16);
    assert_eq!(pair(&fleet), before, "nothing was fragmented");

    // The underlay's MTU changes.
    for node in &fleet.lab.nodes[..2] {
        node.run("ip link set eth1 mtu 1400").unwrap();
    }
    expect_mtus(&fleet, 0, 1, 1320, [None, None]);
    expect_mtus(&fleet, 1, 0, 1320, [None, None]);
    transfer(&fleet.lab.nodes[1], &fleet.lab.nodes[0], &FAMILIES, 16);
    let status: Value = serde_json::from_str(&run(&fleet.lab.nodes[0], "status --json").1).unwrap();
    assert_eq!(status["agent"]["paths"]["node-b"]["mtu"], 1400);
    assert_eq!(status["agent"]["paths"]["node-b"]["known"], "interface");
}

/// Drops what tells of errors, and echoes.
const FILTER: &str = "table inet filter {\n\
    chain output {\n type filter hook output priority 0\n\
    icmp type destination-unreachable drop\nicmpv6 type packet-too-big drop\n }\n\
    chain forward {\n type filter hook forward priority 0\n meta l4proto { icmp, icmpv6 } drop\n }\n }\n";

/// The MTUs of the ways to the peers, behind a router that reports them and behind one that does not.
const MTUS: [u32; 3] = [1400, 1368, 1280];

/// The routers, which are in no mesh, and the sender's peers. The sender is the first node.
const ROUTERS: [usize; 2] = [1, 2];
const PEERS: [usize; 6] = [3, 4, 5, 6, 7, 8];

/// The MTU of the way to a peer, and whether it is reported.
fn way_to(peer: usize) -> (u32, bool) {
    (MTUS[(peer - PEERS[0]) / 2], peer % 2 == 1)
}

/// Narrow ways over this family, all at once. Whatever happens, a transfer of 10 MB completes from the beginning; soon
/// the routes have the paths' MTUs, and then nothing is fragmented, except IPv6 where its least MTU does not fit.
fn narrow_ways(underlay: Family) {
    let mut fleet = fleet(9);
    let node = |fleet: &Fleet, place: usize| fleet.lab.nodes[place].host.addresses.of(underlay);
    for router in ROUTERS {
        let router = &fleet.lab.nodes[router].host.space;
        for setting in ["all", "default", "eth0"] {
            router.set_sysctls(&[(&format!("net/ipv4/conf/{setting}/send_redirects"), "0")]).unwrap();
        }
    }
    fleet.lab.nodes[ROUTERS[1]].host.space.feed("nft -f -", FILTER).unwrap();
    for peer in PEERS {
        let (mtu, reported) = way_to(peer);
        let router = if reported { ROUTERS[0] } else { ROUTERS[1] };
        let (to, via) = (node(&fleet, peer), node(&fleet, router));
        fleet.lab.nodes[0].run(&format!("ip route add {to} via {via}")).unwrap();
        fleet.lab.nodes[router].run(&format!("ip route add {to} dev eth0 mtu lock {mtu}")).unwrap();
    }
    let endpoints: Vec<_> = fleet.lab.nodes.iter().map(|node| node.endpoint(underlay)).collect();
    let routers = ROUTERS.map(|router| fleet.lab.nodes[router].name.clone());
    fleet.edit(|mesh| {
        for (node, endpoint) in mesh.nodes.iter_mut().zip(endpoints) {
            node.endpoint = Some(endpoint);
        }
        mesh.nodes.retain(|node| !routers.contains(&node.name));
    });
    let members = (0..9).filter(|place| !ROUTERS.contains(place));
    fleet.agents = members.map(|place| Agent::start(wireloom(), &fleet.lab.nodes[place]).unwrap()).collect();
    let sender = &fleet.lab.nodes[0];
    for peer in PEERS {
        let routed = |fleet: &Fleet, from: usize, to: usize| {
            let to = fleet.lab.nodes[to].block[0];
            fleet.lab.nodes[from]
                .run(&format!("ip route show table 1 {to}"))
                .is_ok_and(|shown| shown.contains("wg0"))
        };
        fleet.wait("a proof in both directions", |fleet| routed(fleet, 0, peer) && routed(fleet, peer, 0));
    }
    let begun = Instant::now();
    thread::scope(|scope| {
        for peer in PEERS.map(|peer| &fleet.lab.nodes[peer]) {
            scope.spawn(move || transfer(sender, peer, &FAMILIES[..1], TEN_MEGABYTES));
        }
    });
    println!("figure: over {underlay}, 10 MB to each of six peers at once took {:?}", begun.elapsed());
    for peer in PEERS {
        let (mtu, _) = way_to(peer);
        let overhead = if underlay == Family::V4 { 60 } else { 80 };
        let inner = (mtu - overhead) / 16 * 16;
        expect_mtus(&fleet, 0, peer, 1420, [Some(inner), Some(inner.max(1280))]);
    }
    println!("figure: over {underlay}, all MTUs were known after {:?}", begun.elapsed());
    let made =
        |fleet: &Fleet| -> u64 { [0, 1, 2].iter().map(|place| fragments(&fleet.lab.nodes[*place])).sum() };
    for peer in PEERS {
        let (mtu, reported) = way_to(peer);
        for family in FAMILIES {
            let (before, begun) = (made(&fleet), Instant::now());
            transfer(sender, &fleet.lab.nodes[peer], &[family], TEN_MEGABYTES);
            let fragments = made(&fleet) - before;
            println!(
                "figure: over {underlay}, MTU {mtu}, ICMP {}, {family}: 10 MB in {:?}, {fragments} fragments",
                if reported { "passes" } else { "filtered" },
                begun.elapsed()
            );
            assert_eq!(fragments, 0, "over {underlay}, {mtu}, {reported}, {family}");
        }
    }
}

#[test]
fn narrow_ways_over_ipv4() {
    narrow_ways(Family::V4);
}

#[test]
fn narrow_ways_over_ipv6() {
    narrow_ways(Family::V6);
}
