//! Joins packets that came out of a tunnel into super-packets, as the kernel does with what comes from
//! a network card (`tcp_gro_receive` in net/ipv4/tcp_offload.c, `udp_gro_receive` in udp_offload.c).
//!
//! Packets are joined only when cutting the super-packet yields them again, byte for byte; one thing
//! excepted: the identification of an IPv4 packet that must not be fragmented, which means nothing
//! (RFC 6864, section 4.1). So a checksum that is wrong stays wrong: nothing is joined unverified,
//! because it would come out corrected.

use std::{io::IoSlice, iter};

use super::{
    IPV4_HEADER, IPV6_HEADER, LinkHeader, TCP, TCP_CHECKSUM, TCP_HEADER, UDP, UDP_CHECKSUM, UDP_HEADER,
    checksum::{Sum, pseudo_header},
    flag, read_u16, read_u32,
    virtio::{PartialChecksum, Segmentation, SegmentationKind, VirtioHeader},
    write_u16,
};

/// Packets in one super-packet of TCP: 64 KB of those that an MTU of 1420 leaves are 48.
const TCP_MAX: usize = 64;
/// Packets in one super-packet of UDP. The socket it goes to takes it as so many datagrams at once, and
/// its default buffer should not overflow from one.
const UDP_MAX: usize = 32;
/// Longest IP packet, in bytes.
const LENGTH_MAX: usize = 65_535;
/// The longest headers that are joined: IPv6 and a TCP header with all options.
const HEADERS_MAX: usize = IPV6_HEADER + 60;

/// Parts that [`Coalescer`] gives to its sink, at most: virtio-net header, link header, IP and transport
/// header, and the payloads.
const PARTS_MAX: usize = 3 + TCP_MAX;

/// What may be joined: what the interface takes as super-packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Joinable {
    /// Segments of TCP.
    pub tcp: bool,
    /// Datagrams of UDP.
    pub udp: bool,
}

/// Takes the packets of a batch in their order and gives them on, in the same order, to a sink: how many
/// they are, and what is to be written to the interface, in parts of which the first is the virtio-net
/// header ([`Tun::send`](crate::tun::Tun::send)).
///
/// The packets' bytes stay where they are; only headers are written anew.
#[derive(Debug)]
pub struct Coalescer<'b> {
    joinable: Joinable,
    group: Option<Group<'b>>,
    payloads: [&'b [u8]; TCP_MAX],
}

/// Packets that were found to belong together; at least one.
#[derive(Debug)]
struct Group<'b> {
    link: Option<LinkHeader>,
    /// The first one, whose headers count for all.
    first: &'b [u8],
    /// Of the first one; `None` when nothing can be joined to it.
    shape: Option<Shape>,
    /// How many there are.
    count: usize,
    /// Bytes of payload of all of them.
    payload: usize,
    /// Whether the last one ends the group: it was shorter than the first, or pushed.
    closed: bool,
    pushed: bool,
}

/// What it takes to join a packet to others.
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
    /// Holds nothing yet.
    #[must_use]
    pub fn new(joinable: Joinable) -> Self {
        Self { joinable, group: None, payloads: [&[]; TCP_MAX] }
    }

    /// Takes the next packet, whose length is the one that its IP header claims. Those before it go to
    /// the sink when it does not belong to them.
    pub fn push(
        &mut self,
        link: Option<LinkHeader>,
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

    /// Gives on what is still held back.
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
    fn new(link: Option<LinkHeader>, first: &'b [u8], shape: Option<Shape>) -> Self {
        let payload = shape.map_or(0, |shape| first.len() - shape.payload);
        let pushed = shape.is_some_and(|shape| shape.pushed);
        Self { link, first, shape, count: 1, payload, closed: pushed, pushed }
    }

    /// Bytes of payload in every packet but the last.
    fn size(&self, shape: &Shape) -> usize {
        self.first.len() - shape.payload
    }

    /// Whether the packet continues this group.
    fn admits(&self, link: Option<LinkHeader>, packet: &[u8], shape: &Shape) -> bool {
        let Some(own) = &self.shape else { return false };
        let payload = packet.len() - shape.payload;
        let most = if own.protocol == TCP { TCP_MAX } else { UDP_MAX };
        let room = !self.closed
            && self.count < most
            && payload <= self.size(own)
            && own.payload + self.payload + payload <= LENGTH_MAX;
        room && own.protocol == shape.protocol
            && own.transport == shape.transport
            && own.payload == shape.payload
            && link == self.link
            && self.continues_network(packet)
            && self.continues_transport(own, packet)
    }

    fn continues_network(&self, packet: &[u8]) -> bool {
        let first = self.first;
        if packet[0] >> 4 == 6 {
            // All but the length: class and flow label, next header, hop limit, addresses.
            return first[..4] == packet[..4] && first[6..IPV6_HEADER] == packet[6..IPV6_HEADER];
        }
        let identification = read_u16(first, 4).wrapping_add(self.count as u16);
        let unfragmentable = first[6] & 0x40 != 0;
        // Type of service; flags, time to live and protocol; addresses.
        first[..2] == packet[..2]
            && first[6..10] == packet[6..10]
            && first[12..IPV4_HEADER] == packet[12..IPV4_HEADER]
            && (unfragmentable || read_u16(packet, 4) == identification)
    }

    fn continues_transport(&self, shape: &Shape, packet: &[u8]) -> bool {
        let first = &self.first[shape.transport..shape.payload];
        let header = &packet[shape.transport..shape.payload];
        let ports = first[..4] == header[..4];
        if shape.protocol == UDP {
            return ports;
        }
        // The acknowledgement, the data offset, the window, the urgent pointer and the options; the
        // flags are those that `Shape::of_tcp` lets through.
        ports
            && read_u32(header, 4) == read_u32(first, 4).wrapping_add(self.payload as u32)
            && first[8..13] == header[8..13]
            && first[14..TCP_CHECKSUM] == header[14..TCP_CHECKSUM]
            && first[TCP_CHECKSUM + 2..] == header[TCP_CHECKSUM + 2..]
    }

    fn add(&mut self, payload: usize, pushed: bool) {
        self.count += 1;
        self.payload += payload;
        self.pushed = pushed;
        self.closed = pushed || self.shape.is_some_and(|shape| payload < self.size(&shape));
    }

    /// Writes the headers of the super-packet and returns the one that describes it.
    fn write_headers(&self, shape: &Shape, headers: &mut [u8]) -> VirtioHeader {
        let link_len = self.link.map_or(0, |link| link.len());
        let len = shape.payload + self.payload;
        let transport_len = len - shape.transport;
        headers.copy_from_slice(&self.first[..shape.payload]);
        let v6 = headers[0] >> 4 == 6;
        if v6 {
            write_u16(headers, 4, (len - IPV6_HEADER) as u16);
        } else {
            write_u16(headers, 2, len as u16);
            write_u16(headers, 10, 0);
            let sum = Sum::of(&headers[..IPV4_HEADER]).complement();
            write_u16(headers, 10, sum);
        }
        let pseudo = pseudo_header(headers, shape.protocol, transport_len).fold();
        let transport = &mut headers[shape.transport..];
        let (kind, field) = if shape.protocol == UDP {
            write_u16(transport, 4, transport_len as u16);
            (SegmentationKind::Udp, UDP_CHECKSUM)
        } else {
            transport[13] |= if self.pushed { flag::PSH } else { 0 };
            (if v6 { SegmentationKind::TcpV6 } else { SegmentationKind::TcpV4 }, TCP_CHECKSUM)
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
    /// `None` when the packet is to go on as it is: it is no TCP or UDP, a fragment, has IP options or
    /// extension headers, asks for attention by its TCP flags, has no payload, or is damaged.
    fn of(packet: &[u8], joinable: Joinable) -> Option<Self> {
        let (protocol, transport) = match packet.first()? >> 4 {
            4 if is_plain_v4(packet) => (packet[9], IPV4_HEADER),
            6 if is_plain_v6(packet) => (packet[6], IPV6_HEADER),
            _ => return None,
        };
        let header = &packet[transport..];
        let shape = match protocol {
            TCP if joinable.tcp => Self::of_tcp(header, transport)?,
            UDP if joinable.udp => Self::of_udp(header, transport)?,
            _ => return None,
        };
        let sum = pseudo_header(packet, protocol, header.len()).and(Sum::of(header));
        sum.is_intact().then_some(shape)
    }

    fn of_tcp(header: &[u8], transport: usize) -> Option<Self> {
        if header.len() <= TCP_HEADER {
            return None;
        }
        let (header_len, flags) = (usize::from(header[12] >> 4) * 4, header[13]);
        // An acknowledgement and perhaps a push; the bits before them are reserved, or are of ECN.
        let ordinary = flags & !flag::PSH == flag::ACK && header[12] & 15 == 0;
        let whole = header_len >= TCP_HEADER && header_len < header.len();
        (ordinary && whole).then_some(Self {
            protocol: TCP,
            transport,
            payload: transport + header_len,
            pushed: flags & flag::PSH != 0,
        })
    }

    fn of_udp(header: &[u8], transport: usize) -> Option<Self> {
        let whole = header.len() > UDP_HEADER && usize::from(read_u16(header, 4)) == header.len();
        // Without a checksum (over IPv4), it would come out with one.
        let summed = whole && read_u16(header, UDP_CHECKSUM) != 0;
        summed.then_some(Self { protocol: UDP, transport, payload: transport + UDP_HEADER, pushed: false })
    }
}

/// An IPv4 packet of its claimed length, without options, no fragment, with the right checksum.
fn is_plain_v4(packet: &[u8]) -> bool {
    packet.len() > IPV4_HEADER
        && packet[0] == 0x45
        && usize::from(read_u16(packet, 2)) == packet.len()
        && read_u16(packet, 6) & 0x3fff == 0
        && Sum::of(&packet[..IPV4_HEADER]).is_intact()
}

/// An IPv6 packet of its claimed length.
fn is_plain_v6(packet: &[u8]) -> bool {
    packet.len() > IPV6_HEADER && IPV6_HEADER + usize::from(read_u16(packet, 4)) == packet.len()
}
