//! Joins packets from a tunnel into super-packets, as the kernel does with packets from a network card
//! (`tcp_gro_receive` in net/ipv4/tcp_offload.c, `udp_gro_receive` in udp_offload.c).
//!
//! Packets are joined only if splitting the super-packet yields the same packets again, byte for byte. There is one
//! exception: the identification of an IPv4 packet that must not be fragmented, which has no meaning (RFC 6864,
//! section 4.1). Checksums are verified first, because a wrong one would come out corrected.

use std::{io::IoSlice, iter};

use super::virtio::{PartialChecksum, Segmentation, SegmentationKind, VirtioHeader};
use crate::packet::{
    MAX_PACKET,
    checksum::Sum,
    ethernet::HeaderBytes,
    ip_version, ipv4, ipv6,
    protocol::{TCP, UDP},
    pseudo_header_sum, read_u16, read_u32, tcp, udp, write_u16,
};

/// The most packets in one super-packet of TCP. With an MTU of 1420, 48 of them make 64 KB.
const TCP_MAX: usize = 64;
/// The most packets in one super-packet of UDP. The receiving socket gets as many datagrams at once, which should not
/// overflow its default buffer.
const UDP_MAX: usize = 32;
/// The longest headers that are joined, in bytes: IPv6, and a TCP header with all options.
const HEADERS_MAX: usize = ipv6::HEADER_LEN + 60;

/// The most parts that [`Coalescer`] passes to its sink: virtio-net header, Ethernet header, IP and transport header,
/// and the payloads.
const PARTS_MAX: usize = 3 + TCP_MAX;

/// Which packets may be joined: those whose super-packets the interface takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joinable {
    /// TCP segments.
    pub tcp: bool,
    /// UDP datagrams.
    pub udp: bool,
}

impl Joinable {
    /// Leaves this kind of super-packet out.
    pub(crate) fn remove(&mut self, kind: SegmentationKind) {
        match kind {
            SegmentationKind::TcpV4 | SegmentationKind::TcpV6 => self.tcp = false,
            SegmentationKind::Udp => self.udp = false,
        }
    }
}

/// Takes the packets of a batch in order and passes them on, in the same order, to a sink. The sink gets the number of
/// packets and the parts to write to the interface, of which the first is the virtio-net header.
///
/// The packets' bytes stay where they are. Only headers are written anew.
#[derive(Debug)]
pub struct Coalescer<'b> {
    joinable: Joinable,
    group: Option<Group<'b>>,
    payloads: [&'b [u8]; TCP_MAX],
}

/// Packets that belong together; at least one.
#[derive(Debug)]
struct Group<'b> {
    link: Option<HeaderBytes>,
    /// The first packet, whose headers stand for all.
    first: &'b [u8],
    /// The shape of the first packet. `None` when nothing can be joined to it.
    shape: Option<Shape>,
    /// The number of packets.
    count: usize,
    /// Bytes of payload of all packets.
    payload: usize,
    /// Whether the last packet ends the group: it was shorter than the first, or pushed.
    closed: bool,
    pushed: bool,
}

/// The properties of a packet that decide whether it can be joined to others.
#[derive(Clone, Copy, Debug)]
struct Shape {
    protocol: u8,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts.
    payload: usize,
    pushed: bool,
}

impl<'b> Coalescer<'b> {
    /// A coalescer that holds no packet.
    #[must_use]
    pub fn new(joinable: Joinable) -> Self {
        Self { joinable, group: None, payloads: [&[]; TCP_MAX] }
    }

    /// Takes the next packet, whose length must be the one that its IP header claims. If it does not continue the
    /// packets before it, those go to the sink. `link` is its Ethernet header, if there is one.
    pub fn push(
        &mut self,
        link: Option<HeaderBytes>,
        packet: &'b [u8],
        sink: impl FnMut(u64, &[IoSlice<'_>]),
    ) {
        let shape = Shape::of(packet, self.joinable);
        if let (Some(group), Some(shape)) = (&mut self.group, &shape)
            && group.admits(link, packet, shape)
        {
            let payload = &packet[shape.payload..];
            self.payloads[group.count] = payload;
            group.add(payload.len(), shape.pushed);
            return;
        }
        self.flush(sink);
        if let Some(shape) = &shape {
            self.payloads[0] = &packet[shape.payload..];
        }
        self.group = Some(Group::new(link, packet, shape));
    }

    /// Passes on the packets that are still held back.
    pub fn flush(&mut self, mut sink: impl FnMut(u64, &[IoSlice<'_>])) {
        let Some(group) = self.group.take() else { return };
        let link = group.link.as_ref().map_or(&[][..], |link| link);
        match group.shape {
            Some(shape) if group.count > 1 => {
                let mut headers = [0; HEADERS_MAX];
                let headers = &mut headers[..shape.payload];
                let header = group.write_headers(&shape, headers).to_bytes();
                let mut parts = [IoSlice::new(&[]); PARTS_MAX];
                let all =
                    [&header, link, headers].into_iter().chain(self.payloads[..group.count].iter().copied());
                for (part, bytes) in iter::zip(&mut parts, all) {
                    *part = IoSlice::new(bytes);
                }
                sink(group.count as u64, &parts[..3 + group.count]);
            }
            _ => {
                let header = VirtioHeader::default().to_bytes();
                sink(1, &[IoSlice::new(&header), IoSlice::new(link), IoSlice::new(group.first)]);
            }
        }
    }
}

impl<'b> Group<'b> {
    fn new(link: Option<HeaderBytes>, first: &'b [u8], shape: Option<Shape>) -> Self {
        let payload = shape.map_or(0, |shape| first.len() - shape.payload);
        let pushed = shape.is_some_and(|shape| shape.pushed);
        Self { link, first, shape, count: 1, payload, closed: pushed, pushed }
    }

    /// Bytes of payload in every packet but the last.
    fn size(&self, shape: &Shape) -> usize {
        self.first.len() - shape.payload
    }

    /// Whether the packet continues this group.
    fn admits(&self, link: Option<HeaderBytes>, packet: &[u8], shape: &Shape) -> bool {
        let Some(own) = &self.shape else { return false };
        let payload = packet.len() - shape.payload;
        let most = if own.protocol == TCP { TCP_MAX } else { UDP_MAX };
        let room = !self.closed
            && self.count < most
            && payload <= self.size(own)
            && own.payload + self.payload + payload <= MAX_PACKET;
        room && own.protocol == shape.protocol
            && own.transport == shape.transport
            && own.payload == shape.payload
            && link == self.link
            && self.continues_network(packet)
            && self.continues_transport(own, packet)
    }

    fn continues_network(&self, packet: &[u8]) -> bool {
        let first = self.first;
        if ip_version(packet) == Some(6) {
            // Everything but the length: traffic class and flow label, next header, hop limit, addresses.
            return first[..4] == packet[..4] && first[6..ipv6::HEADER_LEN] == packet[6..ipv6::HEADER_LEN];
        }
        let identification = read_u16(first, ipv4::IDENTIFICATION).wrapping_add(self.count as u16);
        let unfragmentable = ipv4::Header::read(first).is_some_and(ipv4::Header::dont_fragment);
        // Type of service; flags, time to live and protocol; addresses.
        first[..2] == packet[..2]
            && first[6..10] == packet[6..10]
            && first[ipv4::ADDRESSES] == packet[ipv4::ADDRESSES]
            && (unfragmentable || read_u16(packet, ipv4::IDENTIFICATION) == identification)
    }

    fn continues_transport(&self, shape: &Shape, packet: &[u8]) -> bool {
        let first = &self.first[shape.transport..shape.payload];
        let header = &packet[shape.transport..shape.payload];
        let ports = first[..4] == header[..4];
        if shape.protocol == UDP {
            return ports;
        }
        let sequence = read_u32(first, tcp::SEQUENCE).wrapping_add(self.payload as u32);
        // The acknowledgement, the data offset, the window, the urgent pointer and the options. `Shape::of_tcp` has
        // checked the flags.
        ports
            && read_u32(header, tcp::SEQUENCE) == sequence
            && first[tcp::SEQUENCE + 4..tcp::FLAGS] == header[tcp::SEQUENCE + 4..tcp::FLAGS]
            && first[tcp::FLAGS + 1..tcp::CHECKSUM] == header[tcp::FLAGS + 1..tcp::CHECKSUM]
            && first[tcp::CHECKSUM + 2..] == header[tcp::CHECKSUM + 2..]
    }

    fn add(&mut self, payload: usize, pushed: bool) {
        self.count += 1;
        self.payload += payload;
        self.pushed = pushed;
        self.closed = pushed || self.shape.is_some_and(|shape| payload < self.size(&shape));
    }

    /// Writes the headers of the super-packet and returns its virtio-net header.
    fn write_headers(&self, shape: &Shape, headers: &mut [u8]) -> VirtioHeader {
        let link_len = self.link.map_or(0, |link| link.len());
        let len = shape.payload + self.payload;
        let transport_len = len - shape.transport;
        headers.copy_from_slice(&self.first[..shape.payload]);
        let v6 = ip_version(headers) == Some(6);
        if v6 {
            write_u16(headers, ipv6::PAYLOAD_LENGTH, (len - ipv6::HEADER_LEN) as u16);
        } else {
            write_u16(headers, ipv4::TOTAL_LENGTH, len as u16);
            write_u16(headers, ipv4::CHECKSUM, 0);
            let sum = Sum::of(&headers[..ipv4::HEADER_LEN]).complement();
            write_u16(headers, ipv4::CHECKSUM, sum);
        }
        let pseudo = pseudo_header_sum(headers, shape.protocol, transport_len).fold();
        let transport = &mut headers[shape.transport..];
        let (kind, field) = if shape.protocol == UDP {
            write_u16(transport, udp::LENGTH, transport_len as u16);
            (SegmentationKind::Udp, udp::CHECKSUM)
        } else {
            transport[tcp::FLAGS] |= if self.pushed { tcp::Flags::PSH.bits() } else { 0 };
            (if v6 { SegmentationKind::TcpV6 } else { SegmentationKind::TcpV4 }, tcp::CHECKSUM)
        };
        write_u16(transport, field, pseudo);
        VirtioHeader {
            checksum: Some(PartialChecksum {
                start: (link_len + shape.transport) as u16,
                offset: field as u16,
            }),
            segmentation: Some(Segmentation {
                kind,
                header_len: (link_len + shape.payload) as u16,
                size: self.size(shape) as u16,
            }),
        }
    }
}

impl Shape {
    /// `None` when the packet has to be passed on alone: it is not TCP or UDP, is a fragment, has IP options or
    /// extension headers, has TCP flags that ask for attention, has no payload, or is damaged.
    fn of(packet: &[u8], joinable: Joinable) -> Option<Self> {
        let (protocol, transport) = match ip_version(packet)? {
            4 => (plain_v4(packet)?.protocol(), ipv4::HEADER_LEN),
            6 => (plain_v6(packet)?.next_header(), ipv6::HEADER_LEN),
            _ => return None,
        };
        let header = &packet[transport..];
        let shape = match protocol {
            TCP if joinable.tcp => Self::of_tcp(header, transport)?,
            UDP if joinable.udp => Self::of_udp(header, transport)?,
            _ => return None,
        };
        let sum = pseudo_header_sum(packet, protocol, header.len()).and(Sum::of(header));
        sum.is_intact().then_some(shape)
    }

    fn of_tcp(header: &[u8], transport: usize) -> Option<Self> {
        if header.len() <= tcp::HEADER_LEN {
            return None;
        }
        let (header_len, flags) = (tcp::header_len(header), tcp::Flags::from_bits_retain(header[tcp::FLAGS]));
        // An acknowledgement and perhaps a push. The low bits of the other byte are reserved, or belong to ECN.
        let ordinary =
            flags.difference(tcp::Flags::PSH) == tcp::Flags::ACK && header[tcp::DATA_OFFSET] & 15 == 0;
        let whole = header_len >= tcp::HEADER_LEN && header_len < header.len();
        (ordinary && whole).then_some(Self {
            protocol: TCP,
            transport,
            payload: transport + header_len,
            pushed: flags.contains(tcp::Flags::PSH),
        })
    }

    fn of_udp(header: &[u8], transport: usize) -> Option<Self> {
        let whole =
            header.len() > udp::HEADER_LEN && usize::from(read_u16(header, udp::LENGTH)) == header.len();
        // A datagram without a checksum (over IPv4) would come out with one.
        let summed = whole && read_u16(header, udp::CHECKSUM) != 0;
        let payload = transport + udp::HEADER_LEN;
        summed.then_some(Self { protocol: UDP, transport, payload, pushed: false })
    }
}

/// The header of an IPv4 packet that has its claimed length, no options, the right checksum, and is not a fragment.
fn plain_v4(packet: &[u8]) -> Option<ipv4::Header<'_>> {
    let header = ipv4::Header::read(packet)?;
    let plain = packet.len() > ipv4::HEADER_LEN
        && header.len() == ipv4::HEADER_LEN
        && header.total_len() == packet.len()
        && !header.is_fragment()
        && Sum::of(&packet[..ipv4::HEADER_LEN]).is_intact();
    plain.then_some(header)
}

/// The header of an IPv6 packet that has its claimed length.
fn plain_v6(packet: &[u8]) -> Option<ipv6::Header<'_>> {
    let header = ipv6::Header::read(packet)?;
    (packet.len() > ipv6::HEADER_LEN && header.total_len() == packet.len()).then_some(header)
}
