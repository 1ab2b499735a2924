//! The virtio-net header (VIRTIO 1.3, section 5.1.6; include/uapi/linux/virtio_net.h), which precedes every packet of
//! an interface with `IFF_VNET_HDR`. Its numbers are in the machine's byte order.

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`, a flag beside the type: the first segment has CWR set, as its TCP header says, too.
const ECN: u8 = 0x80;

/// What is left to be done with the packet that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// The checksum to complete, if any.
    pub checksum: Option<PartialChecksum>,
    /// How to split the packet, if it is a super-packet.
    pub segmentation: Option<Segmentation>,
}

/// A checksum that so far covers the pseudo-header only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where the checksum stands in the transport header, in bytes.
    pub offset: u16,
}

/// How to split a super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// The protocol whose rules apply.
    pub kind: SegmentationKind,
    /// The length of all headers together, Ethernet's included, in bytes. It is only a hint.
    pub header_len: u16,
    /// Bytes of payload in each segment but the last.
    pub size: u16,
}

/// The protocols whose super-packets are split and made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentationKind {
    /// TCP over IPv4 (`VIRTIO_NET_HDR_GSO_TCPV4`).
    TcpV4 = 1,
    /// TCP over IPv6 (`VIRTIO_NET_HDR_GSO_TCPV6`).
    TcpV6 = 4,
    /// UDP over either (`VIRTIO_NET_HDR_GSO_UDP_L4`).
    Udp = 5,
}

impl VirtioHeader {
    /// The header's length, in bytes.
    pub const LEN: usize = 10;

    /// Reads a header. `None` when it asks for an offload that was never offered.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [flags, kind, numbers @ ..] = bytes;
        let number = |at: usize| u16::from_ne_bytes([numbers[2 * at], numbers[2 * at + 1]]);
        let [header_len, size, start, offset] = [number(0), number(1), number(2), number(3)];
        let kind = match kind & !ECN {
            0 => None,
            1 => Some(SegmentationKind::TcpV4),
            4 => Some(SegmentationKind::TcpV6),
            5 => Some(SegmentationKind::Udp),
            _ => return None,
        };
        Some(Self {
            checksum: (flags & NEEDS_CHECKSUM != 0).then_some(PartialChecksum { start, offset }),
            segmentation: kind.map(|kind| Segmentation { kind, header_len, size }),
        })
    }

    /// The header as it is written before a packet.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut write = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        if let Some(segmentation) = self.segmentation {
            write(2, segmentation.header_len);
            write(4, segmentation.size);
        }
        if let Some(checksum) = self.checksum {
            write(6, checksum.start);
            write(8, checksum.offset);
        }
        bytes[0] = self.checksum.map_or(0, |_| NEEDS_CHECKSUM);
        bytes[1] = self.segmentation.map_or(0, |segmentation| segmentation.kind as u8);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_packet_that_needs_nothing_has_a_header_of_zeroes() {
        assert_eq!(VirtioHeader::default().to_bytes(), [0; VirtioHeader::LEN]);
    }

    #[test]
    fn offloads_that_were_never_offered_are_refused() {
        for kind in (0..=255).filter(|kind| ![0, 1, 4, 5].contains(&(kind & 0x7f))) {
            assert_eq!(VirtioHeader::parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]), None, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn a_header_that_is_written_and_read_again_is_unchanged(
            checksum in prop::option::of((any::<u16>(), any::<u16>())),
            segmentation in prop::option::of((0..3usize, any::<u16>(), any::<u16>())),
        ) {
            let kinds = [SegmentationKind::TcpV4, SegmentationKind::TcpV6, SegmentationKind::Udp];
            let header = VirtioHeader {
                checksum: checksum.map(|(start, offset)| PartialChecksum { start, offset }),
                segmentation: segmentation
                    .map(|(kind, header_len, size)| Segmentation { kind: kinds[kind], header_len, size }),
            };
            let mut bytes = header.to_bytes();
            prop_assert_eq!(VirtioHeader::parse(&bytes), Some(header));
            bytes[1] |= ECN;
            prop_assert_eq!(VirtioHeader::parse(&bytes), Some(header));
        }
    }
}
