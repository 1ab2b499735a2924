//! The agent with peers as neighbours, and nobody who checks sources: `[link] peer_lookup = "gateway"`,
//! `source_check = "off"`.

use std::time::{Duration, Instant};

use wireloom_lab::{
    Layout, Pinger, Promise,
    mesh::{KeyPair, write_key},
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::request,
    fixtures::fleet::{Fleet, LONG, run},
    fixtures::link::assert_unreachable_at_once,
    wireloom,
};

const SCOPED: &str =
    "encrypt_host_traffic = false\n\n[link]\npeer_lookup = \"gateway\"\nsource_check = \"off\"";
const HOST: &str = "encrypt_host_traffic = true\n\n[link]\npeer_lookup = \"gateway\"\nsource_check = \"off\"";
const STANDARD: &str = "encrypt_host_traffic = false";

/// Starts a fleet. The first node declares an IPv4 and an IPv6 address on the link, the second an IPv6 address,
/// the third none.
fn fleet(layout: Layout, routing: &str) -> Fleet {
    let mut fleet = Fleet::without_agents(layout, routing);
    fleet.edit(|mesh| {
        let declared = [&["100.64.0.1", "fd64::1"][..], &["fd64::2"], &[]];
        for (member, declared) in mesh.nodes.iter_mut().zip(declared) {
            member.link_addresses = declared.iter().map(|address| address.parse().unwrap()).collect();
        }
    });
    fleet.start();
    fleet
}

#[test]
fn the_matrix_holds_in_scoped_mode_in_host_mode_and_back_again() {
    let fleet = fleet(Layout { nodes: 3, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.route(HOST);
    fleet.settle(Promise::HOST);
    fleet.route(SCOPED);
    fleet.settle(Promise::SCOPED);
}

#[test]
fn the_matrix_holds_with_strict_source_validation_everywhere() {
    let layout = Layout { rp_filter: 1, block_address: true, ..Layout::default() };
    let fleet = fleet(layout, SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.route(HOST);
    fleet.settle(Promise::HOST);
}

#[test]
fn peers_are_permanent_neighbours_and_the_next_hops_of_their_workloads() {
    let fleet = fleet(Layout { nodes: 3, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    let shown = b.run("ip route show table 1").unwrap();
    assert!(shown.contains("10.161.1.0/24 via 100.64.0.1 dev wg0 proto 157 onlink"), "{shown}");
    assert!(shown.contains("10.161.3.0/24 via inet6 fe80::"), "{shown}");
    let shown = c.run("ip route show table 1").unwrap();
    assert!(shown.contains("10.161.2.0/24 via inet6 fd64::2 dev wg0 proto 157 onlink"), "{shown}");
    let shown = a.run("ip -6 address show dev wg0").unwrap();
    assert!(shown.contains("fd64::1/128") && shown.contains("inet6 fe80::"), "{shown}");
    // The hosts, too, reach each other on the link.
    a.run("ping -c 1 -W 5 fd64::2").unwrap();
    b.run("ping -c 1 -W 5 fd64::1").unwrap();

    let permanent = || b.run("ip neigh show dev wg0 nud permanent").unwrap();
    let before = permanent();
    assert_eq!(before.lines().filter(|line| line.contains("proto 157")).count(), 4, "{before}");
    b.run("ip neigh del 100.64.0.1 dev wg0").unwrap();
    fleet.wait("the neighbour to come back", |_| permanent().contains("100.64.0.1 "));
    b.run("ip route del 100.64.0.1/32 dev wg0").unwrap();
    fleet.wait("the route to it to come back", |_| {
        b.run("ip route show 100.64.0.1").unwrap().contains("dev wg0 proto 157")
    });
    assert_eq!(b.host.space.sysctl("net/ipv4/conf/all/send_redirects").unwrap(), "0");
    fleet.wait_until_done(b);
}

/// Another key means another link address, for the node's own interface and for the others' neighbour entries.
/// Packets flow again once both ends know.
#[test]
fn after_a_change_of_key_packets_flow_on_to_the_new_neighbour() {
    let mut fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let permanent = |fleet: &Fleet, place: usize| {
        let node = &fleet.lab.nodes[place];
        node.run("ip neigh show dev wg0 nud permanent").unwrap_or_default()
    };
    let link_address = |fleet: &Fleet, key: &KeyPair| {
        run(&fleet.lab.nodes[0], &format!("key link-address {}", key.public)).1.trim().to_owned()
    };
    for place in [1, 0] {
        let (other, key) = (1 - place, KeyPair::generate(wireloom(), &fleet.lab.nodes[place]).unwrap());
        let (old, new) = (link_address(&fleet, &fleet.keys[place]), link_address(&fleet, &key));
        let pinger = {
            let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
            Pinger::start(&a.pods[0], &b.pods[0], Family::V4, Duration::from_millis(10)).unwrap()
        };
        fleet.wait("answers", |_| pinger.answered() > 20);
        write_key(&fleet.lab.nodes[place], &key).unwrap();
        fleet.edit(|mesh| mesh.nodes[place].public_key = Some(key.public.clone()));
        fleet.agents[place].reload().unwrap();
        fleet.wait("the new neighbour in place of the old", |fleet| {
            let shown = permanent(fleet, other);
            shown.contains(&new) && !shown.contains(&old)
        });
        fleet.wait("the node's own new address", |fleet| {
            fleet.lab.nodes[place].run("ip -o link show wg0").unwrap().contains(&new)
        });
        let before = pinger.answered();
        fleet.wait("answers after the change", |_| pinger.answered() > before + 50);
        let report = pinger.stop().unwrap();
        println!("{report:?} while the key of node {place} changed");
        // The kernel forgets all neighbours of an interface whose address changes.
        let there = link_address(&fleet, &fleet.keys[other]);
        fleet.wait("the neighbour to be back", |fleet| permanent(fleet, place).contains(&there));
        fleet.keys[place] = key;
        fleet.settle(Promise::SCOPED);
        for node in &fleet.lab.nodes {
            fleet.wait_until_done(node);
        }
    }
}

#[test]
fn the_interface_is_switched_between_tun_and_tap_and_down_removes_it() {
    let mut fleet = fleet(Layout::default(), STANDARD);
    fleet.settle(Promise::SCOPED);
    let redirects = fleet.lab.nodes[0].host.space.sysctl("net/ipv4/conf/all/send_redirects").unwrap();
    for (routing, kind) in [(SCOPED, "tap"), (STANDARD, "tun"), (SCOPED, "tap")] {
        fleet.route(routing);
        fleet.wait("the other kind of interface", |fleet| {
            let show = |node: &wireloom_lab::Node| node.run("ip -d link show wg0").unwrap_or_default();
            fleet.lab.nodes.iter().all(|node| show(node).contains(&format!("tun type {kind}")))
        });
        fleet.settle(Promise::SCOPED);
    }
    for agent in fleet.agents.drain(..) {
        agent.terminate().unwrap();
    }
    let node = &fleet.lab.nodes[0];
    let (status, _, errors) = run(node, "down");
    assert_eq!(status, 0, "{errors}");
    assert!(node.run("ip link show wg0").is_err());
    assert_eq!(node.host.space.sysctl("net/ipv4/conf/all/send_redirects").unwrap(), redirects);
    assert_eq!(node.run("ip route show proto 157 table all").unwrap(), "");
}

#[test]
fn without_a_source_check_packets_from_any_source_arrive() {
    let fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let counters = "table inet seen {\n chain input {\n type filter hook input priority 0\n \
                    iifname wg0 ip saddr 203.0.113.5 counter\n \
                    iifname wg0 ip6 saddr 2001:db8:113::5 counter\n }\n }\n";
    a.host.space.feed("nft -f -", counters).unwrap();
    for (source, length, to) in [("203.0.113.5", 32, "100.64.0.1"), ("2001:db8:113::5", 128, "fd64::1")] {
        b.run(&format!("ip address add {source}/{length} dev lo nodad")).unwrap();
        // No answer finds its way back.
        let _ = b.run(&format!("ping -c 1 -W 1 -I {source} {to}"));
    }
    fleet.wait("both forged packets to arrive", |_| {
        let seen = a.run("nft list table inet seen").unwrap();
        seen.matches("counter packets 1 ").count() == 2
    });
}

/// Standard WireGuard but for the check of sources: `source_check = "off"` on a TUN interface.
#[test]
fn on_a_tun_the_source_check_is_turned_off_and_on_again() {
    let off = format!("{STANDARD}\n\n[link]\nsource_check = \"off\"");
    let fleet = fleet(Layout::default(), &off);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let counters = "table inet seen {\n chain forward {\n type filter hook forward priority 0\n \
                    iifname wg0 ip saddr 203.0.113.5 counter\n \
                    iifname wg0 ip6 saddr 2001:db8:113::5 counter\n }\n }\n";
    a.host.space.feed("nft -f -", counters).unwrap();
    let [v4, v6] = a.pods[0].addresses.both();
    let sources = [("203.0.113.5", 32, v4), ("2001:db8:113::5", 128, v6)];
    for (source, length, pod) in sources {
        b.run(&format!("ip address add {source}/{length} dev lo nodad")).unwrap();
        b.run(&format!("ip route add {pod}/{length} dev wg0")).unwrap();
    }
    let forge = || {
        // No answer finds its way back.
        for (source, _, pod) in sources {
            let _ = b.run(&format!("ping -c 1 -W 1 -I {source} {pod}"));
        }
    };
    let one_of_each_has_arrived = || {
        let shown = a.run("nft list table inet seen").unwrap();
        shown.matches("counter packets 1 ").count() == 2
    };
    forge();
    fleet.wait("both forged packets to arrive", |_| one_of_each_has_arrived());

    fleet.route(STANDARD);
    fleet.wait("sources to be checked again", |_| {
        run(a, "plan").0 == 0 && !run(a, "status").1.contains("link:")
    });
    let refused = || request(a, "get_drops=1\n\n").contains("source-not-allowed=2\n");
    assert!(!refused());
    forge();
    fleet.wait("the device to drop both forged packets", |_| refused());
    assert!(one_of_each_has_arrived(), "{}", a.run("nft list table inet seen").unwrap());
}

/// The operator's own rules, word for word from docs/firewall.md.
#[test]
fn rules_that_match_a_peer_by_link_address_refuse_and_count_forged_sources() {
    let fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let (status, peer, errors) = run(a, &format!("key link-address {}", fleet.keys[1].public));
    assert_eq!(status, 0, "{errors}");
    let peer = peer.trim();
    let [block4, block6] = b.block;
    let link_local = b.run("ip -6 -o address show dev wg0 scope link").unwrap();
    let link_local = link_local.split_whitespace().nth(3).unwrap().split('/').next().unwrap();
    let rules = include_str!("../../../../../docs/firewall.md");
    let rules = rules.split("```nft\n").nth(1).unwrap().split("```").next().unwrap();
    let rules = rules
        .replace("02:80:6c:2c:cc:cc", peer)
        .replace("10.161.2.0/24", &block4.to_string())
        .replace("fd00:10:161:2::/64", &block6.to_string())
        .replace("fe80::80:6cff:fe2c:cccc", link_local);
    a.host.space.feed("nft -f -", &rules).unwrap();
    fleet.settle(Promise::SCOPED);
    // The device's own errors, about addresses that no peer has, are neither refused nor counted.
    a.run("ip route add 198.51.100.0/24 dev wg0").unwrap();
    a.run("ip -6 route add 2001:db8:51::/64 dev wg0").unwrap();
    for nobody in ["198.51.100.9", "2001:db8:51::9"] {
        assert_unreachable_at_once(a, nobody.parse().unwrap());
    }
    let shown = a.run("nft list counters table inet sources").unwrap();
    assert_eq!(shown.matches("packets 0 ").count(), 2, "{shown}");
    for (source, length, to) in [("203.0.113.5", 32, "100.64.0.1"), ("2001:db8:113::5", 128, "fd64::1")] {
        b.run(&format!("ip address add {source}/{length} dev lo nodad")).unwrap();
        let _ = b.run(&format!("ping -c 1 -W 1 -I {source} {to}"));
    }
    fleet.wait("both forged packets to be refused and counted", |_| {
        let shown = a.run("nft list counters table inet sources").unwrap();
        shown.matches("packets 1 ").count() == 2
    });
}

#[test]
fn the_neighbours_of_two_thousand_peers_are_programmed() {
    const PEERS: u32 = 2_000;
    let mut fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    fleet.patience = LONG;
    fleet.edit(|mesh| {
        let own = mesh.nodes[0].clone();
        for number in 1..=PEERS {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let [.., c, d] = number.to_be_bytes();
            let mut peer = own.clone();
            peer.name = format!("peer-{number}");
            peer.public_key = Some(wireloom_types::PublicKey::from_bytes(key).to_string());
            peer.endpoint = None;
            peer.addresses = Vec::new();
            peer.workloads = vec![format!("10.200.{c}.{d}/32").parse().unwrap()];
            peer.link_addresses = vec![format!("100.64.{c}.{d}").parse().unwrap()];
            mesh.nodes.push(peer);
        }
    });
    let begun = Instant::now();
    fleet.start();
    let node = &fleet.lab.nodes[0];
    let count =
        || node.run("ip neigh show dev wg0 nud permanent").map_or(0, |all| all.matches("proto 157").count());
    fleet.wait("all neighbours", |_| count() == 2 * PEERS as usize);
    println!(
        "{} neighbours of {PEERS} peers after {} ms from the agent's start",
        count(),
        begun.elapsed().as_millis()
    );
}
