//! Ethernet headers (IEEE 802.3, type interpretation), which go on and come off at the interface.

use std::net::IpAddr;

use wireloom_types::LinkAddress;

/// Length of an Ethernet header, in bytes.
pub(crate) const HEADER_LEN: usize = 14;

/// The types of payload that the link knows (IANA, "IEEE 802 numbers").
pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;

/// What stands before a frame's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) destination: LinkAddress,
    pub(crate) source: LinkAddress,
    /// Which protocol the payload is of.
    pub(crate) kind: u16,
}

impl Header {
    /// Parts a frame into header and payload; `None` when it is too short.
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

    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..6].copy_from_slice(&self.destination.to_bytes());
        bytes[6..12].copy_from_slice(&self.source.to_bytes());
        bytes[12..].copy_from_slice(&self.kind.to_be_bytes());
        bytes
    }

    /// The header of a packet to this address that came from a peer; `own` is the interface's.
    pub(crate) fn of_arrival(packet_to: IpAddr, peer: LinkAddress, own: LinkAddress) -> Self {
        let kind = if packet_to.is_ipv4() { IPV4 } else { IPV6 };
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
    fn packets_to_one_go_to_us_and_groups_to_their_own_addresses() {
        let (peer, own) = (LinkAddress::from_bytes([2; 6]), LinkAddress::from_bytes([6; 6]));
        for (to, destination) in [
            ("10.0.0.1", "06:06:06:06:06:06"),
            ("224.0.0.5", "01:00:5e:00:00:05"),
            ("239.129.2.3", "01:00:5e:01:02:03"),
            ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
            ("fd00::1", "06:06:06:06:06:06"),
            ("ff02::1:ff12:3456", "33:33:ff:12:34:56"),
        ] {
            let header = Header::of_arrival(to.parse().unwrap(), peer, own);
            assert_eq!(header.destination.to_string(), destination, "{to}");
            assert_eq!(header.source, peer);
            assert_eq!(header.kind, if to.contains(':') { IPV6 } else { IPV4 });
        }
    }

    proptest! {
        #[test]
        fn headers_read_back(frame in prop::collection::vec(any::<u8>(), 0..64)) {
            match Header::split(&frame) {
                Some((header, payload)) => {
                    prop_assert_eq!([&header.to_bytes()[..], payload].concat(), frame);
                }
                None => prop_assert!(frame.len() < HEADER_LEN),
            }
        }
    }
}
