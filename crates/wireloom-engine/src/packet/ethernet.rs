//! Ethernet headers (IEEE 802.3, type interpretation).

use std::net::IpAddr;

use wireloom_types::LinkAddress;

/// The header's length, in bytes.
pub const HEADER_LEN: usize = 14;

/// A header as it stands before the packet: destination, source, type.
pub type HeaderBytes = [u8; HEADER_LEN];

/// Types of payload (IANA, "IEEE 802 Numbers").
pub(crate) mod kind {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// The fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) destination: LinkAddress,
    pub(crate) source: LinkAddress,
    /// The protocol of the payload, one of [`kind`] or another.
    pub(crate) kind: u16,
}

impl Header {
    /// Splits a frame into header and payload. `None` when it is too short.
    pub(crate) fn split(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = frame.split_first_chunk::<HEADER_LEN>()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, k0, k1] = *header;
        let header = Self {
            destination: LinkAddress::from_bytes([d0, d1, d2, d3, d4, d5]),
            source: LinkAddress::from_bytes([s0, s1, s2, s3, s4, s5]),
            kind: u16::from_be_bytes([k0, k1]),
        };
        Some((header, payload))
    }

    pub(crate) fn to_bytes(self) -> HeaderBytes {
        let mut bytes = [0; HEADER_LEN];
        bytes[..6].copy_from_slice(&self.destination.to_bytes());
        bytes[6..12].copy_from_slice(&self.source.to_bytes());
        bytes[12..].copy_from_slice(&self.kind.to_be_bytes());
        bytes
    }

    /// The header for a packet that a peer sent to the address `packet_to`. `own` is the interface's link address.
    pub(crate) fn inbound(packet_to: IpAddr, peer: LinkAddress, own: LinkAddress) -> Self {
        let kind = if packet_to.is_ipv4() { kind::IPV4 } else { kind::IPV6 };
        Self { destination: group(packet_to).unwrap_or(own), source: peer, kind }
    }
}

/// The link address of a multicast (RFC 1112, section 6.4; RFC 2464, section 7) or broadcast address.
fn group(address: IpAddr) -> Option<LinkAddress> {
    match address {
        IpAddr::V4(address) if address.is_multicast() => {
            let [_, b, c, d] = address.octets();
            Some(LinkAddress::from_bytes([1, 0, 0x5e, b & 0x7f, c, d]))
        }
        IpAddr::V4(address) if address.is_broadcast() => Some(LinkAddress::BROADCAST),
        IpAddr::V6(address) if address.is_multicast() => {
            let [.., a, b, c, d] = address.octets();
            Some(LinkAddress::from_bytes([0x33, 0x33, a, b, c, d]))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn unicast_packets_go_to_the_interface_and_multicast_packets_to_the_address_of_their_group() {
        let (peer, own) = (LinkAddress::from_bytes([2; 6]), LinkAddress::from_bytes([6; 6]));
        for (to, destination) in [
            ("10.0.0.1", "06:06:06:06:06:06"),
            ("224.0.0.5", "01:00:5e:00:00:05"),
            ("239.129.2.3", "01:00:5e:01:02:03"),
            ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
            ("fd00::1", "06:06:06:06:06:06"),
            ("ff02::1:ff12:3456", "33:33:ff:12:34:56"),
        ] {
            let header = Header::inbound(to.parse().unwrap(), peer, own);
            assert_eq!(header.destination.to_string(), destination, "{to}");
            assert_eq!(header.source, peer);
            assert_eq!(header.kind, if to.contains(':') { kind::IPV6 } else { kind::IPV4 });
        }
    }

    proptest! {
        #[test]
        fn a_header_that_is_read_and_written_again_is_unchanged(frame in prop::collection::vec(any::<u8>(), 0..64)) {
            match Header::split(&frame) {
                Some((header, payload)) => {
                    prop_assert_eq!([&header.to_bytes()[..], payload].concat(), frame);
                }
                None => prop_assert!(frame.len() < HEADER_LEN),
            }
        }
    }
}
