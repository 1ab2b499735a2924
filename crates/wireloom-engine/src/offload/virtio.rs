//! The virtio-net header (VIRTIO 1.3, section 5.1.6; include/uapi/linux/virtio_net.h), which stands
//! before every packet of an interface with `IFF_VNET_HDR`. Its numbers are in the machine's byte order.

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_ECN`, beside the type: the first segment has CWR set. The TCP header tells too.
const ECN: u8 = 0x80;

/// What the header says of the packet after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// Where a checksum is to be completed, `None` when there is nothing to do.
    pub checksum: Option<PartialChecksum>,
    /// How the packet is to be cut, `None` when it is one as it stands.
    pub segmentation: Option<Segmentation>,
}

/// A checksum of which only the pseudo-header is added yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header starts, from the start of the link header.
    pub start: u16,
    /// Where the field stands in it.
    pub offset: u16,
}

/// How a super-packet is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// By which protocol's rules.
    pub kind: SegmentationKind,
    /// Length of all headers together, the link header included: a hint.
    pub header_len: u16,
    /// Bytes of payload in each segment, the last one excepted.
    pub size: u16,
}

/// Protocols whose super-packets we take and make.
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
    /// Its length, in bytes.
    pub const LEN: usize = 10;

    /// Reads a header; `None` when it asks for what was never offered.
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

    /// The header's bytes.
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
    fn a_packet_as_it_stands_has_a_header_of_zeroes() {
        assert_eq!(VirtioHeader::default().to_bytes(), [0; VirtioHeader::LEN]);
    }

    #[test]
    fn what_was_never_offered_is_refused() {
        for kind in (0..=255).filter(|kind| ![0, 1, 4, 5].contains(&(kind & 0x7f))) {
            assert_eq!(VirtioHeader::parse(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]), None, "{kind}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
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
