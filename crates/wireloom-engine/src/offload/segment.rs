//! Cuts super-packets into packets, as a network card would.

use super::{
    IPV4_HEADER, IPV6_HEADER, TCP_CHECKSUM, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER,
    checksum::Sum,
    flag, read_u16, read_u32,
    virtio::{PartialChecksum, SegmentationKind, VirtioHeader},
    write_u16, write_u32,
};

/// The packets in one packet that was read from the interface: one, or those of a super-packet.
///
/// It holds what it has learned of the packet, but not the packet: that is lent to each call, the
/// same one every time and without its link header.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    /// Where the payload of the next segment starts.
    next: usize,
    /// The packet's length.
    end: usize,
    cut: Cut,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// A packet as it stands, but for a checksum: where to add from, and where it goes.
    Whole(Option<(usize, usize)>),
    /// A super-packet.
    Pieces(Pieces),
}

/// How a super-packet falls apart. What is the same in every segment is added up once.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    /// Bytes of payload in each segment.
    size: usize,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts.
    payload: usize,
    network: Network,
    protocol: Protocol,
    /// Of the pseudo-header and the transport header, without what differs: lengths and checksum, and
    /// in TCP the sequence number and the word with the flags.
    sum: Sum,
}

#[derive(Clone, Copy, Debug)]
enum Network {
    V4 {
        /// Of the first segment.
        identification: u16,
        /// Of the header without total length, identification and checksum.
        sum: Sum,
    },
    V6,
}

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Tcp {
        /// Of the first segment.
        sequence: u32,
        /// Data offset and flags.
        offset_and_flags: u16,
    },
    Udp,
}

impl Segments {
    /// Looks at a packet as the virtio-net header describes it; `link_len` is the length of the link
    /// header that its offsets count and `packet` does not have. `None` when the two do not fit.
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
        let cut = match header.segmentation {
            // Without a checksum to complete, the protocols' checksums would be unknown.
            Some(segmentation) => {
                let (transport, field) = checksum?;
                let size = usize::from(segmentation.size);
                Cut::Pieces(Pieces::new(segmentation.kind, size, transport, field, packet)?)
            }
            None if header.checksum.is_some() => Cut::Whole(Some(checksum?)),
            None => Cut::Whole(None),
        };
        let next = match &cut {
            Cut::Whole(_) => 0,
            Cut::Pieces(pieces) => pieces.payload,
        };
        Some(Self { next, end, cut })
    }

    /// The length of what is cut, in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a packet has a header")]
    pub fn len(&self) -> usize {
        self.end
    }

    /// The length of the longest packet, in bytes.
    #[must_use]
    pub fn longest(&self) -> usize {
        match &self.cut {
            Cut::Whole(_) => self.end,
            Cut::Pieces(pieces) => self.end.min(pieces.payload + pieces.size),
        }
    }

    /// Leaves the next packet out.
    pub fn skip_next(&mut self) {
        self.next = match &self.cut {
            Cut::Whole(_) => self.end,
            Cut::Pieces(pieces) => self.end.min(self.next + pieces.size),
        };
    }

    /// Writes the next packet to the start of `room`, which is as long as the longest may be, and
    /// returns its length; `None` when there are no more.
    pub fn write_next(&mut self, packet: &[u8], room: &mut [u8]) -> Option<usize> {
        let start = self.next;
        if start >= self.end {
            return None;
        }
        match &self.cut {
            Cut::Whole(checksum) => {
                let room = &mut room[..self.end];
                room.copy_from_slice(packet);
                if let Some((from, field)) = *checksum {
                    let sum = Sum::of(&room[from..]);
                    let udp = field == from + UDP_CHECKSUM;
                    write_u16(room, field, if udp { sum.udp_complement() } else { sum.complement() });
                }
                self.next = self.end;
                Some(self.end)
            }
            Cut::Pieces(pieces) => {
                let stop = self.end.min(start + pieces.size);
                self.next = stop;
                Some(pieces.write(packet, start, stop, room))
            }
        }
    }
}

impl Pieces {
    fn new(
        kind: SegmentationKind,
        size: usize,
        transport: usize,
        field: usize,
        packet: &[u8],
    ) -> Option<Self> {
        let version = packet.first()? >> 4;
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
                let header_len = usize::from(packet[0] & 15) * 4;
                let whole = header_len >= IPV4_HEADER && header_len == transport && transport <= packet.len();
                // A fragment is never a super-packet.
                if !whole || read_u16(packet, 6) & 0x3fff != 0 {
                    return None;
                }
                let sum =
                    Sum::of(&packet[..2]).and(Sum::of(&packet[6..10])).and(Sum::of(&packet[12..transport]));
                Network::V4 { identification: read_u16(packet, 4), sum }
            }
            _ if transport >= IPV6_HEADER => Network::V6,
            _ => return None,
        };
        let header = packet.get(transport..)?;
        let (shortest, checksum) = if tcp { (TCP_HEADER, TCP_CHECKSUM) } else { (UDP_HEADER, UDP_CHECKSUM) };
        if header.len() <= shortest || field != transport + checksum {
            return None;
        }
        let header_len = if tcp { usize::from(header[12] >> 4) * 4 } else { UDP_HEADER };
        let payload = transport + header_len;
        if header_len < shortest || payload >= packet.len() {
            return None;
        }
        // The field has the sum of the pseudo-header, which has the length of the whole.
        let pseudo = Sum::default().and_u16(read_u16(header, checksum)).without_u16(header.len() as u16);
        let (protocol, sum) = if tcp {
            let sum = pseudo
                .and(Sum::of(&header[..4]))
                .and(Sum::of(&header[8..12]))
                .and(Sum::of(&header[14..TCP_CHECKSUM]))
                .and(Sum::of(&header[TCP_CHECKSUM + 2..header_len]));
            let (sequence, offset_and_flags) = (read_u32(header, 4), read_u16(header, 12));
            (Protocol::Tcp { sequence, offset_and_flags }, sum)
        } else {
            (Protocol::Udp, pseudo.and(Sum::of(&header[..4])))
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
                write_u16(header, 2, len as u16);
                write_u16(header, 4, identification);
                write_u16(header, 10, sum.and_u16(len as u16).and_u16(identification).complement());
            }
            Network::V6 => write_u16(header, 4, (len - IPV6_HEADER) as u16),
        }

        let header = &mut header[self.transport..];
        let transport_len = (len - self.transport) as u16;
        let sum = self.sum.and_u16(transport_len).and(Sum::of(payload));
        match self.protocol {
            Protocol::Tcp { sequence, mut offset_and_flags } => {
                let sequence = sequence.wrapping_add(before as u32);
                if stop < packet.len() {
                    offset_and_flags &= !u16::from(flag::FIN | flag::PSH);
                }
                if before > 0 {
                    offset_and_flags &= !u16::from(flag::CWR);
                }
                write_u32(header, 4, sequence);
                write_u16(header, 12, offset_and_flags);
                let sum = sum.and_u32(sequence).and_u16(offset_and_flags);
                write_u16(header, TCP_CHECKSUM, sum.complement());
            }
            Protocol::Udp => {
                write_u16(header, 4, transport_len);
                // The length stands in the header and in the pseudo-header.
                write_u16(header, UDP_CHECKSUM, sum.and_u16(transport_len).udp_complement());
            }
        }
        len
    }
}
