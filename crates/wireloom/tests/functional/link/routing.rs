//! Routing daemons on a common link, with the configurations of docs/link-mode.md.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use wireloom_lab::{
    FAMILIES, Link, Node, PATIENCE, Topology, Wire, guide,
    probe::{Exchange, probe},
    routing::{babeld, bird, bird_log, birdc, frr, learn},
    until,
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::{process, wait_until_gone},
    fixtures::link::assert_unreachable_at_once,
    wireloom,
};

/// Waits until each router has learnt what is behind every other one, and the hosts there reach each other,
/// encrypted.
#[track_caller]
fn converge(link: &Link) {
    let nodes = &link.lab.nodes;
    let pairs = || nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to)));
    for (from, to) in pairs().filter(|(from, to)| from.name != to.name) {
        to.block.iter().try_for_each(|prefix| learn(from, *prefix)).unwrap();
    }
    for (from, to) in pairs().filter(|(from, to)| from.name != to.name) {
        for family in FAMILIES {
            let [from, to] = [&from.pods[0], &to.pods[0]];
            let what = format!("{} to reach {} over {family:?}", from.name, to.name);
            let reached = || {
                let cell = probe(link.lab.underlay(), from, to, family, Exchange::Ping).unwrap();
                (cell.reachable && cell.wire == Wire::Encrypted).then_some(())
            };
            until(PATIENCE, &what, reached).unwrap();
        }
    }
}

/// The routes of a node's kernel to exactly this prefix.
fn routes(node: &Node, family: Family, prefix: &str) -> String {
    let option = if family == Family::V4 { "-4" } else { "-6" };
    node.run(&format!("ip {option} route show {prefix}")).unwrap()
}

/// The configuration of router `n`, made from router 1's: the two change places.
fn as_router(n: usize, configuration: &str) -> String {
    let mut text = configuration.to_owned();
    for before in ["fd64::", "6500", "router", "Router ", "10.161."] {
        let [first, other, none] = [format!("{before}1"), format!("{before}{n}"), format!("{before}\0")];
        text = text.replace(&first, &none).replace(&other, &first).replace(&none, &other);
    }
    text
}

#[test]
fn ospf_by_bird_finds_the_routes_and_leads_around_a_router_that_dies() {
    let mut link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    link.serve(1, "primary0").unwrap();
    link.serve(2, "backup0").unwrap();
    for node in &link.lab.nodes {
        bird(node, guide::BIRD_OSPF).unwrap();
    }
    converge(&link);
    let leads_to = |link: &Link, gateways: &[String]| {
        for (family, prefix) in [(Family::V4, "10.200.0.0/24"), (Family::V6, "fd00:10:200::/64")] {
            let what = format!("a route to {prefix} by {gateways:?}");
            let leads = || {
                let routes = routes(&link.lab.nodes[0], family, prefix);
                gateways.iter().any(|gateway| routes.contains(&format!("via {gateway} "))).then_some(())
            };
            until(PATIENCE, &what, leads).unwrap();
        }
    };
    let [primary, backup] = [1, 2].map(|router| link.gateways(router));
    leads_to(&link, &primary);
    let service = link.service(2);
    drop(link.lab.nodes.remove(1));
    leads_to(&link, &backup);
    for family in FAMILIES {
        let client = &link.lab.nodes[0].pods[0];
        let reached = || {
            let cell = probe(link.lab.underlay(), client, &service, family, Exchange::Ping).unwrap();
            (cell.reachable && cell.wire == Wire::Encrypted).then_some(())
        };
        until(PATIENCE, &format!("the service to be reached over {family:?}"), reached).unwrap();
    }
}

#[test]
fn ospf_hellos_reach_every_peer_and_address_resolution_none() {
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    // Counted where they come out of the tunnel, before anything may drop them. The device's own answers to
    // address resolution come out there as well: only requests count.
    let link_addresses: Vec<_> = link.lab.nodes.iter().map(link_address).collect();
    for (router, node) in link.lab.nodes.iter().enumerate() {
        let mut table = "table netdev seen {\n counter questions4 { }\n counter questions6 { }\n".to_owned();
        let mut rules = "arp operation request counter name questions4\n\
            icmpv6 type nd-neighbor-solicit counter name questions6\n"
            .to_owned();
        for (peer, address) in link_addresses.iter().enumerate().filter(|(peer, _)| *peer != router) {
            for (version, group) in [("v2", "ip daddr 224.0.0.5"), ("v3", "ip6 daddr ff02::5")] {
                let counter = format!("{version}_from_{peer}");
                table += &format!("counter {counter} {{ }}\n");
                rules += &format!("ether saddr {address} {group} counter name {counter}\n");
            }
        }
        table += &format!("chain in {{ type filter hook ingress device wg0 priority 0;\n{rules}}}\n}}\n");
        node.host.space.feed("nft -f -", &table).unwrap();
        bird(node, guide::BIRD_OSPF).unwrap();
    }
    for node in &link.lab.nodes {
        // Nobody has the first two; for the others the stack asks again.
        node.run("ip neighbour flush dev wg0").unwrap();
        for address in ["100.64.0.99", "fd64::99", "100.64.0.1", "fd64::2"] {
            let mut ping = Command::new("ping");
            node.host.space.output(ping.args(["-c1", "-W1", address])).unwrap();
        }
    }
    for (router, node) in link.lab.nodes.iter().enumerate() {
        for peer in (0..3).filter(|peer| *peer != router) {
            for version in ["v2", "v3"] {
                let counter = format!("{version}_from_{peer}");
                until(PATIENCE, &format!("{} to hear three hellos, {counter}", node.name), || {
                    (counted(node, &counter) >= 3).then_some(())
                })
                .unwrap();
            }
        }
        assert_eq!(counted(node, "questions4"), 0, "{}", node.name);
        assert_eq!(counted(node, "questions6"), 0, "{}", node.name);
    }
}

fn link_address(node: &Node) -> String {
    let shown = node.run("ip -o link show wg0").unwrap();
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
    words.next().unwrap().to_owned()
}

/// Packets in a counter of the table `seen`.
fn counted(node: &Node, counter: &str) -> u64 {
    let shown = node.run(&format!("nft list counter netdev seen {counter}")).unwrap();
    let mut words = shown.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    words.next().unwrap().parse().unwrap()
}

#[test]
fn bgp_by_bird_routes_ipv4_by_ipv6_next_hops() {
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    for (n, node) in (1..).zip(&link.lab.nodes) {
        node.run("ip -4 address flush dev wg0").unwrap();
        bird(node, &as_router(n, guide::BIRD_BGP)).unwrap();
    }
    converge(&link);
    for node in &link.lab.nodes[1..] {
        let routes = routes(&link.lab.nodes[0], Family::V4, &node.block[0].to_string());
        assert!(routes.contains("via inet6 "), "{routes}");
    }
}

#[test]
fn bgp_by_frr_routes_ipv4_by_ipv6_next_hops() {
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    for (n, node) in (1..).zip(&link.lab.nodes) {
        node.run("ip -4 address flush dev wg0").unwrap();
        if n == 1 {
            frr(node, &["bgpd"], guide::FRR_BGP).unwrap();
        } else {
            bird(node, &as_router(n, guide::BIRD_BGP)).unwrap();
        }
    }
    converge(&link);
    for node in &link.lab.nodes[1..] {
        let routes = routes(&link.lab.nodes[0], Family::V4, &node.block[0].to_string());
        assert!(routes.contains("via inet6 fe80:"), "{routes}");
    }
}

#[test]
fn ospf_by_frr_and_by_bird_exchange_their_routes() {
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    for (n, node) in (1..).zip(&link.lab.nodes) {
        if n == 1 {
            frr(node, &["ospfd", "ospf6d"], guide::FRR_OSPF).unwrap();
        } else {
            bird(node, guide::BIRD_OSPF).unwrap();
        }
    }
    converge(&link);
}

/// FRR's `ospf6d` has no such interfaces: IPv4 alone.
#[test]
fn ospf_by_frr_routes_between_spokes_of_a_hub() {
    let link = Link::new(wireloom(), 3, Topology::Hub).unwrap();
    for node in &link.lab.nodes {
        frr(node, &["ospfd"], guide::FRR_OSPF_HUB).unwrap();
    }
    let [hub, spokes @ ..] = &link.lab.nodes[..] else { panic!("a hub") };
    let by_hub = format!("via {} dev wg0", link.address(0).v4);
    for [from, to] in [[&spokes[0], &spokes[1]], [&spokes[1], &spokes[0]], [&spokes[0], hub]] {
        let prefix = to.block[0];
        learn(from, prefix).unwrap();
        assert!(routes(from, Family::V4, &prefix.to_string()).contains(&by_hub));
        let reached = || {
            let [from, to] = [from, to].map(|node| &node.pods[0]);
            let cell = probe(link.lab.underlay(), from, to, Family::V4, Exchange::Ping).unwrap();
            (cell.reachable && cell.wire == Wire::Encrypted).then_some(())
        };
        until(PATIENCE, &format!("{} to reach {}", from.name, to.name), reached).unwrap();
    }
}

/// Whoever sends by way of a third router is refused.
#[test]
fn babeld_soon_takes_the_direct_ways_that_the_source_check_wants() {
    /// Half of the minute that babeld takes by default.
    const SOON: Duration = Duration::from_secs(30);
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    for node in &link.lab.nodes {
        node.host.space.feed("nft -f -", guide::SOURCE_CHECK).unwrap();
        babeld(node, guide::BABELD).unwrap();
    }
    let start = Instant::now();
    for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))).filter(|(from, to)| from != to)
    {
        let gateways = link.gateways(to);
        for (family, prefix) in FAMILIES.into_iter().zip(link.lab.nodes[to].block) {
            let direct = || {
                let routes = routes(&link.lab.nodes[from], family, &prefix.to_string());
                gateways.iter().any(|gateway| routes.contains(&format!("via {gateway} "))).then_some(())
            };
            until(SOON.saturating_sub(start.elapsed()), &format!("the direct way to {prefix}"), direct)
                .unwrap();
        }
    }
    converge(&link);
}

#[test]
fn babeld_routes_between_spokes_of_a_hub() {
    let link = Link::new(wireloom(), 3, Topology::Hub).unwrap();
    for node in &link.lab.nodes {
        babeld(node, guide::BABELD).unwrap();
    }
    converge(&link);
    assert_spokes_meet_at_the_hub(&link);
}

#[test]
fn ospf_by_bird_routes_between_spokes_of_a_hub() {
    let link = Link::new(wireloom(), 3, Topology::Hub).unwrap();
    for (n, node) in (1..).zip(&link.lab.nodes) {
        bird(node, if n == 1 { guide::BIRD_OSPF_HUB } else { guide::BIRD_OSPF_SPOKE }).unwrap();
    }
    converge(&link);
    assert_spokes_meet_at_the_hub(&link);
}

#[test]
fn bgp_by_bird_routes_between_spokes_of_a_hub() {
    let link = Link::new(wireloom(), 3, Topology::Hub).unwrap();
    for (n, node) in (1..).zip(&link.lab.nodes) {
        node.run("ip -4 address flush dev wg0").unwrap();
        node.run(&format!("ip address del fd64::{n}/128 dev wg0")).unwrap();
        node.run(&format!("ip address add fd64::{n}/64 dev wg0 nodad")).unwrap();
        bird(node, &as_router(n, guide::BIRD_BGP)).unwrap();
    }
    converge(&link);
    assert_spokes_meet_at_the_hub(&link);
}

#[test]
fn static_routes_with_onlink_lead_over_a_hub() {
    let link = Link::new(wireloom(), 3, Topology::Hub).unwrap();
    for router in 0..link.lab.nodes.len() {
        for (other, node) in link.lab.nodes.iter().enumerate().filter(|(other, _)| *other != router) {
            // By way of the hub, except on the hub itself.
            let gateway = link.address(if router == 0 { other } else { 0 });
            for (prefix, gateway) in node.block.iter().zip(gateway.both()) {
                let route = format!("ip route add {prefix} via {gateway} dev wg0 onlink");
                link.lab.nodes[router].run(&route).unwrap();
            }
        }
    }
    converge(&link);
}

#[track_caller]
fn assert_spokes_meet_at_the_hub(link: &Link) {
    let hub = link.gateways(0);
    let [_, spoke, other] = &link.lab.nodes[..] else { panic!("a hub with two spokes") };
    for (family, prefix) in FAMILIES.into_iter().zip(other.block) {
        let routes = routes(spoke, family, &prefix.to_string());
        assert!(hub.iter().any(|hub| routes.contains(&format!(" {hub} dev wg0"))), "{routes}");
    }
}

/// Addresses, routes and neighbours belong to the interface, which outlives the process that serves it.
#[test]
fn ospf_keeps_its_neighbours_while_the_device_process_restarts() {
    /// Seconds without a hello after which a neighbour is dead. A hello comes each second.
    const DEAD: u32 = 20;
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    for node in &link.lab.nodes {
        // Without BFD, whose one second is too short for a restart on a busy machine.
        let dead = format!("dead {DEAD}; wait 4;");
        bird(node, &guide::BIRD_OSPF.replace("dead count 4; bfd on;", &dead)).unwrap();
    }
    converge(&link);
    let node = &link.lab.nodes[0];
    let state = || {
        let kernel = ["-4 route", "-6 route", "-o address show dev wg0"];
        // Without a process the interface has no carrier, and the kernel says so with every route.
        let lines = kernel.map(|what| node.run(&format!("ip {what}")).unwrap().replace(" linkdown", ""));
        (lines, neighbours(node).len())
    };
    let wait = |what: &str, hold: fn(f64) -> bool| {
        until(PATIENCE, what, || neighbours(node).iter().all(|left| hold(*left)).then_some(()))
            .unwrap_or_else(|error| panic!("{error}\n{}", birdc(node, "show ospf neighbors").unwrap()));
    };
    let all = || (neighbours(node).len() == 4).then_some(());
    until(PATIENCE, "two neighbours in each version", all).unwrap();
    let before = state();
    node.run(&format!("kill -KILL {}", process(node))).unwrap();
    wait("three hellos of every neighbour to be missed", |left| left < f64::from(DEAD - 3));
    assert_eq!(state(), before, "while no device runs");
    link.start_device(0).unwrap();
    converge(&link);
    wait("a hello of every neighbour", |left| left > f64::from(DEAD - 2));
    // The neighbours still know each other: nothing was elected or learnt again.
    assert_eq!(state(), before, "{}", bird_log(node).unwrap());
}

/// For each OSPF neighbour that a node's BIRD knows, in either version: seconds left until it counts as dead.
fn neighbours(node: &Node) -> Vec<f64> {
    let shown = birdc(node, "show ospf neighbors").unwrap();
    // Router ID, priority, state and role, dead time …
    let known = shown.lines().filter(|line| line.contains("Full/") || line.contains("2-Way/"));
    known.map(|line| line.split_whitespace().nth(3).unwrap().parse().unwrap()).collect()
}

/// The guide's commands for the interface, its peers and the firewall, as its reader types them.
#[test]
fn the_commands_of_the_guide_make_a_router_that_the_others_reach() {
    let link = Link::new(wireloom(), 3, Topology::Full).unwrap();
    let node = &link.lab.nodes[0];
    node.run("ip link delete wg0").unwrap();
    wait_until_gone(node);
    node.host.space.write("/run/wg0.conf", guide::PEERS).unwrap();
    // Not /etc/wireguard: that may be the machine's own.
    let script = guide::INTERFACE.replace("/etc/wireguard/", "/run/");
    let program = wireloom().parent().unwrap().display();
    let script = format!("set -e\nPATH=$PATH:{program}\n{script}");
    node.host.space.feed("sh", &script).unwrap();
    for node in &link.lab.nodes {
        node.host.space.feed("nft -f -", guide::SOURCE_CHECK).unwrap();
        bird(node, guide::BIRD_OSPF).unwrap();
    }
    converge(&link);
    for nobody in ["100.64.0.99", "fd64::99"] {
        assert_unreachable_at_once(&link.lab.nodes[0], nobody.parse().unwrap());
    }
    for node in &link.lab.nodes {
        for counter in ["refused4", "refused6"] {
            let shown = node.run(&format!("nft list counter inet sources {counter}")).unwrap();
            assert!(shown.contains("packets 0 "), "{}: {shown}", node.name);
        }
    }
}
