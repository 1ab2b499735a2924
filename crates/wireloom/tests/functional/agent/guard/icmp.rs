//! An ICMP error quotes what it is about. About a packet that came through the tunnel, it goes back through the tunnel
//! or not at all, and path MTU discovery works.

use std::{
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use wireloom_lab::{FAMILIES, Node, Place, at_this_pace};
use wireloom_plan::routing::Family;

use super::{Mode, Watched, carries_streams};
use crate::fixtures::fleet::Fleet;

/// The MTU of a pod's interface behind the tunnel, in bytes.
const POD_MTU: u32 = 1300;

/// The time between two datagrams.
const PAUSE: Duration = Duration::from_millis(5);

/// How long to wait for a refusal.
const CONNECT: Duration = Duration::from_millis(500);

/// Sends pings of this many bytes, IP header included, that nobody may fragment, with more options of `ping`.
fn pings(from: &Place, to: &Place, length: u32, options: &str) {
    for family in FAMILIES {
        let payload = length - if family == Family::V4 { 28 } else { 48 };
        let to = to.addresses.of(family);
        let line = format!("ping -n -q -M do -c 10 -i 0.02 -W 0.2 -s {payload} {options} {to}");
        // They need not be answered.
        let _ = from.space.run(&line);
    }
}

/// Sets the MTU at both ends of the first pod's cable and of the bridge that it is on.
fn set_pod_mtu(node: &Node, mtu: u32) {
    node.run(&format!("ip link set pod-1 mtu {mtu}")).unwrap();
    node.run(&format!("ip link set cni0 mtu {mtu}")).unwrap();
    node.pods[0].space.run(&format!("ip link set eth0 mtu {mtu}")).unwrap();
}

/// Whether a pod has learnt the path MTU to another, over both families.
fn knows_the_mtu(from: &Place, to: &Place) -> bool {
    FAMILIES.iter().all(|family| {
        let shown = from.space.run(&format!("ip route get {}", to.addresses.of(*family))).unwrap();
        shown.contains(&format!("mtu {POD_MTU} "))
    })
}

/// Makes a node refuse what comes out of the tunnel for UDP and TCP port 9 of its pods.
fn reject(node: &Node, with: &str) {
    let table = format!(
        "table inet stranger {{ chain forward {{ type filter hook forward priority 0\n \
         iifname wg0 meta l4proto {{ tcp, udp }} th dport 9 {with}\n }}\n }}\n"
    );
    node.host.space.feed("nft -f -", &table).unwrap();
}

/// Sends datagrams to UDP port 9 of a pod.
fn send_to_port_9(from: &Place, to: &Place) {
    for address in to.addresses.both() {
        let bind = |any: &str| UdpSocket::bind(any).unwrap();
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.space.inside(|| bind(any)).unwrap();
        for _ in 0..10 {
            // The answer to the one before may be here already.
            let _ = socket.send_to(b"hello", (address, 9));
            // A device hands on as one what comes at once.
            thread::sleep(PAUSE);
        }
    }
}

/// Tries to connect to TCP port 9 of a pod.
fn connect_to_port_9(from: &Place, to: &Place) {
    for address in to.addresses.both() {
        let connect = || TcpStream::connect_timeout(&(address, 9).into(), at_this_pace(CONNECT));
        assert!(from.space.inside(connect).unwrap().is_err(), "nobody listens");
    }
}

fn ends(fleet: &Fleet) -> (&Place, &Place) {
    (&fleet.lab.nodes[0].pods[0], &fleet.lab.nodes[1].pods[0])
}

fn errors_leak_nothing_in(mode: Mode) {
    let mut watched = Watched::new(mode);
    // Every error counts.
    for node in &watched.fleet.lab.nodes {
        let all = [("net/ipv4/icmp_ratemask", "0"), ("net/ipv6/icmp/ratelimit", "0")];
        node.host.space.set_sysctls(&all).unwrap();
    }
    watched.case(
        "packets too big for a pod's interface",
        |fleet| {
            set_pod_mtu(&fleet.lab.nodes[1], POD_MTU);
            let (from, to) = ends(fleet);
            pings(from, to, 1320, "");
        },
        |_, ()| {},
    );
    let (from, to) = ends(&watched.fleet);
    let knows = knows_the_mtu(from, to);
    watched.check("the path MTU is learnt over both families", knows);
    let flush = |fleet: &Fleet| {
        for family in ["-4", "-6"] {
            ends(fleet).0.space.run(&format!("ip {family} route flush cache")).unwrap();
        }
    };
    flush(&watched.fleet);
    let mut carried = false;
    watched.case(
        "streams of segments too big for a pod's interface",
        |fleet| {
            let (from, to) = ends(fleet);
            carried = carries_streams(from, to);
        },
        |fleet, ()| {
            set_pod_mtu(&fleet.lab.nodes[1], 1500);
            flush(fleet);
        },
    );
    watched.check("streams find the path MTU", carried);

    watched.case(
        "TTL exceeded behind the tunnel",
        |fleet| {
            let (from, to) = ends(fleet);
            pings(from, to, 100, "-t 2");
        },
        |_, ()| {},
    );
    let gone = watched.fleet.lab.lend_address(1, 99, 1).unwrap();
    let last = watched.fleet.lab.nodes[1].pods.len() - 1;
    watched.case(
        "a pod whose interface is gone, its route with it",
        |fleet| {
            let node = &fleet.lab.nodes[1];
            for (single, family) in gone.single().iter().zip(["-4", "-6"]) {
                node.run(&format!("ip {family} route del {single} dev cni0")).unwrap();
            }
            pings(ends(fleet).0, &node.pods[last], 100, "");
        },
        |_, ()| {},
    );
    watched.case(
        "a pod that no longer answers, its route still there",
        |fleet| {
            let node = &fleet.lab.nodes[1];
            // Three solicitations, 50 ms apart.
            for family in ["ipv4", "ipv6"] {
                let path = format!("net/{family}/neigh/cni0/retrans_time_ms");
                node.host.space.set_sysctls(&[(&path, "50")]).unwrap();
            }
            node.pods[last].space.run("ip link set eth0 down").unwrap();
            for single in gone.single() {
                node.run(&format!("ip route replace {single} dev cni0")).unwrap();
                node.run(&format!("ip neigh flush to {single} dev cni0")).unwrap();
            }
            pings(ends(fleet).0, &node.pods[last], 100, "");
        },
        |_, ()| {},
    );
    for with in ["reject", "reject with icmpx admin-prohibited"] {
        watched.case(
            &format!("a firewall's `{with}`"),
            |fleet| {
                reject(&fleet.lab.nodes[1], with);
                let (from, to) = ends(fleet);
                send_to_port_9(from, to);
            },
            |fleet, ()| drop(fleet.lab.nodes[1].run("nft delete table inet stranger").unwrap()),
        );
    }
    watched.case(
        "a firewall's `reject with tcp reset`",
        |fleet| {
            reject(&fleet.lab.nodes[1], "meta l4proto tcp reject with tcp reset");
            let (from, to) = ends(fleet);
            connect_to_port_9(from, to);
        },
        |fleet, ()| drop(fleet.lab.nodes[1].run("nft delete table inet stranger").unwrap()),
    );
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_in_scoped_mode() {
    errors_leak_nothing_in(Mode::Scoped);
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_in_host_mode() {
    errors_leak_nothing_in(Mode::Host);
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_with_reject() {
    errors_leak_nothing_in(Mode::Reject);
}
