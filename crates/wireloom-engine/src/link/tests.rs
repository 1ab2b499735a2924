//! The link, frame by frame.

mod unanswered;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use proptest::prelude::*;
use wireloom_proto::{Device, Now, PeerId, UnixTime, inner};
use wireloom_types::{PrivateKey, PublicKey};

use super::*;
use crate::{
    drops::Reason,
    packet::{
        checksum::checksum,
        ethernet::{HEADER_LEN, kind},
        ipv4, protocol,
    },
};

const OWN: LinkAddress = LinkAddress::from_bytes([2, 9, 9, 9, 9, 9]);
const BROADCAST: LinkAddress = LinkAddress::BROADCAST;
const MTU: usize = 1420;

fn at(seconds: u64) -> Now {
    let elapsed = Duration::from_secs(seconds);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

/// A device and its link. Peers 1 and 2 have 10.0.0.N, fd00::N and 172.N.0.0/16. Peer 3 has 0.0.0.0/0 and no endpoint.
struct World {
    device: Device,
    link: Link,
}

fn key(number: u8) -> PublicKey {
    private_key(number).public_key()
}

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn address(number: u8) -> LinkAddress {
    LinkAddress::of(key(number))
}

/// The decision about a frame.
#[derive(Debug, PartialEq, Eq)]
enum Decided {
    Peer(PublicKey),
    AllPeers,
    Local,
    Dropped(EngineDrop),
    Unreachable,
}

impl World {
    fn new() -> Self {
        let mut device = Device::new(&[1; 32]);
        device.configure(at(1), |configuration| {
            configuration.set_private_key(Some(private_key(9)));
            for number in [1, 2] {
                let mut peer = configuration.add_peer(key(number)).unwrap();
                peer.set_endpoint(SocketAddr::from(([192, 0, 2, number], 51820)));
                for network in [
                    format!("10.0.0.{number}/32"),
                    format!("fd00::{number}/128"),
                    format!("172.{number}.0.0/16"),
                ] {
                    peer.add_allowed_ip(network.parse().unwrap());
                }
            }
            configuration.add_peer(key(3)).unwrap().add_allowed_ip("0.0.0.0/0".parse().unwrap());
        });
        let link = Link::new(OWN, device.transport());
        link.change(|table| device.peers().for_each(|peer| table.insert(peer.path)));
        Self { device, link }
    }

    /// The decision about a frame, and the answer to the network stack.
    fn route(&mut self, frame: &[u8]) -> (Decided, Vec<u8>) {
        let mut answer = Answer::default();
        let longest = frame.len().saturating_sub(HEADER_LEN);
        let table = self.link.table();
        let decided = match self.link.decide(&table, at(5).monotonic, frame, longest, MTU, &mut answer) {
            Decision::Peer(path) => Decided::Peer(*path.public_key()),
            Decision::AllPeers => Decided::AllPeers,
            Decision::Local => Decided::Local,
            Decision::Drop(Reason::Engine(reason)) => Decided::Dropped(reason),
            Decision::Unreachable(_) => Decided::Unreachable,
            Decision::Drop(Reason::Protocol(reason)) => panic!("{reason}"),
        };
        (decided, answer.bytes)
    }

    fn set_path_mtu(&mut self, number: u8, bytes: Option<u16>) {
        self.device.configure(at(2), |configuration| {
            configuration.peer(&key(number)).unwrap().set_path_mtu(bytes);
        });
    }

    fn id(&self, number: u8) -> PeerId {
        self.device.peer(&key(number)).unwrap().id
    }
}

fn frame(to: LinkAddress, kind: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header { destination: to, source: OWN, kind }.to_bytes();
    [&header[..], payload].concat()
}

fn arp(to: LinkAddress, asker: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &OWN.to_bytes(), &asker, &[0; 6], &target].concat();
    frame(to, kind::ARP, &request)
}

fn icmpv6(to: LinkAddress, source: &str, destination: &str, message: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let ip = ipv6::icmpv6_header(octets(source), octets(destination), message.len());
    let mut message = message.to_vec();
    ipv6::fill_icmpv6_checksum(&ip, &mut message);
    frame(to, kind::IPV6, &[&ip[..], &message].concat())
}

fn solicitation(to: LinkAddress, asker: &str, target: &str) -> Vec<u8> {
    let target = target.parse::<Ipv6Addr>().unwrap().octets();
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1], &OWN.to_bytes()].concat();
    icmpv6(to, asker, "ff02::1:ff00:1", &message)
}

fn v4(to: LinkAddress, destination: [u8; 4], len: usize, dont_fragment: bool) -> Vec<u8> {
    let mut packet = ipv4::header(17, [10, 0, 0, 9], destination, len - ipv4::HEADER_LEN).to_vec();
    packet[6] = if dont_fragment { 0x40 } else { 0 };
    packet.resize(len, 7);
    frame(to, kind::IPV4, &packet)
}

fn v6(to: LinkAddress, destination: &str, len: usize) -> Vec<u8> {
    let destination = destination.parse::<Ipv6Addr>().unwrap().octets();
    let source = "fd00::9".parse::<Ipv6Addr>().unwrap().octets();
    let mut packet = ipv6::icmpv6_header(source, destination, len - ipv6::HEADER_LEN).to_vec();
    packet[6] = 17;
    packet.resize(len, 7);
    frame(to, kind::IPV6, &packet)
}

#[test]
fn arp_is_answered_by_the_longest_prefix_in_the_allowed_ips() {
    let mut world = World::new();
    for (target, there) in [([10, 0, 0, 1], address(1)), ([172, 2, 3, 4], address(2))] {
        let (decided, answer) = world.route(&arp(BROADCAST, [10, 0, 0, 9], target));
        assert_eq!(decided, Decided::Local);
        let (header, reply) = Header::split(&answer).unwrap();
        assert_eq!(header, Header { destination: OWN, source: there, kind: kind::ARP });
        let expected =
            [&[0, 1, 8, 0, 6, 4, 0, 2][..], &there.to_bytes(), &target, &OWN.to_bytes(), &[10, 0, 0, 9]]
                .concat();
        assert_eq!(reply, expected);
    }
}

#[test]
fn solicitations_are_answered_with_valid_checksums() {
    let mut world = World::new();
    for (target, there) in [
        ("fd00::1".to_owned(), address(1)),
        // Link-local addresses are derived from keys, so they are answered without being in allowed-IPs.
        (address(2).link_local().to_string(), address(2)),
        ("fd00::77".to_owned(), LinkAddress::NOBODY),
    ] {
        let (decided, answer) = world.route(&solicitation(BROADCAST, "fd00::9", &target));
        assert_eq!(decided, Decided::Local);
        let (header, packet) = Header::split(&answer).unwrap();
        assert_eq!(header, Header { destination: OWN, source: there, kind: kind::IPV6 });
        let message = ipv6::icmpv6(packet).unwrap();
        assert_eq!((message[0], packet[7]), (136, 255));
        assert_eq!(message[8..24], target.parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(message[24..], [&[2, 1][..], &there.to_bytes()].concat());
        assert_eq!(ipv6::icmpv6_checksum(packet.first_chunk().unwrap(), message), 0);
    }
}

#[test]
fn probes_and_announcements_of_addresses_are_not_answered() {
    let mut world = World::new();
    for question in [
        arp(BROADCAST, [0; 4], [10, 0, 0, 1]),
        arp(BROADCAST, [10, 0, 0, 1], [10, 0, 0, 1]),
        solicitation(BROADCAST, "::", "fd00::1"),
        // Announcements: an ARP reply, an advertisement.
        frame(BROADCAST, kind::ARP, &[0, 1, 8, 0, 6, 4, 0, 2]),
        icmpv6(BROADCAST, "fd00::9", "ff02::1", &[136, 0, 0, 0, 0x20, 0, 0, 0]),
    ] {
        assert_eq!(world.route(&question), (Decided::Local, Vec::new()));
    }
}

#[test]
fn a_peer_that_does_not_answer_has_no_link_address_for_the_stack() {
    let mut world = World::new();
    let questions = [
        arp(BROADCAST, [10, 0, 0, 9], [10, 0, 0, 1]),
        arp(address(1), [10, 0, 0, 9], [10, 0, 0, 1]),
        solicitation(BROADCAST, "fd00::9", "fd00::1"),
        solicitation(BROADCAST, "fe80::9", &address(1).link_local().to_string()),
        // Something else told the stack that the peer has this address.
        solicitation(address(1), "fd00::9", "fd77::1"),
    ];
    let decided = |world: &mut World| questions.each_ref().map(|question| world.route(question).0);
    let peer = world.id(1);
    world.device.begin_handshake(at(1), peer);
    assert_eq!(decided(&mut world), [const { Decided::Local }; 5], "it may still answer");
    world.device.handle_timeout(at(7));
    assert_eq!(decided(&mut world), [const { Decided::Unreachable }; 5]);
    assert!(questions.iter().all(|question| world.route(question).1.is_empty()));
    let other = arp(BROADCAST, [10, 0, 0, 9], [10, 0, 0, 2]);
    assert_eq!(world.route(&other).0, Decided::Local);
    // Nor has one whose endpoint is unknown.
    assert_eq!(world.route(&arp(BROADCAST, [10, 0, 0, 9], [8; 4])), (Decided::Unreachable, Vec::new()));
    world.device.configure(at(8), |configuration| {
        configuration.peer(&key(1)).unwrap().set_endpoint(SocketAddr::from(([192, 0, 2, 9], 51820)));
    });
    assert_eq!(decided(&mut world), [const { Decided::Local }; 5], "it may be there now");
}

#[test]
fn nobody_is_redirected_to_another_peer_in_fragments_either() {
    let mut world = World::new();
    let id = world.id(1);
    let mut refused = |frame: &[u8], to: &str| {
        let inbound = world.link.table().inbound_header(id, to.parse().unwrap(), &frame[HEADER_LEN..]);
        let outbound = world.route(frame).0;
        assert_eq!(inbound.is_err(), outbound == Decided::Dropped(EngineDrop::NotForTheLink), "{outbound:?}");
        inbound == Err(EngineDrop::NotForTheLink)
    };
    for kind in 0..=255 {
        let mut message = v4(address(1), [10, 0, 0, 9], 64, false);
        message[14 + 9] = protocol::ICMP;
        message[14 + 20] = kind;
        assert_eq!(refused(&message, "10.0.0.9"), kind == 5, "{kind}");
        // Its first fragment tells as much, a later one nothing.
        message[14 + 6] = 0x20;
        assert_eq!(refused(&message, "10.0.0.9"), kind == 5, "{kind}");
        message[14 + 7] = 1;
        assert!(!refused(&message, "10.0.0.9"));
    }
    let mut cut = v4(address(1), [10, 0, 0, 9], 20, false);
    cut[14 + 9] = protocol::ICMP;
    assert!(refused(&cut, "10.0.0.9"), "the type is missing");
    // IPv6: a first fragment with nothing behind its headers, or with half of a header.
    let fragment = |kind: u8, rest: &[u8]| {
        let mut frame =
            icmpv6(address(1), "fd00::9", "fd00::7", &[&[kind, 0, 0, 1, 0, 0, 0, 0], rest].concat());
        frame[14 + 6] = 44;
        // No checksum, but the first fragment of several.
        frame[14 + 42..14 + 44].copy_from_slice(&[0, 1]);
        frame
    };
    for (kind, rest, expected) in [
        (58, &[][..], true),
        (58, &[137, 0, 0, 0][..], true),
        (58, &[128, 0, 0, 0][..], false),
        (60, &[58][..], true),
        (60, &[58, 0, 0, 0, 0, 0, 0, 0][..], true),
        (17, &[][..], false),
    ] {
        assert_eq!(refused(&fragment(kind, rest), "fd00::7"), expected, "{kind} {rest:?}");
    }
}

#[test]
fn questions_to_a_single_peer_are_answered() {
    let mut world = World::new();
    let mut there = |question: &[u8]| {
        let (_, answer) = world.route(question);
        Header::split(&answer).unwrap().0.source
    };
    assert_eq!(there(&arp(address(1), [10, 0, 0, 9], [10, 0, 0, 1])), address(1));
    // The address has moved to another peer.
    assert_eq!(there(&arp(address(1), [10, 0, 0, 9], [10, 0, 0, 2])), address(2));
    // An address in no peer's allowed-IPs, which the stack takes for that of a peer.
    assert_eq!(there(&solicitation(address(2), "fd00::9", "fd77::1")), address(2));
    assert_eq!(there(&solicitation(address(8), "fd00::9", "fd77::1")), LinkAddress::NOBODY);
}

#[test]
fn the_frame_s_destination_decides_and_not_the_packet_s() {
    let mut world = World::new();
    for packet in [v4(address(2), [10, 0, 0, 1], 100, true), v6(address(2), "2001:db8::1", 100)] {
        assert_eq!(world.route(&packet), (Decided::Peer(key(2)), Vec::new()));
    }
}

#[test]
fn multicast_goes_to_all_peers_but_neighbour_discovery_stays_here() {
    let mut world = World::new();
    let all_routers = LinkAddress::from_bytes([0x33, 0x33, 0, 0, 0, 2]);
    let ospf = LinkAddress::from_bytes([1, 0, 0x5e, 0, 0, 5]);
    assert_eq!(world.route(&v4(ospf, [224, 0, 0, 5], 64, false)).0, Decided::AllPeers);
    assert_eq!(world.route(&v4(BROADCAST, [255; 4], 64, false)).0, Decided::AllPeers);
    for kind in 130..140_u8 {
        let message = icmpv6(all_routers, "fe80::1", "ff02::2", &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let expected = match kind {
            135 | 136 => Decided::Local,
            137 => Decided::Dropped(EngineDrop::NotForTheLink),
            _ => Decided::AllPeers,
        };
        assert_eq!(world.route(&message), (expected, Vec::new()), "{kind}");
    }
}

#[test]
fn frames_of_other_protocols_are_dropped() {
    let mut world = World::new();
    assert_eq!(world.route(&frame(address(1), 0x88cc, &[0; 60])).0, Decided::Dropped(EngineDrop::NotIp));
    assert_eq!(world.route(&[0; 13]).0, Decided::Dropped(EngineDrop::NotIp));
}

/// The ICMP error in a frame: its type, code, source address, source link address, and the last field, which may be an
/// MTU.
fn error_in(frame: &[u8]) -> (u8, u8, IpAddr, LinkAddress, u16) {
    let (header, packet) = Header::split(frame).unwrap();
    assert_eq!(header.destination, OWN);
    let parsed = inner::Packet::parse(packet).unwrap();
    assert_eq!(parsed.len, packet.len());
    let message = if parsed.source.is_ipv4() {
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(checksum(&[&packet[20..]]), 0);
        &packet[20..]
    } else {
        let message = ipv6::icmpv6(packet).unwrap();
        assert_eq!(ipv6::icmpv6_checksum(packet.first_chunk().unwrap(), message), 0);
        message
    };
    (message[0], message[1], parsed.source, header.source, u16::from_be_bytes([message[6], message[7]]))
}

#[test]
fn packets_to_no_peer_and_to_unreachable_peers_come_back_as_unreachable() {
    let mut world = World::new();
    let v4_destination: IpAddr = Ipv4Addr::new(10, 7, 7, 7).into();
    let v6_destination: IpAddr = "fd00::77".parse().unwrap();
    for (to, expected) in
        [(LinkAddress::NOBODY, Decided::Dropped(EngineDrop::NoNeighbour)), (address(3), Decided::Unreachable)]
    {
        let (decided, answer) = world.route(&v4(to, [10, 7, 7, 7], 1400, true));
        assert_eq!(decided, expected);
        assert_eq!(error_in(&answer), (3, 1, v4_destination, to, 0));
        assert_eq!(answer.len(), 14 + 576, "as short as allowed");
        let (decided, answer) = world.route(&v6(to, "fd00::77", 1400));
        assert_eq!(decided, expected);
        assert_eq!(error_in(&answer), (1, 3, v6_destination, to, 0));
        assert_eq!(answer.len(), 14 + 1280);
    }
}

#[test]
fn there_are_no_errors_about_errors_later_fragments_or_packets_without_a_single_source() {
    let mut world = World::new();
    let to = LinkAddress::NOBODY;
    let mut silent = |frame: &[u8]| assert_eq!(world.route(frame).1, Vec::<u8>::new());
    for kind in [3, 4, 5, 11, 12] {
        let mut error = v4(to, [10, 7, 7, 7], 64, false);
        error[14 + 9] = protocol::ICMP;
        error[14 + 20] = kind;
        silent(&error);
    }
    for kind in [1, 2, 3, 4, 127] {
        silent(&icmpv6(to, "fd00::9", "fd00::77", &[kind, 0, 0, 0, 0, 0, 0, 0]));
    }
    let mut fragment = v4(to, [10, 7, 7, 7], 64, false);
    fragment[14 + 7] = 1;
    silent(&fragment);
    let mut without_source = v4(to, [10, 7, 7, 7], 64, false);
    without_source[14 + 12..14 + 16].fill(0);
    silent(&without_source);
    silent(&v4(to, [224, 0, 0, 1], 64, false));
}

#[test]
fn a_packet_that_exceeds_the_path_mtu_comes_back_as_too_big() {
    let mut world = World::new();
    world.set_path_mtu(1, Some(1400));
    // 1400 less 20 (IPv4), 8 (UDP) and 32 (data message) is 1340, which leaves 1328 for padded packets.
    assert_eq!(world.route(&v4(address(1), [8; 4], 1328, true)), (Decided::Peer(key(1)), Vec::new()));
    let (decided, answer) = world.route(&v4(address(1), [8; 4], 1329, true));
    assert_eq!(decided, Decided::Dropped(EngineDrop::TooBig));
    assert_eq!(error_in(&answer), (3, 4, Ipv4Addr::new(8, 8, 8, 8).into(), address(1), 1328));
    let (decided, answer) = world.route(&v6(address(1), "2001:db8::8", 1329));
    assert_eq!(decided, Decided::Dropped(EngineDrop::TooBig));
    assert_eq!(error_in(&answer), (2, 0, "2001:db8::8".parse().unwrap(), address(1), 1328));
    // A packet that may be fragmented passes: the underlay will fragment it. The other peer has no such limit.
    assert_eq!(world.route(&v4(address(1), [8; 4], 1400, false)).0, Decided::Peer(key(1)));
    assert_eq!(world.route(&v4(address(2), [8; 4], 1400, true)).0, Decided::Peer(key(2)));
    // With IPv6 the limit is never less than 1280.
    world.set_path_mtu(1, Some(600));
    assert_eq!(world.route(&v6(address(1), "2001:db8::8", 1280)).0, Decided::Peer(key(1)));
    let (_, answer) = world.route(&v6(address(1), "2001:db8::8", 1281));
    assert_eq!(error_in(&answer).4, 1280);
    world.set_path_mtu(1, None);
    assert_eq!(world.route(&v4(address(1), [8; 4], 1420, true)).0, Decided::Peer(key(1)));
}

#[test]
fn a_packet_as_long_as_the_mtu_is_not_padded() {
    let mut world = World::new();
    world.set_path_mtu(1, Some(1480));
    assert_eq!(world.route(&v4(address(1), [8; 4], 1420, true)).0, Decided::Peer(key(1)));
}

#[test]
fn inbound_frames_come_from_their_peer_s_address_and_carry_no_neighbour_discovery() {
    let world = World::new();
    let id = world.id(1);
    let packet = &v4(OWN, [10, 0, 0, 9], 64, false)[HEADER_LEN..];
    let header = world.link.table().inbound_header(id, Ipv4Addr::new(10, 0, 0, 9).into(), packet).unwrap();
    let (header, _) = Header::split(&header).unwrap();
    assert_eq!(header, Header { destination: OWN, source: address(1), kind: kind::IPV4 });
    let to: IpAddr = "fe80::1".parse().unwrap();
    let mut cut = icmpv6(OWN, "fe80::2", "fe80::1", &[128, 0, 0, 0]);
    cut.truncate(HEADER_LEN + ipv6::HEADER_LEN);
    cut[HEADER_LEN + 4..HEADER_LEN + 6].fill(0);
    let arrival = world.link.table().inbound_header(id, to, &cut[HEADER_LEN..]);
    assert_eq!(arrival, Err(EngineDrop::NotForTheLink), "the type is missing");
    for kind in [133, 134, 135, 136, 137, 138] {
        let frame = icmpv6(OWN, "fe80::2", "fe80::1", &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let arrival = world.link.table().inbound_header(id, to, &frame[HEADER_LEN..]);
        assert_eq!(arrival == Err(EngineDrop::NotForTheLink), (135..=137).contains(&kind), "{kind}");
    }
}

/// The announcements to the network stack: each address, and the link address where it is now.
fn announced(world: &mut World) -> Vec<(IpAddr, LinkAddress)> {
    let mut told = Vec::new();
    let own = world.link.table().own();
    world.link.announce(|frame| {
        let (header, packet) = Header::split(frame).unwrap();
        let there = header.source;
        if header.kind == kind::ARP {
            assert_eq!(header.destination, own);
            let target = Ipv4Addr::from(*packet[14..].first_chunk::<4>().unwrap());
            let half = [&there.to_bytes()[..], &target.octets()].concat();
            // The kernel accepts it as gratuitous when both halves are alike.
            assert_eq!(packet, [&[0, 1, 8, 0, 6, 4, 0, 2], &half[..], &half[..]].concat());
            told.push((target.into(), there));
        } else {
            assert_eq!(header.destination, LinkAddress::from_bytes([0x33, 0x33, 0, 0, 0, 1]));
            let message = ipv6::icmpv6(packet).unwrap();
            assert_eq!((message[0], packet[7]), (136, 255));
            assert_eq!(packet[24..40], "ff02::1".parse::<Ipv6Addr>().unwrap().octets());
            assert_eq!(message[4] & 0xe0, 0xa0, "not solicited, overriding, from a router");
            assert_eq!(message[24..], [&[2, 1][..], &there.to_bytes()].concat());
            assert_eq!(ipv6::icmpv6_checksum(packet.first_chunk().unwrap(), message), 0);
            let target = Ipv6Addr::from(*message[8..].first_chunk::<16>().unwrap());
            told.push((target.into(), there));
        }
    });
    told.sort_by_key(|(target, _)| *target);
    told
}

#[test]
fn the_stack_is_told_of_new_locations_of_the_addresses_that_it_asked_for() {
    let mut world = World::new();
    let (new, v4): (_, IpAddr) = (key(4), [10, 0, 0, 1].into());
    let v6 = ["fd00::1", "fd00::77"].map(|text| text.parse::<IpAddr>().unwrap());
    let link_local: IpAddr = address(4).link_local().into();
    world.route(&arp(BROADCAST, [10, 0, 0, 9], [10, 0, 0, 1]));
    for target in [v6[0], v6[1], link_local] {
        world.route(&solicitation(BROADCAST, "fd00::9", &target.to_string()));
    }
    // An address that the stack learnt elsewhere is not announced.
    world.route(&solicitation(address(2), "fd00::9", "fd77::1"));
    assert_eq!(announced(&mut world), []);

    // A new peer takes an address, a prefix that covers another one, and its own link-local address.
    world.device.configure(at(6), |configuration| {
        let mut peer = configuration.add_peer(new).unwrap();
        peer.add_allowed_ip("10.0.0.1/32".parse().unwrap()).add_allowed_ip("fd00::/64".parse().unwrap());
    });
    world.link.change(|table| table.insert(world.device.peer(&new).unwrap().path));
    let expected = [(v4, address(4)), (v6[1], address(4)), (link_local, address(4))];
    assert_eq!(announced(&mut world), {
        let mut expected = expected;
        expected.sort_by_key(|(target, _)| *target);
        expected
    });
    assert_eq!(announced(&mut world), [], "once");

    // It is removed. The third peer's default route covers one of its addresses; the others have no peer.
    world.device.configure(at(7), |configuration| configuration.remove_peer(&new));
    world.link.change(|table| table.remove(&new));
    let nobody = LinkAddress::NOBODY;
    let mut expected = [(v4, address(3)), (v6[1], nobody), (link_local, nobody)];
    expected.sort_by_key(|(target, _)| *target);
    assert_eq!(announced(&mut world), expected);

    // What is told goes to the interface's link address.
    world.link.set_own(address(8));
    world.device.configure(at(8), |configuration| {
        configuration.remove_all_peers();
    });
    world.link.change(NeighbourTable::clear);
    let v6 = v6[0];
    assert_eq!(announced(&mut world), [(v4, nobody), (v6, nobody)]);
}

#[test]
fn questions_are_answered_while_answers_are_compared_with_a_new_table() {
    let link = World::new().link;
    let [moved, asked_meanwhile, stays] = [1, 2, 3].map(|last| IpAddr::from([10, 9, 9, last]));
    for told in [moved, asked_meanwhile, stays] {
        link.cache().note(told, address(1));
    }
    let now = |of| if of == stays { address(1) } else { address(2) };
    let found = link.moved(|of| {
        let mut cache = link.cache.try_lock().expect("no worker that answers would wait");
        cache.note(asked_meanwhile, now(asked_meanwhile));
        now(of)
    });
    assert_eq!(found, [(moved, address(2))]);
    assert!(link.moved(now).is_empty(), "it was told");
}

#[test]
fn a_peer_replaces_one_with_the_same_link_address_in_either_order() {
    // As in the engine's test: the link address ends with 08:53:19:43:ce for both keys.
    let [one, other] = [542_000_u32, 1_144_960].map(|number| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(key)
    });
    for removed_first in [true, false] {
        let mut world = World::new();
        world.device.configure(at(1), |configuration| {
            configuration.add_peer(one).unwrap();
            configuration.add_peer(other).unwrap();
        });
        let path = |key| Arc::clone(world.device.peer(&key).unwrap().path);
        let (one_path, other_path) = (path(one), path(other));
        world.link.change(|table| table.insert(&one_path));
        if removed_first {
            world.link.change(|table| table.remove(&one));
            assert_eq!(world.link.table().key_at(LinkAddress::of(one)), None);
        }
        world.link.change(|table| {
            table.insert(&other_path);
            table.remove(&one);
        });
        assert_eq!(world.link.table().key_at(LinkAddress::of(one)), Some(other));
        assert_eq!(world.device.peers().filter(|peer| world.link.table().has(peer.path)).count(), 4);
        assert!(!world.link.table().has(&one_path));
    }
}

proptest! {
    /// Whatever the stack sends, an answer goes to the interface itself.
    #[test]
    fn arbitrary_frames_do_not_panic(
        destination in prop_oneof![Just(address(1)), Just(address(3)), Just(BROADCAST), Just(LinkAddress::NOBODY)],
        kind in prop_oneof![Just(kind::ARP), Just(kind::IPV4), Just(kind::IPV6), any::<u16>()],
        payload in prop::collection::vec(any::<u8>(), 0..200),
        first in prop_oneof![Just(0x45), Just(0x60), Just(0), any::<u8>()],
    ) {
        let mut world = World::new();
        let mut payload = payload;
        if let Some(start) = payload.first_mut() {
            *start = first;
        }
        let (_, answer) = world.route(&frame(destination, kind, &payload));
        if !answer.is_empty() {
            prop_assert_eq!(Header::split(&answer).unwrap().0.destination, OWN);
        }
    }
}
