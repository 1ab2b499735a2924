//! IPv4 (RFC 791, section 3.1).

use std::ops::Range;

use super::{checksum::checksum, read_u16, write_u16};

/// The length of a header without options, in bytes.
pub(crate) const HEADER_LEN: usize = 20;

/// Offsets of fields in the header.
pub(crate) const TOTAL_LENGTH: usize = 2;
pub(crate) const IDENTIFICATION: usize = 4;
pub(crate) const CHECKSUM: usize = 10;
/// Source and destination.
pub(crate) const ADDRESSES: Range<usize> = 12..20;

/// The word that has the flags and the fragment offset, and its parts.
const FRAGMENT: usize = 6;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// The header at the start of a packet, without its options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'p>(&'p [u8; HEADER_LEN]);

impl<'p> Header<'p> {
    /// `None` when the packet is too short. The version is for the caller to check.
    #[inline]
    pub(crate) fn read(packet: &'p [u8]) -> Option<Self> {
        packet.first_chunk().map(Self)
    }

    /// The header's length with its options, in bytes, as it claims.
    #[inline]
    pub(crate) fn len(self) -> usize {
        usize::from(self.0[0] & 0x0f) * 4
    }

    /// The packet's length with the header, in bytes, as it claims.
    #[inline]
    pub(crate) fn total_len(self) -> usize {
        usize::from(read_u16(self.0, TOTAL_LENGTH))
    }

    #[inline]
    pub(crate) fn identification(self) -> u16 {
        read_u16(self.0, IDENTIFICATION)
    }

    #[inline]
    pub(crate) fn protocol(self) -> u8 {
        self.0[9]
    }

    /// Whether routers may not fragment the packet.
    #[inline]
    pub(crate) fn dont_fragment(self) -> bool {
        read_u16(self.0, FRAGMENT) & DONT_FRAGMENT != 0
    }

    /// Whether the packet is a fragment, the first one or a later one.
    #[inline]
    pub(crate) fn is_fragment(self) -> bool {
        read_u16(self.0, FRAGMENT) & (MORE_FRAGMENTS | OFFSET) != 0
    }

    /// Whether the packet is a fragment without the transport header.
    #[inline]
    pub(crate) fn is_later_fragment(self) -> bool {
        read_u16(self.0, FRAGMENT) & OFFSET != 0
    }
}

/// Makes a header without options for `payload` bytes. Its precedence is "internetwork control", as RFC 1812,
/// section 4.3.2.5, wants it for ICMP errors.
pub(crate) fn header(
    protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
    payload: usize,
) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&[0x45, 0xc0]);
    write_u16(&mut header, TOTAL_LENGTH, (HEADER_LEN + payload) as u16);
    header[8..10].copy_from_slice(&[64, protocol]);
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum = checksum(&[&header]);
    write_u16(&mut header, CHECKSUM, sum);
    header
}
