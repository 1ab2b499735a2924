//! Which source address the device's datagrams have, whatever the kernel says when it is told to send them.

use std::net::{IpAddr, SocketAddr};

use wireloom_plan::routing::Family;

use crate::fixtures::tunnel::{PORT, Program, Tunnel, inner, ping};

/// The kernel hands an ICMP error about one datagram to whoever sends the next one, to anybody.
#[test]
fn an_icmp_error_does_not_change_the_source_address() {
    for (family, table, second, prefix, errors) in [
        (
            Family::V4,
            "ip",
            "192.168.1.222",
            "/24",
            ["icmp host-unreachable", "icmp net-unreachable", "icmp admin-prohibited"],
        ),
        (
            Family::V6,
            "ip6",
            "fd00:192:168:1::222",
            "/64 nodad preferred_lft 0",
            ["icmpv6 addr-unreachable", "icmpv6 no-route", "icmpv6 admin-prohibited"],
        ),
    ] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        let node = tunnel.node(1);
        // Routing prefers the first address as a source: the second is secondary (IPv4) or deprecated (IPv6).
        node.run(&format!("ip address add {second}{prefix} dev eth0")).unwrap();
        let endpoint = SocketAddr::new(second.parse::<IpAddr>().unwrap(), PORT).to_string();
        tunnel.set_peer(0, 1, &format!("endpoint {endpoint}"));
        tunnel.settle();
        for error in errors {
            // Each datagram is refused, and the next one finds the error about it.
            let refuse = format!(
                "table {table} test {{ chain output {{\n type filter hook output priority 0\n \
                 udp sport {PORT} reject with {error}\n }}\n }}\n"
            );
            node.host.space.feed("nft -f -", &refuse).unwrap();
            assert!(!ping(node, inner(0)[0]), "{error}");
            node.run(&format!("nft delete table {table} test")).unwrap();
            tunnel.settle_from(1, 0);
            assert_eq!(tunnel.shown(0, "endpoints"), endpoint, "{error}");
        }
        // Routing that has no way from there is another matter.
        node.run(&format!(
            "ip {} rule add from {second} prohibit",
            if family == Family::V4 { "-4" } else { "-6" }
        ))
        .unwrap();
        tunnel.settle_from(1, 0);
        assert_eq!(tunnel.shown(0, "endpoints"), tunnel.endpoint(1, family).to_string());
    }
}
