//! Segmentation offload: what the network stack hands over, and takes, in one piece instead of fifty.
//!
//! With a virtio-net header on each packet ([`virtio`]) the kernel leaves to us what a network card
//! would do for it, and the way through the stack is paid for once per *super-packet* of up to 64 KB:
//!
//! * [`segment`] cuts a super-packet into the packets that go over the tunnel;
//! * [`coalesce`] joins packets that came out of it into super-packets again;
//! * [`checksum`] is the sum that both have to get right.
//!
//! All three are pure: bytes in, bytes out, without allocation. Packets may be preceded by a
//! link-layer header ([`LinkHeader`]), as a TAP interface has it; the offsets in virtio-net headers
//! count it, and the tunnel does not carry it.

pub mod checksum;
pub mod coalesce;
pub mod segment;
pub mod virtio;

#[cfg(test)]
pub(crate) mod tests;

/// An Ethernet header: destination, source, type.
pub type LinkHeader = [u8; 14];

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The shortest IPv4 header (RFC 791, section 3.1), which is one without options.
const IPV4_HEADER: usize = 20;
/// The IPv6 header (RFC 8200, section 3).
const IPV6_HEADER: usize = 40;
/// The shortest TCP header (RFC 9293, section 3.1).
const TCP_HEADER: usize = 20;
/// The UDP header (RFC 768).
const UDP_HEADER: usize = 8;

/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// The flags of a TCP header's byte 13.
mod flag {
    pub(super) const FIN: u8 = 0x01;
    pub(super) const PSH: u8 = 0x08;
    pub(super) const ACK: u8 = 0x10;
    pub(super) const CWR: u8 = 0x80;
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
