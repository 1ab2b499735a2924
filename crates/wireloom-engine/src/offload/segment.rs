//! Splits super-packets into segments, as a network card would.

use std::mem;

use super::virtio::{PartialChecksum, SegmentationKind, VirtioHeader};
use crate::packet::{
    checksum::Sum,
    ecn::{self, Ecn},
    ip_version, ipv4, ipv6, read_u16, read_u32, tcp, udp, write_u16, write_u32,
};

/// The packets in what was read from the interface: the segments of a super-packet, or one packet.
///
/// It holds what it has learnt of the packet but not the packet itself, which is passed to each call: the same one
/// each time, without its Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    /// Where the payload of the next segment starts.
    next: usize,
    /// The length of the packet.
    end: usize,
    /// Whether the next segment is marked as having met congestion.
    marks_next: bool,
    form: Form,
}

#[derive(Clone, Copy, Debug)]
enum Form {
    /// One packet. Its checksum may have to be completed: where to add from, and where to write the sum.
    Single(Option<(usize, usize)>),
    Super(SuperPacket),
}

/// How to split a super-packet. Sums over bytes that all segments share are computed once.
#[derive(Clone, Copy, Debug)]
struct SuperPacket {
    /// Bytes of payload in each segment.
    size: usize,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts.
    payload: usize,
    network: Network,
    protocol: Protocol,
    /// The sum of the pseudo-header and the transport header without the fields that differ between segments: lengths
    /// and checksum, and for TCP the sequence number and the word with the flags.
    sum: Sum,
}

#[derive(Clone, Copy, Debug)]
enum Network {
    V4 {
        /// The identification of the first segment.
        identification: u16,
        /// The sum of the header without total length, identification and checksum.
        sum: Sum,
    },
    V6,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp {
        /// The sequence number of the first segment.
        sequence: u32,
        /// Data offset and flags.
        offset_and_flags: u16,
    },
    Udp,
}

impl Segments {
    /// Examines a packet in the light of its virtio-net header. `link_len` is the length in bytes of the Ethernet
    /// header, which the header's offsets count and `packet` does not have. `None` when header and packet contradict
    /// each other.
    #[must_use]
    pub fn new(header: VirtioHeader, link_len: usize, packet: &[u8]) -> Option<Self> {
        let end = packet.len();
        let checksum = match header.checksum {
            None => None,
            Some(PartialChecksum { start, offset }) => {
                let start = usize::from(start).checked_sub(link_len)?;
                let field = start + usize::from(offset);
                Some((start, field)).filter(|_| field + 2 <= end)
            }
        };
        let form = match header.segmentation {
            // Without a checksum to complete, the transport's checksum field would be unknown.
            Some(segmentation) => {
                let (transport, field) = checksum?;
                let size = usize::from(segmentation.size);
                Form::Super(SuperPacket::new(segmentation.kind, size, transport, field, packet)?)
            }
            None if header.checksum.is_some() => Form::Single(Some(checksum?)),
            None => Form::Single(None),
        };
        let next = match &form {
            Form::Single(_) => 0,
            Form::Super(whole) => whole.payload,
        };
        Some(Self { next, end, marks_next: false, form })
    }

    /// The length of the whole packet, in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a packet has a header")]
    pub fn len(&self) -> usize {
        self.end
    }

    /// The length of the longest segment, in bytes.
    #[must_use]
    pub fn longest(&self) -> usize {
        match &self.form {
            Form::Single(_) => self.end,
            Form::Super(whole) => self.end.min(whole.payload + whole.size),
        }
    }

    /// Skips the next segment.
    pub fn skip_next(&mut self) {
        self.next = match &self.form {
            Form::Single(_) => self.end,
            Form::Super(whole) => self.end.min(self.next + whole.size),
        };
    }

    /// Marks the next segment as having met congestion, instead of the loss of a segment. Returns false when the packet
    /// cannot be marked.
    pub(crate) fn mark_next(&mut self, packet: &[u8]) -> bool {
        self.marks_next = Ecn::of_packet(packet) != Ecn::NotEct;
        self.marks_next
    }

    /// Writes the next segment to the start of `room` and returns its length in bytes. `None` when there are no more.
    ///
    /// # Panics
    /// When `room` is shorter than [`Self::longest`], or `packet` is another one than before.
    pub fn write_next(&mut self, packet: &[u8], room: &mut [u8]) -> Option<usize> {
        let start = self.next;
        if start >= self.end {
            return None;
        }
        let len = match &self.form {
            Form::Single(checksum) => {
                let room = &mut room[..self.end];
                room.copy_from_slice(packet);
                if let Some((from, field)) = *checksum {
                    let sum = Sum::of(&room[from..]);
                    let udp = field == from + udp::CHECKSUM;
                    write_u16(room, field, if udp { sum.udp_complement() } else { sum.complement() });
                }
                self.next = self.end;
                self.end
            }
            Form::Super(whole) => {
                let stop = self.end.min(start + whole.size);
                self.next = stop;
                whole.write(packet, start, stop, room)
            }
        };
        if mem::take(&mut self.marks_next) {
            ecn::mark(&mut room[..len]);
        }
        Some(len)
    }
}

impl SuperPacket {
    fn new(
        kind: SegmentationKind,
        size: usize,
        transport: usize,
        field: usize,
        packet: &[u8],
    ) -> Option<Self> {
        let version = ip_version(packet)?;
        let tcp = kind != SegmentationKind::Udp;
        let fits = match kind {
            SegmentationKind::TcpV4 => version == 4,
            SegmentationKind::TcpV6 => version == 6,
            SegmentationKind::Udp => version == 4 || version == 6,
        };
        if !fits || size == 0 {
            return None;
        }
        let network = match version {
            4 => {
                let header = ipv4::Header::read(packet)?;
                let header_len = header.len();
                let whole =
                    header_len >= ipv4::HEADER_LEN && header_len == transport && transport <= packet.len();
                // A fragment is never a super-packet.
                if !whole || header.is_fragment() {
                    return None;
                }
                let sum =
                    Sum::of(&packet[..2]).and(Sum::of(&packet[6..10])).and(Sum::of(&packet[12..transport]));
                Network::V4 { identification: header.identification(), sum }
            }
            _ if transport >= ipv6::HEADER_LEN => Network::V6,
            _ => return None,
        };
        let header = packet.get(transport..)?;
        let (shortest, checksum) =
            if tcp { (tcp::HEADER_LEN, tcp::CHECKSUM) } else { (udp::HEADER_LEN, udp::CHECKSUM) };
        if header.len() <= shortest || field != transport + checksum {
            return None;
        }
        let header_len = if tcp { tcp::header_len(header) } else { udp::HEADER_LEN };
        let payload = transport + header_len;
        if header_len < shortest || payload >= packet.len() {
            return None;
        }
        // The field has the sum of the pseudo-header, which includes the length of the super-packet.
        let pseudo = Sum::default().and_u16(read_u16(header, checksum)).without_u16(header.len() as u16);
        let (protocol, sum) = if tcp {
            let sum = pseudo
                .and(Sum::of(&header[..tcp::SEQUENCE]))
                .and(Sum::of(&header[tcp::SEQUENCE + 4..tcp::DATA_OFFSET]))
                .and(Sum::of(&header[tcp::DATA_OFFSET + 2..tcp::CHECKSUM]))
                .and(Sum::of(&header[tcp::CHECKSUM + 2..header_len]));
            let sequence = read_u32(header, tcp::SEQUENCE);
            let offset_and_flags = read_u16(header, tcp::DATA_OFFSET);
            (Protocol::Tcp { sequence, offset_and_flags }, sum)
        } else {
            (Protocol::Udp, pseudo.and(Sum::of(&header[..udp::LENGTH])))
        };
        Some(Self { size, transport, payload, network, protocol, sum })
    }

    /// Writes the segment with the payload from `start` to `stop` and returns its length.
    fn write(&self, packet: &[u8], start: usize, stop: usize, room: &mut [u8]) -> usize {
        let len = self.payload + (stop - start);
        let room = &mut room[..len];
        let (header, payload) = room.split_at_mut(self.payload);
        header.copy_from_slice(&packet[..self.payload]);
        payload.copy_from_slice(&packet[start..stop]);

        let before = start - self.payload;
        match self.network {
            Network::V4 { identification, sum } => {
                let identification = identification.wrapping_add((before / self.size) as u16);
                write_u16(header, ipv4::TOTAL_LENGTH, len as u16);
                write_u16(header, ipv4::IDENTIFICATION, identification);
                let sum = sum.and_u16(len as u16).and_u16(identification);
                write_u16(header, ipv4::CHECKSUM, sum.complement());
            }
            Network::V6 => write_u16(header, ipv6::PAYLOAD_LENGTH, (len - ipv6::HEADER_LEN) as u16),
        }

        let header = &mut header[self.transport..];
        let transport_len = (len - self.transport) as u16;
        let sum = self.sum.and_u16(transport_len).and(Sum::of(payload));
        match self.protocol {
            Protocol::Tcp { sequence, mut offset_and_flags } => {
                let sequence = sequence.wrapping_add(before as u32);
                if stop < packet.len() {
                    offset_and_flags &= !u16::from((tcp::Flags::FIN | tcp::Flags::PSH).bits());
                }
                if before > 0 {
                    offset_and_flags &= !u16::from(tcp::Flags::CWR.bits());
                }
                write_u32(header, tcp::SEQUENCE, sequence);
                write_u16(header, tcp::DATA_OFFSET, offset_and_flags);
                let sum = sum.and_u32(sequence).and_u16(offset_and_flags);
                write_u16(header, tcp::CHECKSUM, sum.complement());
            }
            Protocol::Udp => {
                write_u16(header, udp::LENGTH, transport_len);
                // The length is in the header and in the pseudo-header.
                write_u16(header, udp::CHECKSUM, sum.and_u16(transport_len).udp_complement());
            }
        }
        len
    }
}
