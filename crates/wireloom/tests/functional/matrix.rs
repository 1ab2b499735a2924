//! The behaviour matrix, measured: who reaches whom, and what of it the underlay can read.

use std::time::Duration;

use ipnet::IpNet;
use wireloom::lab::{
    Addresses, Capture, Content, Layout, Matrix, Packet, Pinger, Promise, Stream, Wire,
    probe::{Exchange, probe},
};
use wireloom_plan::kernel::Family;

use crate::fleet::Fleet;

const SCOPED: &str = "encrypt_host_traffic = false";
const HOST: &str = "encrypt_host_traffic = true";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn scoped_mode_encrypts_pod_to_pod_and_nothing_else() {
    Fleet::new(Layout { nodes: 3, ..Layout::default() }, SCOPED).settle(Promise::SCOPED);
}

#[test]
fn scoped_mode_with_strict_source_validation_everywhere() {
    let layout = Layout { rp_filter: 1, block_address: true, ..Layout::default() };
    Fleet::new(layout, SCOPED).settle(Promise::SCOPED);
}

#[test]
fn host_mode_encrypts_all_four_directions() {
    Fleet::new(Layout { nodes: 3, ..Layout::default() }, HOST).settle(Promise::HOST);
}

/// The source that the kernel would choose by itself may be the bridge's (`block_address`), and the
/// tunnel's own UDP, and ARP on the underlay, are put to source validation (`rp_filter`).
#[test]
fn host_mode_with_strict_source_validation_everywhere() {
    let layout = Layout { rp_filter: 1, block_address: true, ..Layout::default() };
    let fleet = Fleet::new(layout, HOST);
    fleet.settle(Promise::HOST);
    // A neighbour entry from before would hide an ARP request that is not answered.
    for node in &fleet.lab.nodes {
        node.run("ip neigh flush dev eth0").unwrap();
    }
    fleet.settle(Promise::HOST);
    let sysctl = |path| fleet.lab.nodes[0].host.space.sysctl(path).unwrap();
    assert_eq!(sysctl("net/ipv4/conf/all/src_valid_mark"), "0", "the global switch breaks other software");
    assert_eq!(sysctl("net/ipv4/conf/all/rp_filter"), "1");
    assert_eq!(sysctl("net/ipv4/conf/eth0/src_valid_mark"), "1");
    assert_eq!(sysctl("net/ipv4/conf/eth0/rp_filter"), "2");
}

#[test]
fn nothing_between_pods_is_readable_on_the_underlay() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let mut packets = Vec::new();
    for family in FAMILIES {
        let stream = Stream::start(&a.pods[0], &b.pods[0], family).unwrap();
        fleet.wait("the stream to flow", |_| {
            packets.extend(capture.drain().unwrap());
            stream.received() > 200_000
        });
        let report = stream.stop().unwrap();
        assert!(report.intact && report.received == report.sent, "{report:?}");
        let cell = probe(fleet.lab.underlay(), &b.pods[0], &a.pods[0], family, Exchange::Udp).unwrap();
        assert_eq!((cell.reachable, cell.wire), (true, Wire::Encrypted), "UDP over {family:?}");
    }
    packets.extend(capture.drain().unwrap());
    let pools: Vec<IpNet> = fleet.mesh.pools.iter().map(|pool| pool.cidr).collect();
    let from_pod_to_pod = |packet: &&Packet| {
        let pooled = |address| pools.iter().any(|pool| pool.contains(address));
        pooled(&packet.source) && pooled(&packet.destination)
    };
    assert_eq!(packets.iter().find(from_pod_to_pod), None);
    let data =
        packets.iter().filter(|packet| matches!(packet.content, Content::WireGuard { message: 4, .. }));
    assert!(data.count() > 200, "the stream crossed the underlay as WireGuard data");
}

#[test]
fn nothing_between_nodes_is_readable_in_host_mode() {
    let fleet = Fleet::new(Layout::default(), HOST);
    fleet.settle(Promise::HOST);
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let matrix = Matrix::measure(&fleet.lab).unwrap();
    assert_eq!(matrix.broken(Promise::HOST), [""; 0]);
    let packets = capture.drain().unwrap();
    let readable = |packet: &&Packet| !matches!(packet.content, Content::WireGuard { .. } | Content::Link);
    assert_eq!(packets.iter().find(readable), None);
}

/// What a node forwards for others keeps an outside source, which no scoped rule covers.
#[test]
fn forwarded_traffic_from_outside_is_direct_in_scoped_mode() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let outside = Addresses { v4: [203, 0, 113, 9].into(), v6: "2001:db8:113::9".parse().unwrap() };
    fleet.lab.attach(outside, 0).unwrap();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let client = a.pods.last().unwrap();
    for family in FAMILIES {
        let cell = probe(fleet.lab.underlay(), client, &b.pods[0], family, Exchange::Ping).unwrap();
        assert_eq!((cell.reachable, cell.wire), (true, Wire::Direct), "{family:?}");
    }
}

#[test]
fn the_mode_is_switched_both_ways_on_the_live_mesh() {
    let layout = Layout { rp_filter: 1, ..Layout::default() };
    let fleet = Fleet::new(layout, SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let pairs = [
        ("host → pod", &a.host, &b.pods[0]),
        ("pod → pod", &a.pods[0], &b.pods[0]),
        ("pod → host", &a.pods[0], &b.host),
        ("host → host", &a.host, &b.host),
    ];
    for (routing, promise, way) in [(HOST, Promise::HOST, "on"), (SCOPED, Promise::SCOPED, "off")] {
        let pingers: Vec<_> = pairs
            .iter()
            .flat_map(|(name, from, to)| FAMILIES.map(|family| (name, family, from, to)))
            .map(|(name, family, from, to)| {
                (name, family, Pinger::start(from, to, family, Duration::from_millis(10)).unwrap())
            })
            .collect();
        fleet.route(routing);
        fleet.settle(promise);
        for (name, family, pinger) in pingers {
            let report = pinger.stop().unwrap();
            println!("host mode {way}: {name} over {family:?}: {} of {} lost", report.lost, report.sent);
            assert!(report.lost <= 50, "{name} over {family:?}: {report:?}");
        }
    }
}
