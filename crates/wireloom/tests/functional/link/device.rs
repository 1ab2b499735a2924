//! The userspace interface as a link: its neighbours, its multicast, standard peers, its restart.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6, UdpSocket};

use nix::net::if_::if_nametoindex;
use wireloom_lab::{Lab, Layout, Node, PATIENCE, mesh::KeyPair, require, until};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::device::request,
    fixtures::link::{BEHIND, LINK, Link, answered, pings, put_behind, reach, reached_at_once, start},
    fixtures::transfer::streams,
    fixtures::tunnel::{PORT, Program, inner},
    wireloom,
};

#[test]
fn peers_are_neighbours_with_link_addresses_of_their_keys() {
    for rp_filter in [0, 1] {
        let link = Link::with(Layout { nodes: 2, pods: 0, rp_filter, ..Layout::default() });
        for address in inner(1) {
            reach(link.node(0), address);
        }
        let there = link.link_local(1);
        answered(link.node(0), &format!("{there}%wg0"));
        let neighbours = link.node(0).run("ip neigh show dev wg0").unwrap();
        let known = neighbours.lines().filter(|line| line.contains(&link.link_address(1))).count();
        assert_eq!(known, 3, "{neighbours}");
        let own = link.node(0).run("ip -o link show wg0").unwrap();
        assert!(own.contains(&link.link_address(0)), "{own}");
        assert!(link.node(0).run("wg show wg0").unwrap().contains("latest handshake"));
    }
}

#[test]
fn multicast_reaches_every_peer_and_address_resolution_none() {
    require(&["nft"]).unwrap();
    let link = Link::new(4);
    link.settle();
    let counters = "table netdev seen {\n\
         counter questions { }\ncounter solicitations { }\ncounter v4 { }\ncounter v6 { }\ncounter everyone { }\n\
         chain in { type filter hook ingress device \"wg0\" priority 0;\n\
         arp operation request counter name questions\n\
         icmpv6 type nd-neighbor-solicit counter name solicitations\n\
         ip daddr 239.1.2.3 counter name v4\n\
         ip6 daddr ff02::1:2:3 counter name v6\n\
         ip daddr 255.255.255.255 counter name everyone\n}\n}\n";
    let receivers = [1, 2, 3].map(|place| link.node(place));
    for receiver in receivers {
        receiver.host.space.feed("nft -f -", counters).unwrap();
    }
    let sender = link.node(0);
    sender.run("ip route add 239.0.0.0/8 dev wg0").unwrap();
    sender.run("ip route add 255.255.255.255/32 dev wg0").unwrap();
    // The stack asks for every neighbour again.
    sender.run("ip neigh flush dev wg0").unwrap();
    link.settle();
    sender
        .host
        .space
        .inside(|| {
            let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            v4.set_broadcast(true).unwrap();
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            let scope = if_nametoindex("wg0").unwrap();
            let group = SocketAddrV6::new("ff02::1:2:3".parse().unwrap(), 9, 0, scope);
            for _ in 0..3 {
                v4.send_to(b"to all", "239.1.2.3:9").unwrap();
                v4.send_to(b"to all", "255.255.255.255:9").unwrap();
                v6.send_to(b"to all", group).unwrap();
            }
        })
        .unwrap();
    let count = |node: &Node, name: &str| {
        let shown = node.run(&format!("nft list counter netdev seen {name}")).unwrap();
        let mut words = shown.split_whitespace().skip_while(|word| *word != "packets");
        let [packets, bytes] = [1, 1].map(|place| words.nth(place).unwrap().parse::<u64>().unwrap());
        (packets, bytes)
    };
    // Packets that come close together are joined, and count as one: their bytes tell how many there were.
    let all_is_there = |receiver: &Node, name: &str, header: u64| {
        let (packets, bytes) = count(receiver, name);
        bytes - packets * header == 3 * b"to all".len() as u64
    };
    for receiver in receivers {
        until(PATIENCE, "all multicast and broadcast packets", || {
            let all = [("v4", 28), ("everyone", 28), ("v6", 48)];
            all.iter().all(|(name, header)| all_is_there(receiver, name, *header)).then_some(())
        })
        .unwrap();
        assert_eq!((count(receiver, "questions").0, count(receiver, "solicitations").0), (0, 0));
    }
}

#[test]
fn with_another_private_key_a_node_is_another_neighbour() {
    let link = Link::new(2);
    link.settle();
    let [a, b] = [0, 1].map(|place| link.node(place));
    let before = (link.link_address(0), link.link_local(0));
    let key = KeyPair::generate(wireloom(), a).unwrap();
    a.host.space.write("/run/key", &key.private).unwrap();
    a.run("wg set wg0 private-key /run/key").unwrap();
    let old = link.keys[0].public.trim();
    let ([v4, v6], endpoint) = (inner(0), a.host.addresses.v4);
    b.run(&format!(
        "wg set wg0 peer {old} remove peer {} endpoint {endpoint}:{PORT} allowed-ips {v4},{v6}",
        key.public
    ))
    .unwrap();
    reached_at_once(&link, inner(1));
    for address in inner(0) {
        reach(b, address);
    }
    let mut link = link;
    link.keys[0] = key;
    let after = (link.link_address(0), link.link_local(0));
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");
    let [a, b] = [0, 1].map(|place| link.node(place));
    let own = a.run("ip -o link show wg0").unwrap();
    assert!(own.contains(&after.0), "{own}");
    answered(b, &format!("{}%wg0", after.1));
    assert!(!pings(b, &format!("{}%wg0", before.1)));
    let neighbours = b.run("ip neigh show dev wg0").unwrap();
    for address in [v4, v6, after.1.into()] {
        let there = format!("{address} lladdr {}", after.0);
        assert!(neighbours.contains(&there), "{there}: {neighbours}");
    }
}

#[test]
fn on_a_link_without_a_source_check_packets_from_any_source_arrive() {
    let link = Link::new(2);
    link.settle();
    let [a, b] = [0, 1].map(|place| link.node(place));
    for (address, prefix, gateway) in
        [("172.31.0.9", "172.31.0.0/16", inner(0)[0]), ("fd31::9", "fd31::/16", inner(0)[1])]
    {
        a.run(&format!("ip address add {address} dev lo")).unwrap();
        b.run(&format!("ip route add {prefix} via {gateway}")).unwrap();
    }
    answered(a, &format!("-I 172.31.0.9 {}", inner(1)[0]));
    answered(a, &format!("-I fd31::9 {}", inner(1)[1]));
}

/// The first node checks no sources, on a TUN interface; the second does.
#[test]
fn on_a_tun_without_a_source_check_packets_from_any_source_arrive() {
    require(&["nft"]).unwrap();
    let mut link = Link::without_devices(Layout { nodes: 2, pods: 0, ..Layout::default() });
    link.start(Family::V4, |place| ["--source-check off", ""][place]);
    let [a, b] = [0, 1].map(|place| link.node(place));
    reach(a, inner(1)[0]);
    let counters = "table inet seen {\n counter v4 { }\n counter v6 { }\n\
                    chain input { type filter hook input priority 0;\n\
                    ip saddr 203.0.113.5 counter name v4\nip6 saddr 2001:db8:113::5 counter name v6\n}\n}\n";
    let sources = [("203.0.113.5", 32), ("2001:db8:113::5", 128)];
    for node in [a, b] {
        node.host.space.feed("nft -f -", counters).unwrap();
    }
    let arrived = |from: &Node, to: &Node, place: usize| {
        for ((source, length), address) in sources.iter().zip(inner(place)) {
            from.run(&format!("ip address add {source}/{length} dev lo nodad")).unwrap();
            // No answer finds its way back: only the packet itself can arrive.
            assert!(!pings(from, &format!("-I {source} {address}")));
            from.run(&format!("ip address del {source}/{length} dev lo")).unwrap();
        }
        ["v4", "v6"].map(|name| {
            let shown = to.run(&format!("nft list counter inet seen {name}")).unwrap();
            shown.contains("packets 1 ")
        })
    };
    assert_eq!(arrived(b, a, 0), [true; 2]);
    assert_eq!(arrived(a, b, 1), [false; 2]);
    let drops = request(b, "get_drops=1\n\n");
    assert!(drops.contains("source-not-allowed=2\n"), "{drops}");
    // The check is turned off on the running device, by the control socket.
    assert_eq!(request(b, "set=1\nsource_check=off\n\n"), "errno=0\n\n");
    assert_eq!(arrived(a, b, 1), [true; 2]);
}

#[test]
fn a_standard_peer_is_a_neighbour_like_any_other() {
    require(&["wireguard-go"]).unwrap();
    let link = Link::new(2);
    let [a, b] = [0, 1].map(|place| link.node(place));
    b.run("ip link delete wg0").unwrap();
    until(PATIENCE, "the old device to end", || b.run("ls /run/wireguard/wg0.sock").is_err().then_some(()))
        .unwrap();
    Program::WireguardGo.start(b);
    link.configure(1);
    link.address(1);
    // Either end begins once, without a session from before.
    for beginner in [0, 1] {
        for (from, to) in [(beginner, 1 - beginner), (1 - beginner, beginner)] {
            for address in inner(to) {
                reach(link.node(from), address);
            }
        }
        let [x, y] = [beginner, 1 - beginner];
        for (place, peer) in [(x, y), (y, x)] {
            let key = link.keys[peer].public.trim();
            link.node(place).run(&format!("wg set wg0 peer {key} remove")).unwrap();
        }
        [0, 1].iter().for_each(|place| link.configure(*place));
    }
    put_behind(b);
    a.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    a.run(&format!("ip route add fd20::/16 via {}", inner(1)[1])).unwrap();
    for to in BEHIND {
        reach(a, to.parse().unwrap());
    }
    streams(&a.host.space, &b.host.space, inner(1)[0], 1, 16);
}

#[test]
fn addresses_routes_and_neighbours_outlive_the_device_process() {
    let link = Link::new(2);
    link.settle();
    let node = link.node(0);
    node.run(&format!("ip route add 172.20.0.0/16 via {}", inner(1)[0])).unwrap();
    node.run(&format!(
        "ip neigh replace {} lladdr {} dev wg0 nud permanent",
        inner(1)[0],
        link.link_address(1)
    ))
    .unwrap();
    let state = || {
        ["ip -o address show dev wg0", "ip route show dev wg0", "ip -6 route show dev wg0"]
            .map(|line| node.run(line).unwrap().replace(" linkdown", ""))
    };
    let before = state();
    for signal in ["KILL", "TERM"] {
        let process = node.run("pgrep -x wireloom").unwrap();
        node.run(&format!("kill -{signal} {}", process.trim())).unwrap();
        until(PATIENCE, "the process to end", || node.run("pgrep -x wireloom").is_err().then_some(()))
            .unwrap();
        assert_eq!(state(), before, "{signal}");
        start(node, LINK);
        link.configure(0);
        assert_eq!(state(), before, "{signal}");
        let neighbours = node.run("ip neigh show dev wg0 nud permanent").unwrap();
        assert!(neighbours.contains(&inner(1)[0].to_string()), "{neighbours}");
        reach(node, inner(1)[0]);
    }
    // Removing the socket takes the interface away.
    node.run("rm /run/wireguard/wg0.sock").unwrap();
    until(PATIENCE, "the interface to go", || node.run("ip link show wg0").is_err().then_some(())).unwrap();
}

#[test]
fn options_that_do_not_fit_together_are_refused_with_what_to_choose() {
    let lab = Lab::new(&Layout { nodes: 1, pods: 0, ..Layout::default() }).unwrap();
    let node = &lab.nodes[0];
    for (words, fix) in [
        ("--peer-lookup gateway", "choose source check \"firewall\" or \"off\""),
        ("--source-check firewall", "choose source check \"allowed-ips\" or \"off\""),
        ("--peer-lookup next-hop", "expected destination or gateway"),
    ] {
        let error = node.run(&format!("{} device wg0 {words}", wireloom().display())).unwrap_err();
        assert!(error.to_string().contains(fix), "{error}");
        assert!(node.run("ip link show wg0").is_err());
    }
}
