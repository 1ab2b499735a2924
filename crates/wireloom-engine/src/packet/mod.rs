//! Packet headers, one file per protocol: how to read them, and how to write the ones that we make ourselves.
//!
//! Whether a packet is IP at all, its addresses and its claimed length are read by [`wireloom_proto::inner`], which
//! the protocol needs itself. Everything else that the engine wants to know about a packet is read here.

pub mod checksum;
pub(crate) mod ecn;
pub mod ethernet;
pub(crate) mod flow;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod tcp;
pub(crate) mod udp;

use self::checksum::Sum;

/// The longest IP packet, in bytes: the length fields of IPv4 and IPv6 have 16 bits.
pub(crate) const MAX_PACKET: usize = 65_535;

/// IP protocol numbers (IANA, "Assigned Internet Protocol Numbers").
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const DCCP: u8 = 33;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const SCTP: u8 = 132;
}

/// The version of a packet's IP header: 4, 6, or anything else when it is no IP. `None` when the packet is empty.
pub(crate) fn ip_version(packet: &[u8]) -> Option<u8> {
    packet.first().map(|first| first >> 4)
}

/// The sum of the pseudo-header of TCP (RFC 9293, section 3.1) or UDP. `packet` has a whole IP header; `len` is the
/// length of the transport header and its payload, in bytes.
pub(crate) fn pseudo_header_sum(packet: &[u8], protocol: u8, len: usize) -> Sum {
    let addresses = match ip_version(packet) {
        Some(4) => &packet[ipv4::ADDRESSES],
        _ => &packet[ipv6::ADDRESSES],
    };
    Sum::of(addresses).and_u16(protocol.into()).and_u32(len as u32)
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub(crate) fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
