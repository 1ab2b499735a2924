//! IPv6 (RFC 8200, section 3), and the ICMPv6 messages in it.

use std::ops::Range;

use super::{checksum::checksum, protocol::ICMPV6, read_u16, write_u16};

/// The header's length, in bytes.
pub(crate) const HEADER_LEN: usize = 40;

/// Offsets of fields in the header.
pub(crate) const PAYLOAD_LENGTH: usize = 4;
/// Source and destination.
pub(crate) const ADDRESSES: Range<usize> = 8..40;

/// The extension header of fragments (RFC 8200, section 4.5).
pub(crate) const FRAGMENT: u8 = 44;

/// The smallest MTU that a link may have, in bytes (RFC 8200, section 5).
pub(crate) const MTU_MIN: usize = 1280;

/// The header at the start of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'p>(&'p [u8; HEADER_LEN]);

impl<'p> Header<'p> {
    /// `None` when the packet is too short. The version is for the caller to check.
    #[inline]
    pub(crate) fn read(packet: &'p [u8]) -> Option<Self> {
        packet.first_chunk().map(Self)
    }

    /// The packet's length with the header, in bytes, as it claims.
    #[inline]
    pub(crate) fn total_len(self) -> usize {
        HEADER_LEN + usize::from(read_u16(self.0, PAYLOAD_LENGTH))
    }

    /// The protocol of whatever follows: a transport, or an extension header.
    #[inline]
    pub(crate) fn next_header(self) -> u8 {
        self.0[6]
    }
}

/// Makes a header for `payload` bytes of ICMPv6. Its hop limit of 255 proves to neighbour discovery that no router
/// forwarded the packet (RFC 4861, section 7.1).
pub(crate) fn icmpv6_header(source: [u8; 16], destination: [u8; 16], payload: usize) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = 0x60;
    write_u16(&mut header, PAYLOAD_LENGTH, payload as u16);
    header[6..8].copy_from_slice(&[ICMPV6, 255]);
    header[8..24].copy_from_slice(&source);
    header[24..].copy_from_slice(&destination);
    header
}

/// Fills in the checksum of the ICMPv6 message that follows this header (RFC 4443, section 2.3).
pub(crate) fn fill_icmpv6_checksum(header: &[u8; HEADER_LEN], message: &mut [u8]) {
    write_u16(message, 2, 0);
    let sum = icmpv6_checksum(header, message);
    write_u16(message, 2, sum);
}

/// The checksum over pseudo-header and message: 0 when the message has its right checksum already.
pub(crate) fn icmpv6_checksum(header: &[u8; HEADER_LEN], message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    checksum(&[&header[ADDRESSES], &len, &[0, 0, 0, ICMPV6], message])
}

/// What a packet carries behind any extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried<'p> {
    /// An ICMPv6 message of at least one byte, its type.
    Icmpv6(&'p [u8]),
    /// Something else, or a later fragment.
    Other,
    /// Nobody knows: the packet ends before that. A first fragment may be cut so (RFC 7112, section 5, has them
    /// discarded), and what it carries shows only when all fragments are put together.
    Cut,
}

/// The ICMPv6 message in a packet, behind any extension headers. `None` when the packet carries something else, or a
/// later fragment.
pub(crate) fn icmpv6(packet: &[u8]) -> Option<&[u8]> {
    match carried(packet) {
        Carried::Icmpv6(message) => Some(message),
        Carried::Other | Carried::Cut => None,
    }
}

/// What a packet carries.
pub(crate) fn carried(packet: &[u8]) -> Carried<'_> {
    match payload(packet) {
        Some((ICMPV6, message)) if !message.is_empty() => Carried::Icmpv6(message),
        Some((ICMPV6, _)) | None => Carried::Cut,
        Some(_) => Carried::Other,
    }
}

/// What is behind any extension headers: its protocol, and its bytes. That of a later fragment begins anywhere, so its
/// protocol is [`FRAGMENT`], and its bytes begin with that header. `None` when the packet ends before that.
#[inline]
pub(crate) fn payload(packet: &[u8]) -> Option<(u8, &[u8])> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let mut kind = Header::read(packet)?.next_header();
    let mut rest = packet.get(HEADER_LEN..)?;
    while [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION].contains(&kind) {
        let (next, len) = (*rest.first()?, usize::from(*rest.get(1)?));
        let len = match kind {
            // The offset is in the upper 13 bits.
            FRAGMENT if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) >> 3 != 0 => break,
            FRAGMENT => 8,
            AUTHENTICATION => 4 * (len + 2),
            _ => 8 * (len + 1),
        };
        (kind, rest) = (next, rest.get(len..)?);
    }
    Some((kind, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_icmpv6_message_is_found_behind_extension_headers() {
        let packet = |kind: u8, rest: &[u8]| {
            let mut header = icmpv6_header([1; 16], [2; 16], rest.len());
            header[6] = kind;
            [&header[..], rest].concat()
        };
        let message = [136, 0, 9, 9];
        let options = [&[ICMPV6, 0, 0, 0, 0, 0, 0, 0][..], &message].concat();
        let fragment = |offset: u8| [&[ICMPV6, 0, 0, offset << 3, 0, 0, 0, 0][..], &message].concat();
        assert_eq!(icmpv6(&packet(ICMPV6, &message)), Some(&message[..]));
        for kind in [0, 43, 60] {
            assert_eq!(icmpv6(&packet(kind, &options)), Some(&message[..]), "{kind}");
        }
        assert_eq!(icmpv6(&packet(44, &fragment(0))), Some(&message[..]));
        assert_eq!(icmpv6(&packet(44, &fragment(1))), None);
        assert_eq!(icmpv6(&packet(17, &message)), None);
        assert_eq!(carried(&packet(17, &[])), Carried::Other);
        assert_eq!(carried(&packet(44, &fragment(1))), Carried::Other);
        // Wherever the chain of headers is cut.
        for len in 0..8 {
            assert_eq!(carried(&packet(60, &options[..len])), Carried::Cut, "{len}");
            assert_eq!(carried(&packet(44, &fragment(0)[..len])), Carried::Cut, "{len}");
        }
        assert_eq!(carried(&packet(44, &fragment(0)[..8])), Carried::Cut, "the type is missing");
        assert_eq!(carried(&packet(ICMPV6, &[])), Carried::Cut);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = icmpv6(&bytes);
        }

        #[test]
        fn a_message_with_its_checksum_sums_to_zero(mut message in prop::collection::vec(any::<u8>(), 4..200)) {
            let header = icmpv6_header([3; 16], [4; 16], message.len());
            fill_icmpv6_checksum(&header, &mut message);
            prop_assert_eq!(icmpv6_checksum(&header, &message), 0);
        }
    }
}
