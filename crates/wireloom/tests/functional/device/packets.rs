//! Which datagrams the userspace interface sends, from where, and which it drops.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use wireloom_lab::{Capture, Content, Layout, PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::fixtures::{
    device::{drops, process, request},
    transfer::uninterrupted,
    tunnel::{PORT, Program, Tunnel, all_answered, inner, ping},
};

#[test]
fn an_idle_interface_sends_nothing() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    let capture = Capture::open(tunnel.lab.underlay()).unwrap();
    // Everything, multicast included, is for the peer.
    tunnel.set_peer(0, 1, "allowed-ips 0.0.0.0/0,::/0");
    tunnel.set_endpoint(0, 1, Family::V4);
    let node = tunnel.node(0);
    // That nothing is sent can only be seen by waiting. The kernel sends router solicitations and multicast
    // reports within about a second after an interface comes up (RFC 4861, section 6.3.7: at most 1 s).
    for _ in 0..2 {
        node.run("ip link set wg0 down").unwrap();
        node.run("ip link set wg0 up").unwrap();
        std::thread::sleep(Duration::from_millis(1500));
    }
    let shown = node.run("ip -6 address show dev wg0").unwrap();
    assert!(!shown.contains("fe80"), "{shown}");
    let sent: Vec<_> = capture.drain().unwrap();
    let sent: Vec<_> =
        sent.iter().filter(|packet| matches!(packet.content, Content::WireGuard { .. })).collect();
    assert!(sent.is_empty(), "{sent:?}");
}

#[test]
fn a_persistent_keepalive_needs_no_traffic() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    tunnel.set_endpoint(0, 1, Family::V6);
    tunnel.set_peer(0, 1, "persistent-keepalive 1");
    until(PATIENCE, "a handshake", || (tunnel.handshake(1) > 0).then_some(())).unwrap();
    // Each is an empty message of 32 bytes.
    let received = || {
        let shown = tunnel.shown(1, "transfer");
        shown.split('\t').next().unwrap().parse::<u64>().unwrap()
    };
    let begun = (Instant::now(), received());
    until(PATIENCE, "three keepalives", || (received() >= begun.1 + 96).then_some(())).unwrap();
    // One that had arrived before may count only now.
    assert!(begun.0.elapsed() > Duration::from_millis(1500), "one a second");
}

#[test]
fn every_datagram_carries_the_firewall_mark() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(0);
    let unmarked_is_lost = "table inet test { chain output {\n type filter hook output priority 0\n \
                            oifname eth0 udp dport 51820 meta mark != 0xa drop\n }\n }\n";
    node.host.space.feed("nft -f -", unmarked_is_lost).unwrap();
    assert!(!ping(node, inner(1)[0]));
    node.run("wg set wg0 fwmark 0xa").unwrap();
    tunnel.settle();
    // The same on a port that is opened later, when the device has given up most of its privileges.
    node.run("wg set wg0 listen-port 53").unwrap();
    tunnel.settle();
    node.run("wg set wg0 fwmark 0").unwrap();
    assert!(!ping(node, inner(1)[0]));
}

#[test]
fn handshake_messages_have_the_kernels_service_class_and_data_has_none() {
    for family in [Family::V4, Family::V6] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        // With UDP's header, an initiation has 156 bytes and a response 100, which no data message has.
        let others_are_lost = format!(
            "table inet test {{ chain output {{\n type filter hook output priority 0\n \
             oifname eth0 udp length {{ 100, 156 }} {ip} dscp != af41 drop\n \
             oifname eth0 udp dport {PORT} udp length != {{ 100, 156 }} {ip} dscp != cs0 drop\n }}\n }}\n"
        );
        for (place, other) in [(0, 1), (1, 0)] {
            tunnel.node(place).host.space.feed("nft -f -", &others_are_lost).unwrap();
            tunnel.set_endpoint(place, other, family);
        }
        tunnel.settle();
    }
}

#[test]
fn answers_leave_from_the_address_that_the_peer_sent_to() {
    for (family, second, prefix) in [
        (Family::V4, "192.168.1.222", "/24"),
        (Family::V6, "fd00:192:168:1::222", "/64 nodad preferred_lft 0"),
    ] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        let node = tunnel.node(1);
        // Routing prefers the first address as a source: the second is secondary (IPv4) or deprecated (IPv6).
        node.run(&format!("ip address add {second}{prefix} dev eth0")).unwrap();
        let second = second.parse::<IpAddr>().unwrap();
        let endpoint = SocketAddr::new(second, PORT).to_string();
        tunnel.set_peer(0, 1, &format!("endpoint {endpoint}"));
        tunnel.settle();
        assert_eq!(tunnel.shown(0, "endpoints"), endpoint, "the peer did not roam");
        // When that address goes, the device sends from another one, and the peer follows.
        let prefix = prefix.split(' ').next().unwrap();
        node.run(&format!("ip address delete {second}{prefix} dev eth0")).unwrap();
        tunnel.settle_from(1, 0);
        assert_eq!(tunnel.shown(0, "endpoints"), tunnel.endpoint(1, family).to_string());
    }
}

#[test]
fn link_local_endpoints_work_without_any_configured_address() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    let link_local = |place: usize| {
        let shown = tunnel.node(place).run("ip -6 -o address show dev eth0 scope link").unwrap();
        let word = shown.split_whitespace().find(|word| word.starts_with("fe80")).expect("an address");
        word.split('/').next().unwrap().to_owned()
    };
    let endpoint = format!("[{}%eth0]:{PORT}", link_local(1));
    tunnel.set_peer(0, 1, &format!("endpoint {endpoint}"));
    tunnel.settle();
    tunnel.settle_from(1, 0);
    assert_eq!(tunnel.shown(0, "endpoints"), endpoint);
    assert_eq!(tunnel.shown(1, "endpoints"), format!("[{}%eth0]:{PORT}", link_local(0)));
}

#[test]
fn peers_are_served_over_both_families_at_once() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 3]);
    let allow = |place: usize, other: usize| {
        let [v4, v6] = inner(other);
        tunnel.set_peer(place, other, &format!("allowed-ips {v4}/32,{v6}/128"));
    };
    allow(0, 2);
    allow(2, 0);
    tunnel.set_endpoint(0, 1, Family::V4);
    tunnel.set_endpoint(0, 2, Family::V6);
    tunnel.settle_from(0, 1);
    tunnel.settle_from(0, 2);
    let pings = [inner(1), inner(2)].concat();
    let pings: Vec<_> = pings.iter().map(|address| format!("-c 100 -i 0.02 -s 1000 {address}")).collect();
    all_answered(tunnel.node(0), &pings, 400);
}

#[test]
fn packets_as_long_as_the_interfaces_mtu_arrive() {
    let tunnel = Tunnel::established();
    for (mtu, payload) in [(1280, 1252), (9000, 8972)] {
        for place in [0, 1] {
            tunnel.node(place).run(&format!("ip link set wg0 mtu {mtu}")).unwrap();
        }
        // Exactly as long as fits: padding must not make it longer than the MTU. The underlay takes 9,000 bytes only in
        // fragments, so they must be allowed.
        let line = format!("-M dont -c 3 -i 0.01 -s {payload} {}", inner(1)[0]);
        all_answered(tunnel.node(0), &[line], 3);
    }
}

#[test]
fn malformed_and_truncated_messages_of_every_type_are_dropped_silently() {
    let tunnel = Tunnel::established();
    let node = tunnel.node(1);
    let served_by = process(node);
    let victim = tunnel.endpoint(1, Family::V4);
    let attacker = tunnel.node(0).host.space.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    attacker.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let before = drops(node);
    let mut sent = 0;
    let counted = |sent| {
        let counted = || (drops(node) == before + sent).then_some(());
        until(PATIENCE, "every datagram to be counted as dropped", counted)
            .unwrap_or_else(|error| panic!("{error}: {} of {sent}", drops(node) - before));
    };
    let mut send = |datagram: &[u8]| {
        sent += attacker.send_to(datagram, victim).map(|_| 1).unwrap();
        if sent % 64 == 0 {
            // No flood, of which some would be lost: every datagram is to reach the device.
            counted(sent);
        }
    };
    for kind in 0..=6_u8 {
        for fill in [0, 0xff] {
            for len in (0..200).chain([1420, 1500, 9000, 65_507]) {
                let mut datagram = vec![fill; len];
                if let Some(first) = datagram.first_mut() {
                    *first = kind;
                }
                if let (0, Some(reserved)) = (len % 3, datagram.get_mut(1..4)) {
                    reserved.fill(0);
                }
                send(&datagram);
            }
        }
    }
    counted(sent);
    let silence = uninterrupted(|| attacker.recv_from(&mut [0; 2048]));
    assert!(silence.is_err(), "garbage was answered: {silence:?}");
    assert_eq!(process(node), served_by);
    tunnel.settle();
}

#[test]
fn an_endpoint_that_is_routed_into_the_interface_makes_no_storm() {
    // At 1280, a first fragment of IPv6 is never too long for the way: nothing else ends its rounds.
    for (family, mtu) in [(Family::V4, 1420), (Family::V6, 1420), (Family::V6, 1280)] {
        let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
        tunnel.set_endpoint(0, 1, family);
        tunnel.node(0).run(&format!("ip link set wg0 mtu {mtu}")).unwrap();
        tunnel.settle();
        is_routed_into_the_interface(&tunnel, family, mtu);
    }
}

fn is_routed_into_the_interface(tunnel: &Tunnel, family: Family, mtu: usize) {
    let node = tunnel.node(0);
    let endpoint = tunnel.endpoint(1, family).ip();
    let [inside, _] = inner(1);
    tunnel.set_peer(0, 1, "allowed-ips 0.0.0.0/0,::/0");
    let sent = || {
        let interfaces = node.run("cat /proc/net/dev").unwrap();
        let (_, counters) = interfaces.split_once("wg0:").expect("the interface");
        // The first of what is sent is bytes.
        counters.split_whitespace().nth(9).unwrap().parse::<u64>().unwrap()
    };
    let before = sent();
    node.run(&format!("ip route add {endpoint} dev wg0")).unwrap();
    // A packet that fits, and one whose datagrams are fragmented on their way into the interface.
    for size in [56, mtu - 28] {
        let mut command = Command::new("ping");
        command.args(["-n", "-q", "-c1", "-W1", "-s", &size.to_string()]).arg(inside.to_string());
        assert!(
            !node.host.space.output(&mut command).unwrap().status.success(),
            "there is no way to the peer"
        );
    }
    let looping = || {
        let answer = request(node, "get_drops=1\n\n");
        answer.lines().any(|line| line.starts_with("routing-loop=") && line != "routing-loop=0").then_some(())
    };
    until(PATIENCE, "the loop to be counted", looping).unwrap();
    // Without an end to it, each ping is a hundred thousand packets a second.
    let packets = sent() - before;
    assert!(packets < 100, "{packets} packets by {family:?} at {mtu}");
    node.run(&format!("ip route delete {endpoint} dev wg0")).unwrap();
    tunnel.settle();
}

#[test]
fn the_source_address_follows_the_route_to_another_uplink() {
    /// Less than the 15 s after which a handshake is overdue.
    const SOON: Duration = Duration::from_secs(12);
    let layout = Layout { nodes: 2, pods: 0, ..Layout::default() };
    let tunnel = Tunnel::between(&[Program::Wireloom; 2], &layout);
    // A second uplink for both, and an address of the second node that either leads to.
    let ends = [0, 1].map(|place| tunnel.endpoint(place, Family::V6).ip());
    for (place, node) in tunnel.lab.nodes.iter().enumerate() {
        let (own, other) = (ends[place], ends[1 - place]);
        let link = format!("type vxlan id 7 dstport 4789 local {own} remote {other} dev eth0");
        node.run(&format!("ip link add up1 {link}")).unwrap();
        node.run(&format!("ip address add 10.77.0.{}/24 dev up1", place + 1)).unwrap();
        node.run("ip link set up1 up").unwrap();
        node.run("sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0").unwrap();
        node.run("sysctl -w net.ipv4.conf.up1.rp_filter=0").unwrap();
    }
    let [near, far] = [0, 1].map(|place| tunnel.node(place));
    let [near_address, far_address] = [0, 1].map(|place| tunnel.endpoint(place, Family::V4).ip());
    far.run("ip address add 203.0.113.1/32 dev lo").unwrap();
    near.run(&format!("ip route add 203.0.113.1/32 via {far_address} dev eth0")).unwrap();
    tunnel.set_peer(0, 1, &format!("endpoint 203.0.113.1:{PORT}"));
    tunnel.settle();
    tunnel.settle_from(1, 0);
    assert_eq!(tunnel.shown(1, "endpoints"), format!("{near_address}:{PORT}"));
    // The first uplink fails somewhere on the way, and routing finds the other one. A device that stays with its
    // address is cut off until its handshake is overdue.
    far.run(&format!("ip route add blackhole {near_address}/32")).unwrap();
    near.run("ip route replace 203.0.113.1/32 via 10.77.0.2 dev up1").unwrap();
    let inside = inner(1)[0];
    let answered = || ping(near, inside).then_some(());
    until(SOON, "a ping by way of the other uplink", answered).unwrap();
    assert_eq!(tunnel.shown(1, "endpoints"), format!("10.77.0.1:{PORT}"));
    // Back again.
    far.run(&format!("ip route delete blackhole {near_address}/32")).unwrap();
    far.run("ip route add blackhole 10.77.0.1/32").unwrap();
    near.run(&format!("ip route replace 203.0.113.1/32 via {far_address} dev eth0")).unwrap();
    until(SOON, "a ping by way of the first uplink", answered).unwrap();
    assert_eq!(tunnel.shown(1, "endpoints"), format!("{near_address}:{PORT}"));
}
