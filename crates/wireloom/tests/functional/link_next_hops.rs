//! The userspace interface as a link: the next hop that routing chose is the peer.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use wireloom_lab::Layout;

use crate::{
    neighbours::{BEHIND, Link, pings, put_behind, reach},
    tunnel::inner,
};

#[test]
fn a_gateway_leads_to_prefixes_in_nobody_s_allowed_ips() {
    let link = Link::with(Layout { nodes: 3, pods: 0, rp_filter: 1, ..Layout::default() });
    put_behind(link.node(1));
    let node = link.node(0);
    for (prefix, gateway, to) in
        [("172.20.0.0/16", inner(1)[0], BEHIND[0]), ("fd20::/16", inner(1)[1], BEHIND[1])]
    {
        node.run(&format!("ip route add {prefix} via {gateway}")).unwrap();
        reach(node, to.parse().unwrap());
    }
    // The same prefix by IPv4 over an IPv6 next hop.
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
        let sent =
            link.sent_meanwhile([1, 2], || assert!(pings(node, &format!("-s 1200 {words}")), "{words}"));
        let [used, other] = if table == 101 { sent } else { [sent[1], sent[0]] };
        assert!(used > 1200 && other < 1200, "{words}: {sent:?}");
    }
}

#[test]
fn flows_spread_over_two_gateways_and_each_stays_on_one() {
    let link = Link::new(3);
    link.settle();
    let node = link.node(0);
    let by_ports = ["net/ipv4/fib_multipath_hash_policy", "net/ipv6/fib_multipath_hash_policy"];
    node.host.space.set_sysctls(&by_ports.map(|path| (path, "1"))).unwrap();
    let packet = [0; 1000];
    for (family, prefix, to) in [(0, "172.20.0.0/16", BEHIND[0]), (1, "fd20::/16", BEHIND[1])] {
        let [one, other] = [1, 2].map(|place| inner(place)[family]);
        node.run(&format!("ip route add {prefix} nexthop via {one} nexthop via {other}")).unwrap();
        let to = SocketAddr::new(to.parse().unwrap(), 9);
        let flow = |packets: u64| {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            for _ in 0..packets {
                socket.send_to(&packet, to).unwrap();
            }
            // The datagrams are with the peers when later ones are.
            thread::sleep(Duration::from_millis(20));
        };
        let spread =
            link.sent_meanwhile([1, 2], || node.host.space.inside(|| (0..40).for_each(|_| flow(5))).unwrap());
        assert!(spread.iter().all(|bytes| *bytes > 10_000), "{spread:?}");
        for _ in 0..4 {
            let one = link.sent_meanwhile([1, 2], || {
                node.host.space.inside(|| flow(100)).unwrap();
                thread::sleep(Duration::from_millis(300));
            });
            let most = one.iter().any(|bytes| *bytes > 90_000);
            assert!(most && one.iter().any(|bytes| *bytes < 2_000), "{one:?}");
        }
    }
}
