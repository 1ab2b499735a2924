//! Frames in, frames out.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use proptest::prelude::*;
use wireloom_proto::{Device, Now, UnixTime};
use wireloom_types::PrivateKey;

use super::*;

const OWN: LinkAddress = LinkAddress::from_bytes([2, 9, 9, 9, 9, 9]);
const BROADCAST: LinkAddress = LinkAddress::BROADCAST;
const MTU: usize = 1420;

fn at(seconds: u64) -> Now {
    let elapsed = Duration::from_secs(seconds);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

/// A device with peers 1 and 2, who have 10.0.0.N, fd00::N and 172.N.0.0/16, and peer 3 without an
/// endpoint, who has 0.0.0.0/0; and their link.
struct World {
    device: Device,
    link: Link,
}

fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

fn address(number: u8) -> LinkAddress {
    LinkAddress::of(key(number))
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Peer(PublicKey),
    Everyone,
    Here,
    Lost(Loss),
    PeerLost,
}

impl World {
    fn new() -> Self {
        let mut device = Device::new([1; 32]);
        device.configure(at(1), |configuration| {
            configuration.set_private_key(Some(PrivateKey::from_bytes([9; 32])));
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
        let mut link = Link::new(OWN);
        device.peers().for_each(|peer| link.insert(peer.path));
        Self { device, link }
    }

    /// The fate of a frame, and what the stack is told.
    fn route(&mut self, frame: &[u8]) -> (Fate, Vec<u8>) {
        let mut answer = Vec::new();
        let routes = self.device.transport().routes();
        let fate = match self.link.route(
            at(5).monotonic,
            frame,
            frame.len().saturating_sub(HEADER_LEN),
            &routes,
            MTU,
            &mut answer,
        ) {
            Way::Peer(path) => Fate::Peer(*path.public_key()),
            Way::Everyone => Fate::Everyone,
            Way::Here => Fate::Here,
            Way::Lost(loss) => Fate::Lost(loss),
            Way::PeerLost(_) => Fate::PeerLost,
            Way::Dropped(reason) => panic!("{reason}"),
        };
        (fate, answer)
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
    frame(to, frame::ARP, &request)
}

fn icmpv6(to: LinkAddress, source: &str, destination: &str, message: &[u8]) -> Vec<u8> {
    let octets = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    let ip = ip::v6_header(octets(source), octets(destination), message.len());
    let mut message = message.to_vec();
    ip::sum_icmpv6(&ip, &mut message);
    frame(to, frame::IPV6, &[&ip[..], &message].concat())
}

fn solicitation(to: LinkAddress, asker: &str, target: &str) -> Vec<u8> {
    let target = target.parse::<Ipv6Addr>().unwrap().octets();
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, &[1, 1], &OWN.to_bytes()].concat();
    icmpv6(to, asker, "ff02::1:ff00:1", &message)
}

fn v4(to: LinkAddress, destination: [u8; 4], len: usize, dont_fragment: bool) -> Vec<u8> {
    let mut packet = ip::v4_header(17, [10, 0, 0, 9], destination, len - ip::V4_HEADER).to_vec();
    packet[6] = if dont_fragment { 0x40 } else { 0 };
    packet.resize(len, 7);
    frame(to, frame::IPV4, &packet)
}

fn v6(to: LinkAddress, destination: &str, len: usize) -> Vec<u8> {
    let destination = destination.parse::<Ipv6Addr>().unwrap().octets();
    let source = "fd00::9".parse::<Ipv6Addr>().unwrap().octets();
    let mut packet = ip::v6_header(source, destination, len - ip::V6_HEADER).to_vec();
    packet[6] = 17;
    packet.resize(len, 7);
    frame(to, frame::IPV6, &packet)
}

#[test]
fn arp_is_answered_by_the_longest_prefix_in_the_allowed_ips() {
    let mut world = World::new();
    for (target, there) in
        [([10, 0, 0, 1], address(1)), ([172, 2, 3, 4], address(2)), ([8, 8, 8, 8], address(3))]
    {
        let (fate, answer) = world.route(&arp(BROADCAST, [10, 0, 0, 9], target));
        assert_eq!(fate, Fate::Here);
        let (header, reply) = Header::split(&answer).unwrap();
        assert_eq!(header, Header { destination: OWN, source: there, kind: frame::ARP });
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
        // Without configuration: no allowed IPs name these.
        (address(2).link_local().to_string(), address(2)),
        (address(3).link_local().to_string(), address(3)),
        ("fd00::77".to_owned(), LinkAddress::NOBODY),
    ] {
        let (fate, answer) = world.route(&solicitation(BROADCAST, "fd00::9", &target));
        assert_eq!(fate, Fate::Here);
        let (header, packet) = Header::split(&answer).unwrap();
        assert_eq!(header, Header { destination: OWN, source: there, kind: frame::IPV6 });
        let message = ip::icmpv6(packet).unwrap();
        assert_eq!((message[0], packet[7]), (136, 255));
        assert_eq!(message[8..24], target.parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(message[24..], [&[2, 1][..], &there.to_bytes()].concat());
        let len = (message.len() as u32).to_be_bytes();
        assert_eq!(ip::checksum(&[&packet[8..40], &len, &[0, 0, 0, 58], message]), 0);
    }
}

#[test]
fn nobody_contests_an_address() {
    let mut world = World::new();
    for question in [
        arp(BROADCAST, [0; 4], [10, 0, 0, 1]),
        arp(BROADCAST, [10, 0, 0, 1], [10, 0, 0, 1]),
        solicitation(BROADCAST, "::", "fd00::1"),
        // Announcements: an ARP reply, an advertisement.
        frame(BROADCAST, frame::ARP, &[0, 1, 8, 0, 6, 4, 0, 2]),
        icmpv6(BROADCAST, "fd00::9", "ff02::1", &[136, 0, 0, 0, 0x20, 0, 0, 0]),
    ] {
        assert_eq!(world.route(&question), (Fate::Here, Vec::new()));
    }
}

#[test]
fn reachability_probes_of_one_peer_are_answered() {
    let mut world = World::new();
    let mut there = |question: &[u8]| {
        let (_, answer) = world.route(question);
        Header::split(&answer).unwrap().0.source
    };
    assert_eq!(there(&arp(address(1), [10, 0, 0, 9], [10, 0, 0, 1])), address(1));
    // The address has moved to another peer.
    assert_eq!(there(&arp(address(1), [10, 0, 0, 9], [10, 0, 0, 2])), address(2));
    // An address in nobody's allowed IPs, of which somebody told the stack where it is.
    assert_eq!(there(&solicitation(address(2), "fd00::9", "fd77::1")), address(2));
    assert_eq!(there(&solicitation(address(8), "fd00::9", "fd77::1")), LinkAddress::NOBODY);
}

#[test]
fn the_frame_s_destination_is_the_peer_whatever_the_packet_s() {
    let mut world = World::new();
    for packet in [v4(address(2), [10, 0, 0, 1], 100, true), v6(address(2), "2001:db8::1", 100)] {
        assert_eq!(world.route(&packet), (Fate::Peer(key(2)), Vec::new()));
    }
}

#[test]
fn groups_are_everyone_and_only_neighbour_discovery_stays() {
    let mut world = World::new();
    let all_routers = LinkAddress::from_bytes([0x33, 0x33, 0, 0, 0, 2]);
    let ospf = LinkAddress::from_bytes([1, 0, 0x5e, 0, 0, 5]);
    assert_eq!(world.route(&v4(ospf, [224, 0, 0, 5], 64, false)).0, Fate::Everyone);
    assert_eq!(world.route(&v4(BROADCAST, [255; 4], 64, false)).0, Fate::Everyone);
    for kind in 130..140_u8 {
        let message = icmpv6(all_routers, "fe80::1", "ff02::2", &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let expected = if (135..=137).contains(&kind) { Fate::Here } else { Fate::Everyone };
        assert_eq!(world.route(&message), (expected, Vec::new()), "{kind}");
    }
}

#[test]
fn frames_of_other_protocols_are_lost() {
    let mut world = World::new();
    assert_eq!(world.route(&frame(address(1), 0x88cc, &[0; 60])).0, Fate::Lost(Loss::NotIp));
    assert_eq!(world.route(&[0; 13]).0, Fate::Lost(Loss::NotIp));
}

/// The ICMP error in a frame: its type and code, where it claims to come from, and by whom.
fn error_in(frame: &[u8]) -> (u8, u8, IpAddr, LinkAddress, u16) {
    let (header, packet) = Header::split(frame).unwrap();
    assert_eq!(header.destination, OWN);
    let parsed = inner::Packet::parse(packet).unwrap();
    assert_eq!(parsed.len, packet.len());
    let message = if parsed.source.is_ipv4() {
        assert_eq!(ip::checksum(&[&packet[..20]]), 0);
        assert_eq!(ip::checksum(&[&packet[20..]]), 0);
        &packet[20..]
    } else {
        let message = ip::icmpv6(packet).unwrap();
        let len = (message.len() as u32).to_be_bytes();
        assert_eq!(ip::checksum(&[&packet[8..40], &len, &[0, 0, 0, 58], message]), 0);
        message
    };
    (message[0], message[1], parsed.source, header.source, u16::from_be_bytes([message[6], message[7]]))
}

#[test]
fn what_goes_to_nobody_or_to_a_lost_peer_comes_back_as_unreachable() {
    let mut world = World::new();
    let v4_destination: IpAddr = Ipv4Addr::new(10, 7, 7, 7).into();
    let v6_destination: IpAddr = "fd00::77".parse().unwrap();
    for (to, expected) in [(LinkAddress::NOBODY, Fate::Lost(Loss::NoNeighbour)), (address(3), Fate::PeerLost)]
    {
        let (fate, answer) = world.route(&v4(to, [10, 7, 7, 7], 1400, true));
        assert_eq!(fate, expected);
        assert_eq!(error_in(&answer), (3, 1, v4_destination, to, 0));
        assert_eq!(answer.len(), 14 + 576, "no longer than needed");
        let (fate, answer) = world.route(&v6(to, "fd00::77", 1400));
        assert_eq!(fate, expected);
        assert_eq!(error_in(&answer), (1, 3, v6_destination, to, 0));
        assert_eq!(answer.len(), 14 + 1280);
    }
}

#[test]
fn no_errors_about_errors_or_later_fragments_or_from_nowhere() {
    let mut world = World::new();
    let to = LinkAddress::NOBODY;
    let mut silent = |frame: &[u8]| assert_eq!(world.route(frame).1, Vec::<u8>::new());
    for kind in [3, 4, 5, 11, 12] {
        let mut error = v4(to, [10, 7, 7, 7], 64, false);
        error[14 + 9] = ip::ICMP;
        error[14 + 20] = kind;
        silent(&error);
    }
    for kind in [1, 2, 3, 4, 127] {
        silent(&icmpv6(to, "fd00::9", "fd00::77", &[kind, 0, 0, 0, 0, 0, 0, 0]));
    }
    let mut fragment = v4(to, [10, 7, 7, 7], 64, false);
    fragment[14 + 7] = 1;
    silent(&fragment);
    let mut nowhere = v4(to, [10, 7, 7, 7], 64, false);
    nowhere[14 + 12..14 + 16].fill(0);
    silent(&nowhere);
    silent(&v4(to, [224, 0, 0, 1], 64, false));
}

#[test]
fn a_packet_over_the_path_mtu_comes_back_as_too_big() {
    let mut world = World::new();
    world.link.set_path_mtu(world.id(1), Some(1400));
    // 1400 less 20 (IPv4), 8 (UDP) and 32 (data message) is 1340: padded packets fit up to 1328.
    assert_eq!(world.route(&v4(address(1), [8; 4], 1328, true)), (Fate::Peer(key(1)), Vec::new()));
    let (fate, answer) = world.route(&v4(address(1), [8; 4], 1329, true));
    assert_eq!(fate, Fate::Lost(Loss::TooBig));
    assert_eq!(error_in(&answer), (3, 4, Ipv4Addr::new(8, 8, 8, 8).into(), address(1), 1328));
    let (fate, answer) = world.route(&v6(address(1), "2001:db8::8", 1329));
    assert_eq!(fate, Fate::Lost(Loss::TooBig));
    assert_eq!(error_in(&answer), (2, 0, "2001:db8::8".parse().unwrap(), address(1), 1328));
    // What may be fragmented is, on the underlay; and the other peer has no such limit.
    assert_eq!(world.route(&v4(address(1), [8; 4], 1400, false)).0, Fate::Peer(key(1)));
    assert_eq!(world.route(&v4(address(2), [8; 4], 1400, true)).0, Fate::Peer(key(2)));
    // IPv6 cannot be told less than 1280.
    world.link.set_path_mtu(world.id(1), Some(600));
    assert_eq!(world.route(&v6(address(1), "2001:db8::8", 1280)).0, Fate::Peer(key(1)));
    let (_, answer) = world.route(&v6(address(1), "2001:db8::8", 1281));
    assert_eq!(error_in(&answer).4, 1280);
    world.link.set_path_mtu(world.id(1), None);
    assert_eq!(world.route(&v4(address(1), [8; 4], 1420, true)).0, Fate::Peer(key(1)));
}

#[test]
fn a_path_that_takes_the_whole_mtu_takes_it_unpadded() {
    let mut world = World::new();
    world.link.set_path_mtu(world.id(1), Some(1480));
    assert_eq!(world.route(&v4(address(1), [8; 4], 1420, true)).0, Fate::Peer(key(1)));
}

#[test]
fn the_network_s_word_is_believed_for_ten_minutes_and_survives_changes_of_peers() {
    let mut world = World::new();
    let id = world.id(1);
    let endpoint = IpAddr::from([192, 0, 2, 1]);
    world.link.learn_path_mtu(at(5).monotonic, endpoint, 1300);
    world.link.learn_path_mtu(at(5).monotonic, IpAddr::from([192, 0, 2, 77]), 700);
    world.device.peers().for_each(|peer| world.link.insert(peer.path));
    assert_eq!(world.link.path_mtu(at(604).monotonic, id), Some(1300));
    assert_eq!(world.link.path_mtu(at(605).monotonic, id), None);
    assert_eq!(world.link.path_mtu(at(5).monotonic, world.id(2)), None);
    world.link.learn_path_mtu(at(5).monotonic, endpoint, 68);
    assert_eq!(world.link.path_mtu(at(6).monotonic, id), Some(PATH_MTU_MIN));
}

#[test]
fn arrivals_bear_their_peer_s_address_and_bring_no_neighbour_discovery() {
    let world = World::new();
    let id = world.id(1);
    let packet = &v4(OWN, [10, 0, 0, 9], 64, false)[HEADER_LEN..];
    let header = world.link.table().arrival(id, Ipv4Addr::new(10, 0, 0, 9).into(), packet).unwrap();
    let (header, _) = Header::split(&header).unwrap();
    assert_eq!(header, Header { destination: OWN, source: address(1), kind: frame::IPV4 });
    let to: IpAddr = "fe80::1".parse().unwrap();
    for kind in [133, 134, 135, 136, 137, 138] {
        let frame = icmpv6(OWN, "fe80::2", "fe80::1", &[kind, 0, 0, 0, 0, 0, 0, 0]);
        let arrival = world.link.table().arrival(id, to, &frame[HEADER_LEN..]);
        assert_eq!(arrival == Err(Loss::NotForTheLink), (135..=137).contains(&kind), "{kind}");
    }
}

/// What the stack hears of changes: each frame's kind, which address it is about, and who has it.
fn announced(world: &mut World) -> Vec<(IpAddr, LinkAddress)> {
    let mut told = Vec::new();
    let routes = world.device.transport().routes();
    world.link.announce(&routes, |frame| {
        let (header, packet) = Header::split(frame).unwrap();
        let there = header.source;
        if header.kind == frame::ARP {
            assert_eq!(header.destination, OWN);
            let target = Ipv4Addr::from(*packet[14..].first_chunk::<4>().unwrap());
            let half = [&there.to_bytes()[..], &target.octets()].concat();
            // The kernel calls it gratuitous, and believes it, when both halves are alike.
            assert_eq!(packet, [&[0, 1, 8, 0, 6, 4, 0, 2], &half[..], &half[..]].concat());
            told.push((target.into(), there));
        } else {
            assert_eq!(header.destination, LinkAddress::from_bytes([0x33, 0x33, 0, 0, 0, 1]));
            let message = ip::icmpv6(packet).unwrap();
            assert_eq!((message[0], packet[7]), (136, 255));
            assert_eq!(packet[24..40], "ff02::1".parse::<Ipv6Addr>().unwrap().octets());
            assert_eq!(message[4] & 0xe0, 0xa0, "unsolicited, to override, of a router");
            assert_eq!(message[24..], [&[2, 1][..], &there.to_bytes()].concat());
            let len = (message.len() as u32).to_be_bytes();
            assert_eq!(ip::checksum(&[&packet[8..40], &len, &[0, 0, 0, 58], message]), 0);
            let target = Ipv6Addr::from(*message[8..].first_chunk::<16>().unwrap());
            told.push((target.into(), there));
        }
    });
    told.sort_by_key(|(target, _)| *target);
    told
}

#[test]
fn the_stack_is_told_who_has_an_address_now_that_it_once_asked_for() {
    let mut world = World::new();
    let (new, v4): (_, IpAddr) = (key(4), [10, 0, 0, 1].into());
    let v6 = ["fd00::1", "fd00::77"].map(|text| text.parse::<IpAddr>().unwrap());
    let link_local: IpAddr = address(4).link_local().into();
    world.route(&arp(BROADCAST, [10, 0, 0, 9], [10, 0, 0, 1]));
    for target in [v6[0], v6[1], link_local] {
        world.route(&solicitation(BROADCAST, "fd00::9", &target.to_string()));
    }
    // An address of which somebody else told the stack.
    world.route(&solicitation(address(2), "fd00::9", "fd77::1"));
    assert_eq!(announced(&mut world), []);

    // A new peer takes an address, comes with a prefix that has one, and with its link-local one.
    world.device.configure(at(6), |configuration| {
        let mut peer = configuration.add_peer(new).unwrap();
        peer.add_allowed_ip("10.0.0.1/32".parse().unwrap()).add_allowed_ip("fd00::/64".parse().unwrap());
    });
    world.link.insert(world.device.peer(&new).unwrap().path);
    let expected = [(v4, address(4)), (v6[1], address(4)), (link_local, address(4))];
    assert_eq!(announced(&mut world), {
        let mut expected = expected;
        expected.sort_by_key(|(target, _)| *target);
        expected
    });
    assert_eq!(announced(&mut world), [], "once");

    // It goes, and one of its addresses is another's again: by the default route of the third.
    world.device.configure(at(7), |configuration| configuration.remove_peer(&new));
    world.link.remove(&new);
    let nobody = LinkAddress::NOBODY;
    let mut expected = [(v4, address(3)), (v6[1], nobody), (link_local, nobody)];
    expected.sort_by_key(|(target, _)| *target);
    assert_eq!(announced(&mut world), expected);

    // With another address of ours the stack begins anew.
    world.link.set_own(address(8));
    world.device.configure(at(8), |configuration| {
        configuration.remove_all_peers();
    });
    world.link.clear();
    assert_eq!(announced(&mut world), []);
}

#[test]
fn a_peer_with_another_s_link_address_takes_its_place_whatever_the_order() {
    // As in the engine's test: 08:53:19:43:ce follows from both.
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
        world.link.insert(&one_path);
        if removed_first {
            world.link.remove(&one);
            assert_eq!(world.link.key_at(LinkAddress::of(one)), None);
        }
        world.link.insert(&other_path);
        world.link.remove(&one);
        assert_eq!(world.link.key_at(LinkAddress::of(one)), Some(other));
        assert_eq!(world.device.peers().filter(|peer| world.link.table().has(peer.path)).count(), 4);
        assert!(!world.link.table().has(&one_path));
    }
}

proptest! {
    /// Whatever the stack sends, an answer is a frame to whoever sent it.
    #[test]
    fn arbitrary_frames_are_survived(
        destination in prop_oneof![Just(address(1)), Just(address(3)), Just(BROADCAST), Just(LinkAddress::NOBODY)],
        kind in prop_oneof![Just(frame::ARP), Just(frame::IPV4), Just(frame::IPV6), any::<u16>()],
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
