//! The next hop that routing chose is the peer that gets the packet.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use nix::sys::socket::{setsockopt, sockopt};
use wireloom_lab::{Layout, Node, PATIENCE, require, until};

use crate::{
    fixtures::device::{request, wait_until_gone},
    fixtures::fleet::LONG,
    fixtures::link::{BEHIND, Link, answered, pings, put_behind, reach},
    fixtures::tunnel::{Program, all_answered, inner, ping},
};

#[test]
fn packets_reach_a_prefix_behind_a_peer_that_no_allowed_ips_name() {
    let link = Link::with(Layout { nodes: 3, pods: 0, rp_filter: 1, ..Layout::default() });
    put_behind(link.node(1));
    let node = link.node(0);
    for (prefix, gateway, to) in
        [("172.20.0.0/16", inner(1)[0], BEHIND[0]), ("fd20::/16", inner(1)[1], BEHIND[1])]
    {
        node.run(&format!("ip route add {prefix} via {gateway}")).unwrap();
        reach(node, to.parse().unwrap());
    }
    // The same IPv4 prefix by an IPv6 next hop.
    node.run("ip route del 172.20.0.0/16").unwrap();
    assert!(!pings(node, BEHIND[0]));
    node.run(&format!("ip route add 172.20.0.0/16 via inet6 {} dev wg0", link.link_local(1))).unwrap();
    reach(node, BEHIND[0].parse().unwrap());
}

#[test]
fn two_tables_choose_their_gateways_by_source_and_by_mark() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    for (place, table) in [(1, 101), (2, 102)] {
        put_behind(link.node(place));
        for (prefix, gateway) in [("172.20.0.0/16", inner(place)[0]), ("fd20::/16", inner(place)[1])] {
            node.run(&format!("ip route add {prefix} via {gateway} table {table}")).unwrap();
        }
        for [prefix, gateway] in [
            ["172.30.0.0/16".to_owned(), inner(0)[0].to_string()],
            ["fd30::/16".to_owned(), inner(0)[1].to_string()],
        ] {
            link.node(place).run(&format!("ip route add {prefix} via {gateway}")).unwrap();
        }
    }
    node.run("ip address add 172.30.0.1/32 dev lo").unwrap();
    node.run("ip address add fd30::1/128 dev lo nodad").unwrap();
    for family in ["-4", "-6"] {
        node.run(&format!("ip {family} rule add fwmark 7 lookup 102 priority 10")).unwrap();
    }
    for (source, table) in [("10.99.0.1", 101), ("fd99::1", 101), ("172.30.0.1", 102), ("fd30::1", 102)] {
        let family = if source.contains(':') { "-6" } else { "-4" };
        node.run(&format!("ip {family} rule add from {source} lookup {table} priority 20")).unwrap();
    }
    for (words, table) in [
        (format!("-I 10.99.0.1 {}", BEHIND[0]), 101),
        (format!("-I fd99::1 {}", BEHIND[1]), 101),
        (format!("-I 172.30.0.1 {}", BEHIND[0]), 102),
        (format!("-I fd30::1 {}", BEHIND[1]), 102),
        (format!("-m 7 -I 10.99.0.1 {}", BEHIND[0]), 102),
        (format!("-m 7 -I fd99::1 {}", BEHIND[1]), 102),
    ] {
        let sent = link.sent_meanwhile([1, 2], || answered(node, &format!("-s 1200 {words}")));
        let [used, other] = if table == 101 { sent } else { [sent[1], sent[0]] };
        assert!(used > 1200 && other < 1200, "{words}: {sent:?}");
    }
}

/// The underlay's routes in a table of their own, for the device's own datagrams: everything else may take the link.
#[test]
fn with_a_mark_and_a_rule_even_the_way_to_the_endpoints_may_lead_over_the_link() {
    let link = Link::new(2);
    link.settle();
    let [node, other] = [0, 1].map(|place| link.node(place));
    put_behind(other);
    let endpoint = other.host.addresses.v4;
    node.run("wg set wg0 fwmark 51820").unwrap();
    node.run("ip route add 192.168.1.0/24 dev eth0 table 51820").unwrap();
    node.run("ip rule add fwmark 51820 lookup 51820").unwrap();
    node.run(&format!("ip route add default via {} dev wg0", inner(1)[0])).unwrap();
    node.run(&format!("ip route add {endpoint} via {} dev wg0", inner(1)[0])).unwrap();
    reach(node, BEHIND[0].parse().unwrap());
    reach(node, endpoint.into());
    // Without the rule it is a loop.
    node.run("ip rule del fwmark 51820 lookup 51820").unwrap();
    assert!(!pings(node, BEHIND[0]));
}

#[test]
fn flows_spread_over_two_gateways_and_each_stays_on_one() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let by_ports = ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"];
    node.host.space.set_sysctls(&by_ports.map(|path| (path, "1"))).unwrap();
    for place in [1, 2] {
        put_behind(link.node(place));
    }
    for (family, prefix, to) in [(0, "172.20.0.0/16", BEHIND[0]), (1, "fd20::/16", BEHIND[1])] {
        let [one, other] = [1, 2].map(|place| inner(place)[family]);
        node.run(&format!("ip route add {prefix} nexthop via {one} nexthop via {other}")).unwrap();
        let sinks = [1, 2].map(|place| Sink::open(&link, place, to.parse().unwrap()));
        // Flows of a few packets and of many. That 44 flows all take one of two ways by chance will not happen.
        let flows = [[5; 40].as_slice(), &[100; 4]].concat();
        let gateways: Vec<_> = flows.into_iter().map(|packets| flow(&link, to, &sinks, packets)).collect();
        assert!(gateways.iter().all(|gateways| gateways.len() == 1), "{gateways:?}");
        let all: BTreeSet<_> = gateways.into_iter().flatten().collect();
        assert_eq!(all.len(), 2, "all flows to {to} went by gateway {all:?}");
    }
}

/// An IPv4 route with several next hops asks after its gateways where a sysctl says so; an IPv6 route of a router does
/// where the next hops are objects of their own.
#[test]
fn a_gateway_that_has_died_leaves_all_new_flows_to_the_other_one() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let settings =
        ["ipv4/fib_multipath_hash_policy", "ipv6/fib_multipath_hash_policy", "ipv4/fib_multipath_use_neigh"];
    for setting in settings {
        node.host.space.set_sysctls(&[(&format!("net/{setting}"), "1")]).unwrap();
    }
    for place in [1, 2] {
        put_behind(link.node(place));
    }
    let [[one_v4, one_v6], [other_v4, other_v6]] = [1, 2].map(inner);
    node.run(&format!("ip route add 172.20.0.0/16 nexthop via {one_v4} nexthop via {other_v4}")).unwrap();
    node.run(&format!("ip nexthop add id 1 via {one_v6} dev wg0")).unwrap();
    node.run(&format!("ip nexthop add id 2 via {other_v6} dev wg0")).unwrap();
    node.run("ip nexthop add id 3 group 1/2").unwrap();
    node.run("ip route add fd20::/16 nhid 3").unwrap();
    let ways = BEHIND.map(|to| (to, [1, 2].map(|place| Sink::open(&link, place, to.parse().unwrap()))));
    // That 20 flows all take one of two ways by chance will not happen.
    let taken = || {
        ways.each_ref().map(|(to, sinks)| {
            let gateways: BTreeSet<_> = (0..20).flat_map(|_| flow(&link, to, sinks, 5)).collect();
            gateways.into_iter().collect::<Vec<_>>()
        })
    };
    assert_eq!(taken(), [[0, 1]; 2]);

    // The stack asks after a second already whether a neighbour is still there. It applies that to new answers.
    for family in ["ipv4", "ipv6"] {
        for (setting, value) in [("base_reachable_time_ms", "1000"), ("delay_first_probe_time", "1")] {
            let path = format!("net/{family}/neigh/wg0/{setting}");
            node.host.space.set_sysctls(&[(&path, value)]).unwrap();
        }
    }
    node.run("ip neigh flush dev wg0").unwrap();
    let known = |address: IpAddr| node.run(&format!("ip neigh show {address} dev wg0")).unwrap();
    link.node(2).run("ip link set eth0 down").unwrap();
    // Meanwhile nobody sends to the other gateway, nor hears of it: its silence is no death.
    until(LONG, "the stack to give the dead gateway up", || {
        let mut left = inner(2).into_iter().filter(|address| !known(*address).contains("FAILED")).peekable();
        let given_up = left.peek().is_none();
        left.for_each(|address| assert!(!ping(node, address)));
        given_up.then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", inner(2).map(known)));
    assert_eq!(taken(), [[0]; 2]);
    for address in inner(1) {
        let known = known(address);
        assert!(known.contains(&link.link_address(1)), "{known}");
    }

    // It comes back, with no packet for or from its own addresses: its device greets this one.
    link.node(2).run("ip link set eth0 up").unwrap();
    link.node(2)
        .run(&format!("wg set wg0 peer {} persistent-keepalive 1", link.keys[0].public.trim()))
        .unwrap();
    until(LONG, "the stack to take the gateway back", || {
        let there = link.link_address(2);
        let is_back = |address| known(address).contains(&there) && !known(address).contains("FAILED");
        inner(2).into_iter().all(is_back).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", inner(2).map(known)));
    assert_eq!(taken(), [[0, 1]; 2]);
}

/// A router that forwards a packet by the interface by which it came tells the sender to take the direct way. In IPv4
/// the `send_redirects` of `all` is enough for that; IPv6 has no such setting.
#[test]
fn a_hub_redirects_no_spoke_whichever_program_makes_its_interface() {
    require(&["nft", "wireguard-go"]).unwrap();
    let link = Link::new(3);
    link.settle();
    let [hub, spokes @ ..] = [0, 1, 2].map(|place| link.node(place));
    // IPv6 follows the redirects of next hops by link-local addresses alone.
    let gateways = [inner(0)[0], link.link_local(0).into()];
    hub.host.space.set_sysctls(&[("net/ipv4/conf/all/send_redirects", "1")]).unwrap();
    for (place, other) in [(1, 2), (2, 1)] {
        let spoke = link.node(place);
        spoke.run(&format!("wg set wg0 peer {} remove", link.keys[other].public.trim())).unwrap();
        for (to, gateway) in inner(other).into_iter().zip(gateways) {
            spoke.run(&format!("ip route add {to} via {gateway} dev wg0")).unwrap();
        }
        for interface in ["ipv4/conf/all", "ipv4/conf/wg0", "ipv6/conf/wg0"] {
            let path = format!("net/{interface}/accept_redirects");
            spoke.host.space.set_sysctls(&[(&path, "1")]).unwrap();
        }
        // A router follows no redirects in IPv6.
        spoke.host.space.set_sysctls(&[("net/ipv6/conf/wg0/forwarding", "0")]).unwrap();
        count_redirects(spoke, "netdev", "ingress device wg0");
    }
    // Our device lets none leave, and none of others arrive.
    for refusing in [&[hub][..], &spokes] {
        if refusing.len() > 1 {
            hub.run("ip link delete wg0").unwrap();
            wait_until_gone(hub);
            Program::WireguardGo.start(hub);
            hub.run("ip link set wg0 addrgenmode none").unwrap();
            link.configure(0);
            link.address(0);
            hub.run(&format!("ip address add {}/64 dev wg0 nodad", gateways[1])).unwrap();
        }
        count_redirects(hub, "inet", "output");
        for to in [1, 2].map(|place| inner(place)[0]) {
            reach(hub, to);
        }
        all_answered(spokes[0], &inner(2).map(|to| format!("-c 50 -i 0.02 {to}")), 100);
        let sent = || redirects(hub, "inet");
        assert!(sent().iter().all(|count| *count > 0), "the hub's kernel has sent {:?}", sent());
        let refused = || refusing.iter().map(|node| refused(node)).sum::<u64>();
        let all = || (refused() == sent().iter().sum::<u64>()).then_some(());
        until(PATIENCE, "all redirects to be refused", all)
            .unwrap_or_else(|error| panic!("{error}: {} of {:?}", refused(), sent()));
        for (spoke, other) in [(spokes[0], 2), (spokes[1], 1)] {
            assert_eq!(redirects(spoke, "netdev"), [0; 2], "{}", spoke.name);
            for (to, gateway) in inner(other).into_iter().zip(gateways) {
                let way = spoke.run(&format!("ip route get {to}")).unwrap();
                assert!(way.contains(&format!("via {gateway} ")) && !way.contains("redirected"), "{way}");
            }
        }
    }
}

/// Begins to count the ICMP redirects that pass a hook of a node's firewall.
fn count_redirects(node: &Node, family: &str, hook: &str) {
    let table = format!(
        "table {family} seen\ndelete table {family} seen\ntable {family} seen {{\n \
         counter v4 {{ }}\n counter v6 {{ }}\n chain seen {{ type filter hook {hook} priority 0;\n \
         icmp type redirect counter name v4\n icmpv6 type nd-redirect counter name v6\n }}\n}}\n"
    );
    node.host.space.feed("nft -f -", &table).unwrap();
}

/// How many [have passed](count_redirects) in each family.
fn redirects(node: &Node, family: &str) -> [u64; 2] {
    ["v4", "v6"].map(|name| {
        let shown = node.run(&format!("nft list counter {family} seen {name}")).unwrap();
        let mut words = shown.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).unwrap().parse().unwrap()
    })
}

/// How many packets a node's device has dropped because nobody on a link may send them.
fn refused(node: &Node) -> u64 {
    let drops = request(node, "get_drops=1\n\n");
    drops.lines().find_map(|line| line.strip_prefix("not-for-the-link=")).unwrap().parse().unwrap()
}

/// Receives on one of the gateways what is sent to the address behind both.
struct Sink(UdpSocket);

impl Sink {
    const PORT: u16 = 9;

    fn open(link: &Link, gateway: usize, address: IpAddr) -> Self {
        let bind = || UdpSocket::bind((address, Self::PORT)).unwrap();
        let socket = link.node(gateway).host.space.inside(bind).unwrap();
        // For a hundred packets at a time.
        setsockopt(&socket, sockopt::RcvBuf, &(1 << 20)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// How many datagrams have come since the last look.
    fn count(&self) -> usize {
        std::iter::from_fn(|| self.0.recv(&mut [0; 2048]).ok()).count()
    }
}

/// Sends the packets of a new flow, waits until all of them have arrived, and returns the gateways, by their
/// place among the sinks.
#[track_caller]
fn flow(link: &Link, to: &str, sinks: &[Sink; 2], packets: usize) -> BTreeSet<usize> {
    let to = SocketAddr::new(to.parse().unwrap(), Sink::PORT);
    let send = || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        for _ in 0..packets {
            socket.send_to(&[0; 1000], to).unwrap();
        }
    };
    link.node(0).host.space.inside(send).unwrap();
    let mut counts = [0; 2];
    let arrived = until(PATIENCE, "all packets of a flow", || {
        for (count, sink) in counts.iter_mut().zip(sinks) {
            *count += sink.count();
        }
        (counts.iter().sum::<usize>() == packets).then_some(())
    });
    assert!(arrived.is_ok(), "of {packets} packets to {to} the gateways got {counts:?}");
    (0..2).filter(|place| counts[*place] > 0).collect()
}
