//! Senders are told at once what cannot be sent, for as long as that is so.

use std::{net::IpAddr, process::Command};

use wireloom_lab::{Layout, Node, PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::request,
    fixtures::link::{
        BEHIND, LINK, Link, answered, assert_unreachable_at_once, pings, reach, reached_at_once, start,
    },
    fixtures::transfer::streams,
    fixtures::tunnel::{PORT, inner, ping},
};

#[test]
fn unknown_destinations_and_dead_peers_are_unreachable_at_once() {
    let link = Link::with(Layout { nodes: 3, pods: 0, rp_filter: 1, ..Layout::default() });
    let node = link.node(0);
    reach(node, inner(1)[0]);
    for nobody in ["10.99.0.77", "fd99::77"] {
        assert_unreachable_at_once(node, nobody.parse().unwrap());
    }
    // The third node's device ends before anything was heard of it.
    link.node(2).run("rm /run/wireguard/wg0.sock").unwrap();
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(2)[0])).unwrap();
    node.run(&format!("ip route add fd20::/16 via {}", inner(2)[1])).unwrap();
    let key = link.keys[2].public.trim().to_owned();
    // The network stack learns its link address while it may still answer.
    assert!(inner(2).into_iter().all(|address| !ping(node, address)));
    until(PATIENCE, "the peer to be given up", || {
        request(node, "get_link=1\n\n").contains("reachable=false").then_some(())
    })
    .unwrap();
    for to in inner(2).into_iter().chain(BEHIND.map(|text| text.parse().unwrap())) {
        assert_unreachable_at_once(node, to);
    }
    // The stack's questions whether the peer is still there are not answered, so that it can use another one.
    let probing = [("delay_first_probe_time", "1"), ("retrans_time_ms", "100")];
    for (setting, value) in probing {
        node.host.space.set_sysctls(&[(&format!("net/ipv4/neigh/wg0/{setting}"), value)]).unwrap();
    }
    let there = format!("{} lladdr {} dev wg0", inner(2)[0], link.link_address(2));
    node.run(&format!("ip neigh change {there} nud stale")).unwrap();
    until(PATIENCE, "the neighbour to be given up", || {
        let _ = ping(node, inner(2)[0]);
        node.run(&format!("ip neigh show {}", inner(2)[0])).unwrap().contains("FAILED").then_some(())
    })
    .unwrap();
    // It comes back and is found again: a packet that is refused also tries a handshake.
    start(link.node(2), LINK);
    link.configure(2);
    link.address(2);
    reach(node, inner(2)[0]);
    assert!(!request(node, "get_link=1\n\n").contains("reachable=false"));
    // A peer without an endpoint cannot be reached.
    node.run(&format!("wg set wg0 peer {key} remove")).unwrap();
    node.run(&format!("wg set wg0 peer {key} allowed-ips {}/32", inner(2)[0])).unwrap();
    assert_unreachable_at_once(node, inner(2)[0]);
}

#[test]
fn addresses_that_come_late_or_move_to_another_peer_are_found_at_once() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let keys = [1, 2].map(|place| link.keys[place].public.trim());
    let shared: [IpAddr; 2] = ["10.99.0.99", "fd99::99"].map(|text| text.parse().unwrap());
    for place in [1, 2] {
        link.node(place).run(&format!("ip address add {}/32 dev lo", shared[0])).unwrap();
        link.node(place).run(&format!("ip address add {}/128 dev lo nodad", shared[1])).unwrap();
    }
    let set_peer = |place: usize, more: &str| {
        let ([v4, v6], endpoint) = (inner(place), link.node(place).host.addresses.v4);
        let allowed = format!("{v4},{v6}{more}");
        let key = keys[place - 1];
        node.run(&format!("wg set wg0 peer {key} endpoint {endpoint}:{PORT} allowed-ips {allowed}")).unwrap();
    };
    // The addresses of a peer that is not there yet, its link-local one among them, and one that nobody has.
    let link_local = link.link_local(1);
    node.run(&format!("wg set wg0 peer {} remove", keys[0])).unwrap();
    assert_unreachable_at_once(node, inner(1)[0]);
    assert_unreachable_at_once(node, inner(1)[1]);
    assert!(!pings(node, &format!("{link_local}%wg0")));
    assert_unreachable_at_once(node, shared[0]);
    assert_unreachable_at_once(node, shared[1]);
    set_peer(1, "");
    reached_at_once(&link, inner(1));
    answered(node, &format!("{link_local}%wg0"));
    // Prefixes that hold addresses which were asked for, and then move to the other peer.
    let prefixes = ",10.99.0.96/29,fd99::90/124";
    for place in [1, 2] {
        set_peer(place, prefixes);
        let sent = link.sent_meanwhile([place, 3 - place], || reached_at_once(&link, shared));
        assert!(sent[0] > 0, "{sent:?}");
        let neighbours = node.run("ip neigh show dev wg0").unwrap();
        for address in shared {
            let there = format!("{address} lladdr {}", link.link_address(place));
            assert!(neighbours.contains(&there), "{there}: {neighbours}");
        }
    }
    // And back to nobody.
    set_peer(2, "");
    assert_unreachable_at_once(node, shared[0]);
    assert_unreachable_at_once(node, shared[1]);
}

/// What `ping` prints when its packet must not be fragmented.
fn full_size_ping(node: &Node, to: IpAddr, size: usize) -> String {
    let words = format!("-n -c1 -W2 -M do -s {size} {to}");
    let output = node.host.space.output(Command::new("ping").args(words.split_whitespace())).unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends a megabyte by TCP from the first node to the second.
#[track_caller]
fn megabyte(link: &Link, to: IpAddr) {
    streams(&link.node(0).host.space, &link.node(1).host.space, to, 1, 16);
}

#[test]
fn a_packet_longer_than_the_path_mtu_is_refused_and_tcp_goes_on() {
    let link = Link::new(2);
    link.settle();
    let node = link.node(0);
    // As an outside program that discovers path MTUs would tell the device.
    let key: String = {
        let said = request(node, "get_link=1\n\n");
        said.lines().find_map(|line| line.strip_prefix("public_key=")).unwrap().to_owned()
    };
    assert_eq!(
        request(node, &format!("set=1\npublic_key={key}\nupdate_only=true\npath_mtu=1400\n\n")),
        "errno=0\n\n"
    );
    for (address, size) in [(inner(1)[0], 1392), (inner(1)[1], 1372)] {
        let said = full_size_ping(node, address, size);
        assert!(said.contains("mtu = 1328") || said.contains("mtu=1328"), "{said}");
        megabyte(&link, address);
    }
}

/// The longest inner packet is 60 bytes shorter than the path's MTU over IPv4 and 80 bytes over IPv6, rounded
/// down to a multiple of 16.
#[test]
fn the_path_mtu_is_learnt_from_the_underlay() {
    for (underlay, longest) in [(Family::V4, 1328), (Family::V6, 1312)] {
        // The third node is a router between the first two, with a narrow way to the second.
        let mut link = Link::without_devices(Layout { nodes: 3, pods: 0, ..Layout::default() });
        link.start(underlay, |_| LINK);
        let [a, b, router] = [0, 1, 2].map(|place| link.node(place));
        for setting in ["all", "default", "eth0"] {
            let path = format!("net/ipv4/conf/{setting}/send_redirects");
            router.host.space.set_sysctls(&[(&path, "0")]).unwrap();
        }
        let [to, via] = [b, router].map(|node| node.host.addresses.of(underlay));
        a.run(&format!("ip route add {to} via {via}")).unwrap();
        router.run(&format!("ip route add {to} dev eth0 mtu lock 1400")).unwrap();
        reach(a, inner(1)[0]);
        let [v4, v6] = inner(1);
        until(PATIENCE, "the path MTU", || {
            let _ = full_size_ping(a, v4, 1392);
            request(a, "get_link=1\n\n").contains("path_mtu=1400").then_some(())
        })
        .unwrap();
        // Sockets that do not know it yet are told.
        a.run("ip route flush cache").unwrap();
        a.run("ip -6 route flush cache").unwrap();
        for (address, size) in [(v4, 1392), (v6, 1372)] {
            let said = full_size_ping(a, address, size);
            let told = [format!("mtu = {longest}"), format!("mtu={longest}")];
            assert!(told.iter().any(|told| said.contains(told)), "{underlay:?}: {said}");
            megabyte(&link, address);
        }
        // A packet that may be fragmented still arrives.
        answered(a, &format!("-M dont -s 1392 {v4}"));
    }
}
