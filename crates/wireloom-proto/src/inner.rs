//! Inner packets: the IPv4 and IPv6 packets that a tunnel carries.
//!
//! The protocol reads four fields of their headers: the addresses, which pick or verify the peer, the length, which
//! tells where the padding of a data message begins, and the congestion notification, which the wire shows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::drop_reason::DropReason;

/// The shortest IPv4 header (RFC 791, section 3.1).
const IPV4_HEADER: usize = 20;
/// The IPv6 header (RFC 8200, section 3).
const IPV6_HEADER: usize = 40;

/// The addresses and the length in a packet's IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The source address. A received packet's must be among its peer's allowed-IPs.
    pub source: IpAddr,
    /// The destination address. A sent packet's picks the peer.
    pub destination: IpAddr,
    /// The packet's length in bytes, header included. Whatever follows is padding.
    pub len: usize,
}

impl Packet {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// [`DropReason::BadInnerPacket`] when the version is neither 4 nor 6, or the header's length field is less than
    /// the header or more than `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let packet = match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            _ => None,
        };
        packet.filter(|packet| packet.len <= bytes.len()).ok_or(DropReason::BadInnerPacket)
    }

    fn parse_v4(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; IPV4_HEADER] = bytes.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let source: [u8; 4] = *header[12..].first_chunk()?;
        let destination: [u8; 4] = *header[16..].first_chunk()?;
        (len >= IPV4_HEADER).then(|| Self {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::from(destination).into(),
            len,
        })
    }

    fn parse_v6(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; IPV6_HEADER] = bytes.first_chunk()?;
        let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
        let source: [u8; 16] = *header[8..].first_chunk()?;
        let destination: [u8; 16] = *header[24..].first_chunk()?;
        Some(Self {
            source: Ipv6Addr::from(source).into(),
            destination: Ipv6Addr::from(destination).into(),
            len: IPV6_HEADER + payload,
        })
    }
}

/// The congestion notification in the header at the start of `bytes` (RFC 3168, section 5): the two bits of the ECN
/// field. 0 where there is no IP header.
#[must_use]
#[inline]
pub fn ecn(bytes: &[u8]) -> u8 {
    match bytes {
        [first, class, ..] if first >> 4 == 4 => class & 0b11,
        // The traffic class spans two bytes.
        [first, second, ..] if first >> 4 == 6 => second >> 4 & 0b11,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_packets_are_read_and_wrong_lengths_refused() {
        let mut bytes = [0; 32];
        bytes[0] = 0x45;
        bytes[3] = 25;
        bytes[12..16].copy_from_slice(&[10, 0, 0, 1]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 2]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(packet.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(packet.len, 25);
        for len in [0, 19, 33, 255] {
            bytes[3] = len;
            assert_eq!(Packet::parse(&bytes), Err(DropReason::BadInnerPacket), "{len}");
        }
        assert_eq!(Packet::parse(&bytes[..19]), Err(DropReason::BadInnerPacket));
    }

    #[test]
    fn ipv6_packets_are_read_and_wrong_lengths_refused() {
        let mut bytes = [0; 64];
        bytes[0] = 0x60;
        bytes[5] = 10;
        bytes[8] = 0xfd;
        bytes[24] = 0xfe;
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.source, "fd00::".parse::<IpAddr>().unwrap());
        assert_eq!(packet.destination, "fe00::".parse::<IpAddr>().unwrap());
        assert_eq!(packet.len, 50);
        bytes[5] = 25;
        assert_eq!(Packet::parse(&bytes), Err(DropReason::BadInnerPacket));
        assert_eq!(Packet::parse(&bytes[..39]), Err(DropReason::BadInnerPacket));
    }

    #[test]
    fn versions_other_than_4_and_6_are_refused() {
        for first in (0..=255).filter(|first| ![4, 6].contains(&(first >> 4))) {
            assert_eq!(Packet::parse(&[first; 64]), Err(DropReason::BadInnerPacket));
        }
    }

    #[test]
    fn congestion_notification_is_read_in_both_families() {
        for ecn in 0..4 {
            assert_eq!(super::ecn(&[0x45, 0xb8 | ecn]), ecn);
            assert_eq!(super::ecn(&[0x6b, 0x8c | ecn << 4]), ecn);
        }
        for bytes in [&[][..], &[0x45], &[0x60], &[0x15, 3], &[0, 0x30]] {
            assert_eq!(super::ecn(bytes), 0);
        }
    }
}
