//! Splitting and joining compared with a naive model, which builds packets field by field.

use std::{
    io::IoSlice,
    net::{Ipv4Addr, Ipv6Addr},
};

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    coalesce::{Coalescer, Joinable},
    segment::Segments,
    virtio::{PartialChecksum, Segmentation, SegmentationKind, VirtioHeader},
};
use crate::packet::{ethernet::HeaderBytes, tcp};

const LINK: HeaderBytes = [2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0];

/// The fields of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    v6: bool,
    tcp: bool,
    /// Type of service or traffic class, ECN included.
    tos: u8,
    ttl: u8,
    identification: u16,
    dont_fragment: bool,
    /// Whether it is a fragment.
    fragment: bool,
    /// The length of the IPv4 options, or of an IPv6 extension header (hop-by-hop options), in words of 8 bytes.
    network_options: usize,
    /// Source and destination, as bytes.
    addresses: Vec<u8>,
    ports: [u16; 2],
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    window: u16,
    urgent: u16,
    /// A multiple of 4 bytes, at most 40.
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    /// The error of the TCP or UDP checksum: 0 when it is right.
    damage: u16,
    /// Whether it is UDP without a checksum.
    unsummed: bool,
}

/// The sum as RFC 1071, section 4.1, computes it, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Packet {
    /// A packet of a TCP stream over IPv4, with `payload` bytes of payload.
    pub(crate) fn between(from: Ipv4Addr, to: Ipv4Addr, payload: usize) -> Self {
        Self {
            v6: false,
            tcp: true,
            tos: 0,
            ttl: 64,
            identification: 7,
            dont_fragment: true,
            fragment: false,
            network_options: 0,
            addresses: [from.octets(), to.octets()].concat(),
            ports: [1000, 2000],
            sequence: u32::MAX - 2000,
            acknowledgement: 5,
            flags: tcp::Flags::ACK.bits(),
            window: 500,
            urgent: 0,
            tcp_options: vec![1; 12],
            payload: (0..payload).map(|at| at as u8).collect(),
            damage: 0,
            unsummed: false,
        }
    }

    /// The same over IPv6.
    pub(crate) fn between_v6(from: Ipv6Addr, to: Ipv6Addr, payload: usize) -> Self {
        let v4 = Self::between(Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED, payload);
        Self { v6: true, addresses: [from.octets(), to.octets()].concat(), ..v4 }
    }

    /// The same with this type of service, or traffic class.
    pub(crate) fn with_class(self, class: u8) -> Self {
        Self { tos: class, ..self }
    }

    fn transport(&self) -> usize {
        (if self.v6 { 40 } else { 20 }) + self.network_options * 8
    }

    fn headers(&self) -> usize {
        self.transport() + if self.tcp { 20 + self.tcp_options.len() } else { 8 }
    }

    /// The packet's bytes. With `partial`, its checksum covers the pseudo-header only.
    pub(crate) fn bytes(&self, partial: bool) -> Vec<u8> {
        let protocol = if self.tcp { 6 } else { 17 };
        let mut transport = Vec::new();
        transport.extend(self.ports.iter().flat_map(|port| port.to_be_bytes()));
        let field = if self.tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            transport.extend([((5 + self.tcp_options.len() / 4) << 4) as u8, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.tcp_options);
            16
        } else {
            transport.extend((8 + self.payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
            6
        };
        transport.extend(&self.payload);

        let mut pseudo = self.addresses.clone();
        pseudo.extend((transport.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        let checksum = if partial {
            sum(&pseudo)
        } else {
            pseudo.extend(&transport);
            let checksum = !sum(&pseudo);
            let checksum = if checksum == 0 && !self.tcp { 0xffff } else { checksum };
            if self.unsummed { 0 } else { checksum.wrapping_add(self.damage) }
        };
        transport[field..field + 2].copy_from_slice(&checksum.to_be_bytes());

        let mut packet = Vec::new();
        if self.v6 {
            packet.extend((6 << 28 | u32::from(self.tos) << 20 | 0x12345).to_be_bytes());
            packet.extend((self.network_options as u16 * 8 + transport.len() as u16).to_be_bytes());
            packet.extend([if self.network_options > 0 { 0 } else { protocol }, self.ttl]);
            packet.extend(&self.addresses);
            if self.network_options > 0 {
                packet.extend([protocol, self.network_options as u8 - 1]);
                // PadN
                packet.extend([1, (self.network_options * 8 - 4) as u8]);
                packet.resize(self.transport(), 0);
            }
        } else {
            packet.extend([0x45 + 2 * self.network_options as u8, self.tos]);
            packet.extend(((self.transport() + transport.len()) as u16).to_be_bytes());
            packet.extend(self.identification.to_be_bytes());
            packet.extend([u8::from(self.dont_fragment) << 6 | u8::from(self.fragment) << 5, 0]);
            packet.extend([self.ttl, protocol, 0, 0]);
            packet.extend(&self.addresses);
            // No operation
            packet.resize(self.transport(), 1);
            let checksum = !sum(&packet);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        packet.extend(&transport);
        packet
    }

    /// The packets that a super-packet has to be split into.
    pub(crate) fn segments(&self, size: usize) -> Vec<Self> {
        let count = self.payload.len().div_ceil(size);
        let piece = |(number, payload): (usize, &[u8])| Self {
            identification: self.identification.wrapping_add(number as u16),
            sequence: self.sequence.wrapping_add((number * size) as u32),
            flags: self.flags
                & if number + 1 < count { !(tcp::Flags::FIN.bits() | tcp::Flags::PSH.bits()) } else { 0xff }
                & if number > 0 { !tcp::Flags::CWR.bits() } else { 0xff },
            payload: payload.to_vec(),
            ..self.clone()
        };
        self.payload.chunks(size).enumerate().map(piece).collect()
    }

    fn checksum(&self, link_len: usize) -> PartialChecksum {
        PartialChecksum { start: (link_len + self.transport()) as u16, offset: if self.tcp { 16 } else { 6 } }
    }

    pub(crate) fn super_header(&self, size: usize, link_len: usize) -> VirtioHeader {
        let kind = match (self.tcp, self.v6) {
            (false, _) => SegmentationKind::Udp,
            (true, false) => SegmentationKind::TcpV4,
            (true, true) => SegmentationKind::TcpV6,
        };
        let header_len = (link_len + self.headers()) as u16;
        VirtioHeader {
            checksum: Some(self.checksum(link_len)),
            segmentation: Some(Segmentation { kind, header_len, size: size as u16 }),
        }
    }

    /// Whether the kernel would join it to others of its flow.
    fn is_ordinary(&self) -> bool {
        self.network_options == 0
            && (self.v6 || !self.fragment)
            && !self.payload.is_empty()
            && self.damage == 0
            && if self.tcp {
                self.flags & !tcp::Flags::PSH.bits() == tcp::Flags::ACK.bits()
            } else {
                !self.unsummed
            }
    }
}

fn any_packet(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Packet> {
    let network = (any::<[bool; 4]>(), any::<[u8; 3]>(), any::<u16>(), 0..3usize);
    let transport = (any::<[u16; 2]>(), any::<[u32; 2]>(), any::<[u16; 2]>(), any::<u8>(), 0..=10usize);
    (network, transport, payload).prop_map(|(network, transport, payload)| {
        let ([v6, tcp, dont_fragment, _], [tos, ttl, addresses], identification, network_options) = network;
        let (ports, [sequence, acknowledgement], [window, urgent], flags, options) = transport;
        Packet {
            v6,
            tcp,
            tos,
            ttl,
            identification,
            dont_fragment,
            fragment: false,
            network_options,
            addresses: [vec![10; if v6 { 16 } else { 4 }], vec![addresses; if v6 { 16 } else { 4 }]].concat(),
            ports,
            sequence,
            acknowledgement,
            flags,
            window,
            urgent,
            tcp_options: vec![1; options * 4],
            payload,
            damage: 0,
            unsummed: false,
        }
    })
}

/// Splits a packet that was read from an interface.
fn split(header: VirtioHeader, link_len: usize, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut segments = Segments::new(header, link_len, packet)?;
    let mut room = vec![0xaa; 1 << 16];
    let mut packets = Vec::new();
    while let Some(len) = segments.write_next(packet, &mut room) {
        packets.push(room[..len].to_vec());
    }
    Some(packets)
}

/// Joins packets. Returns what has to be written to the interface.
fn join(joinable: Joinable, packets: &[(Option<HeaderBytes>, Vec<u8>)]) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    let mut sink = |_packets: u64, parts: &[IoSlice<'_>]| {
        written.push(parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>());
    };
    let mut coalescer = Coalescer::new(joinable);
    for (link, packet) in packets {
        coalescer.push(*link, packet, &mut sink);
    }
    coalescer.flush(&mut sink);
    written
}

/// The packets that the kernel makes of what was written, each with its Ethernet header.
fn kernel(written: &[u8], link_len: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (header, frame) = written.split_first_chunk().expect("a virtio-net header");
    let (link, packet) = frame.split_at(link_len);
    let header = VirtioHeader::parse(header).expect("a known kind");
    let packets = split(header, link_len, packet).expect("well described");
    packets.into_iter().map(|packet| (link.to_vec(), packet)).collect()
}

const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const BOTH: Joinable = Joinable { tcp: true, udp: true };

/// The packet without the identification, if it must not be fragmented: that has no meaning then.
fn normalized(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 && packet.len() >= 20 {
        let header_len = usize::from(packet[0] & 15) * 4;
        packet[4..6].fill(0);
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..header_len]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

/// Successive packets of a flow: one with the whole payload, and the size of the segments.
fn any_flow() -> impl Strategy<Value = (Packet, usize)> {
    (any_packet(vec(any::<u8>(), 1..9000)), 1..2000usize).prop_map(|(mut packet, size)| {
        packet.flags = packet.flags & tcp::Flags::PSH.bits() | tcp::Flags::ACK.bits();
        packet.network_options = 0;
        let least = packet.payload.len().div_ceil(150);
        (packet, size.max(least))
    })
}

/// Changes one packet of a flow.
fn disturb(packets: &mut Vec<Packet>, at: usize, how: u8) {
    let other = (at + 1) % packets.len();
    let packet = &mut packets[at];
    match how {
        0 => packet.damage = 1,
        1 => packet.fragment = true,
        2 => packet.flags ^= tcp::Flags::PSH.bits(),
        3 => packet.flags |= tcp::Flags::FIN.bits(),
        4 => packet.flags |= 0x02, // SYN
        5 => packet.flags |= 0x04, // RST
        6 => packet.flags |= 0x20, // URG
        7 => packet.flags |= 0x40, // ECE
        8 => packet.flags |= tcp::Flags::CWR.bits(),
        9 => packet.flags &= !tcp::Flags::ACK.bits(),
        10 => packet.tos ^= 3,
        11 => packet.ttl ^= 1,
        12 => packet.window ^= 1,
        13 => packet.acknowledgement ^= 1,
        14 => packet.urgent ^= 1,
        15 => packet.identification ^= 1,
        16 => packet.dont_fragment ^= true,
        17 => packet.network_options = 1,
        18 => packet.ports[0] ^= 1,
        19 => packet.addresses[0] ^= 1,
        20 => packet.sequence ^= 1,
        21 => packet.payload.truncate(packet.payload.len() / 2),
        22 => packet.payload.extend([0; 3]),
        23 => packet.unsummed = !packet.tcp,
        24 => packet.payload.clear(),
        25 if packet.tcp_options.len() < 40 => packet.tcp_options.extend([1; 4]),
        26 if !packet.tcp_options.is_empty() => packet.tcp_options[0] ^= 1,
        27 => packets.swap(at, other),
        28 => packets.insert(at, packets[at].clone()),
        _ => drop(packets.remove(at)),
    }
}

proptest! {
    #[test]
    fn a_super_packet_is_split_as_in_the_model(
        packet in any_packet(vec(any::<u8>(), 1..9000)),
        size in 1..3000usize,
        link_len in prop::sample::select(vec![0, 14]),
    ) {
        let expected: Vec<_> = packet.segments(size).iter().map(|piece| piece.bytes(false)).collect();
        let split = split(packet.super_header(size, link_len), link_len, &packet.bytes(true));
        prop_assert_eq!(split, Some(expected));
    }

    #[test]
    fn a_single_packet_gets_its_checksum_and_is_otherwise_unchanged(
        packet in any_packet(vec(any::<u8>(), 0..2000)),
        partial in any::<bool>(),
        link_len in prop::sample::select(vec![0, 14]),
    ) {
        let header = VirtioHeader { checksum: partial.then(|| packet.checksum(link_len)), segmentation: None };
        let split = split(header, link_len, &packet.bytes(partial));
        prop_assert_eq!(split, Some(vec![packet.bytes(false)]));
    }

    /// Splitting and joining yields the super-packet, in as few pieces as the bounds allow.
    #[test]
    fn a_super_packet_that_was_split_is_joined_again(
        (packet, size) in any_flow(),
        link in prop::option::of(Just(LINK)),
    ) {
        let link_len = link.map_or(0, |link| link.len());
        let whole = packet.bytes(true);
        let pieces = split(packet.super_header(size, link_len), link_len, &whole).expect("well described");
        let count = pieces.len();
        let most = if packet.tcp { 64 } else { 32 };
        let framed: Vec<_> = pieces.iter().map(|piece| (link, piece.clone())).collect();
        let written = join(BOTH, &framed);
        prop_assert_eq!(written.len(), count.div_ceil(most));
        if written.len() == 1 && count > 1 {
            let header = packet.super_header(size.min(packet.payload.len()), link_len).to_bytes();
            let link = link.map_or(vec![], |link| link.to_vec());
            prop_assert_eq!(&written[0], &[header.to_vec(), link, whole].concat());
        }
        let again: Vec<_> = written.iter().flat_map(|written| kernel(written, link_len)).collect();
        prop_assert_eq!(again.into_iter().map(|(_, packet)| packet).collect::<Vec<_>>(), pieces);
    }

    /// All packets from a tunnel reach the network stack unchanged and in order.
    #[test]
    fn joining_changes_neither_packets_nor_their_order(
        flows in vec((any_flow(), vec((any::<Index>(), 0..30u8), 0..6)), 1..4),
        with_link in any::<bool>(),
        joinable in any::<(bool, bool)>(),
        links in vec(any::<bool>(), 16),
    ) {
        let mut packets = Vec::new();
        for ((packet, size), disturbances) in flows {
            let mut flow = packet.segments(size);
            for (at, how) in disturbances {
                if !flow.is_empty() {
                    let at = at.index(flow.len());
                    disturb(&mut flow, at, how);
                }
            }
            packets.extend(flow);
        }
        let link_len = if with_link { LINK.len() } else { 0 };
        let framed: Vec<_> = packets.iter().enumerate().map(|(number, packet)| {
            let mut link = LINK;
            link[5] ^= u8::from(links[number % links.len()] && number % 7 == 0);
            (with_link.then_some(link), packet.bytes(false))
        }).collect();
        let joinable = Joinable { tcp: joinable.0, udp: joinable.1 };
        let written = join(joinable, &framed);
        for written in &written {
            prop_assert!(written.len() <= VirtioHeader::LEN + link_len + 65_535);
            let header = VirtioHeader::parse(written.first_chunk().expect("a header")).expect("known");
            if let Some(segmentation) = header.segmentation {
                let udp = segmentation.kind == SegmentationKind::Udp;
                let offered = if udp { joinable.udp } else { joinable.tcp };
                prop_assert!(offered);
            }
        }
        let again: Vec<_> = written.iter().flat_map(|written| kernel(written, link_len))
            .map(|(link, packet)| (link, normalized(packet))).collect();
        let expected: Vec<_> = framed.iter()
            .map(|(link, packet)| (link.map_or(vec![], |link| link.to_vec()), normalized(packet.clone()))).collect();
        prop_assert_eq!(again, expected);
    }

    /// Only ordinary packets become part of a super-packet.
    #[test]
    fn a_packet_that_is_not_ordinary_is_passed_on_alone(
        (packet, size) in any_flow(),
        at in any::<Index>(),
        how in prop::sample::select(vec![0, 1, 3, 4, 5, 6, 7, 8, 9, 17, 23, 24]),
    ) {
        let mut packets = packet.segments(size);
        let at = at.index(packets.len());
        disturb(&mut packets, at, how);
        prop_assume!(!packets[at].is_ordinary());
        let framed: Vec<_> = packets.iter().map(|packet| (None, packet.bytes(false))).collect();
        let alone = [&VirtioHeader::default().to_bytes(), framed[at].1.as_slice()].concat();
        prop_assert!(join(BOTH, &framed).contains(&alone));
    }

    #[test]
    fn arbitrary_bytes_are_split_or_refused(
        header in any::<[u8; VirtioHeader::LEN]>(),
        kind in prop::sample::select(vec![0, 1, 4, 5]),
        numbers in any::<[u8; 4]>(),
        packet in vec(any::<u8>(), 0..200),
        first in prop::sample::select(vec![0x45, 0x46, 0x60]),
        link_len in prop::sample::select(vec![0, 14]),
    ) {
        let mut packet = packet;
        let mut header = header;
        header[1] = kind;
        // Small numbers, so that some of them are plausible.
        for (at, number) in numbers.into_iter().enumerate() {
            header[2 + 2 * at..][..2].copy_from_slice(&u16::from(number % 64).to_ne_bytes());
        }
        if let Some(byte) = packet.first_mut() {
            *byte = first;
        }
        if let Some(header) = VirtioHeader::parse(&header) {
            let total: usize = split(header, link_len, &packet).iter().flatten().map(Vec::len).sum();
            prop_assert!(total == 0 || total >= packet.len());
        }
    }

    #[test]
    fn arbitrary_bytes_pass_through_unchanged(
        packets in vec((prop::sample::select(vec![0x45, 0x46, 0x60, 0]), vec(any::<u8>(), 1..100)), 0..10),
    ) {
        let packets: Vec<_> = packets.into_iter().map(|(first, mut packet)| {
            packet[0] = first;
            (None, packet)
        }).collect();
        let expected: Vec<_> =
            packets.iter().map(|(_, packet)| [&[0; VirtioHeader::LEN], packet.as_slice()].concat()).collect();
        prop_assert_eq!(join(BOTH, &packets), expected);
    }
}

#[test]
fn skipping_a_segment_does_not_change_the_others() {
    let stream = Packet::between(HOSTS[0], HOSTS[1], 2500);
    let (bytes, mut room) = (stream.bytes(true), [0; 1500]);
    let mut segments = Segments::new(stream.super_header(1000, 0), 0, &bytes).unwrap();
    segments.skip_next();
    for piece in &stream.segments(1000)[1..] {
        let len = segments.write_next(&bytes, &mut room).unwrap();
        assert_eq!(room[..len], piece.bytes(false));
    }
    assert_eq!(segments.write_next(&bytes, &mut room), None);
    segments.skip_next();
    assert_eq!(segments.write_next(&bytes, &mut room), None);
}

#[test]
fn a_super_packet_does_not_exceed_its_length_field() {
    let pieces = Packet::between(HOSTS[0], HOSTS[1], 1368 * 60).segments(1368);
    let framed: Vec<_> = pieces.iter().map(|piece| (None, piece.bytes(false))).collect();
    let written = join(BOTH, &framed);
    // 52 bytes of headers and 47 times 1,368 bytes are 64,348; one more would be too many.
    let lengths: Vec<_> = written.iter().map(|written| written.len() - VirtioHeader::LEN).collect();
    assert_eq!(lengths, [52 + 47 * 1368, 52 + 13 * 1368]);
}

#[test]
fn a_push_and_a_short_packet_end_a_super_packet() {
    for how in [2, 21] {
        let mut packets = Packet::between(HOSTS[0], HOSTS[1], 1000 * 10).segments(1000);
        disturb(&mut packets, 4, how);
        let sequence = packets[4].sequence.wrapping_add(packets[4].payload.len() as u32);
        let mut next = sequence;
        for packet in &mut packets[5..] {
            packet.sequence = next;
            next = next.wrapping_add(1000);
        }
        let framed: Vec<_> = packets.iter().map(|packet| (None, packet.bytes(false))).collect();
        let written = join(BOTH, &framed);
        assert_eq!(written.iter().map(|written| kernel(written, 0).len()).collect::<Vec<_>>(), [5, 5]);
    }
}
