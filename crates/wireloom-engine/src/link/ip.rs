//! Enough of IP for answers on the link: the checksum, headers of our own, what a packet carries.

/// The IPv4 header without options (RFC 791), in bytes.
pub(super) const V4_HEADER: usize = 20;
/// The IPv6 header (RFC 8200), in bytes.
pub(super) const V6_HEADER: usize = 40;

/// Protocol numbers (IANA).
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// The internet checksum (RFC 1071) of these pieces one after the other; all but the last have an even
/// length.
pub(super) fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for piece in pieces {
        let (words, odd) = piece.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += odd.first().map_or(0, |last| u64::from(*last) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IPv4 header for `payload` bytes, with internetwork control precedence as RFC 1812, section 4.3.2.5
/// has it for ICMP errors.
pub(super) fn v4_header(
    protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
    payload: usize,
) -> [u8; V4_HEADER] {
    let mut header = [0; V4_HEADER];
    header[..2].copy_from_slice(&[0x45, 0xc0]);
    header[2..4].copy_from_slice(&((V4_HEADER + payload) as u16).to_be_bytes());
    header[8..10].copy_from_slice(&[64, protocol]);
    header[12..16].copy_from_slice(&source);
    header[16..].copy_from_slice(&destination);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// An IPv6 header for `payload` bytes of ICMPv6. The hop limit of 255 proves to neighbour discovery that
/// nobody forwarded the packet (RFC 4861, section 7.1).
pub(super) fn v6_header(source: [u8; 16], destination: [u8; 16], payload: usize) -> [u8; V6_HEADER] {
    let mut header = [0; V6_HEADER];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    header[6..8].copy_from_slice(&[ICMPV6, 255]);
    header[8..24].copy_from_slice(&source);
    header[24..].copy_from_slice(&destination);
    header
}

/// Fills in the checksum of the ICMPv6 message after this header (RFC 4443, section 2.3).
pub(super) fn sum_icmpv6(header: &[u8; V6_HEADER], message: &mut [u8]) {
    message[2..4].fill(0);
    let len = (message.len() as u32).to_be_bytes();
    let sum = checksum(&[&header[8..], &len, &[0, 0, 0, ICMPV6], message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// The ICMPv6 message in an IPv6 packet, behind whatever extension headers; `None` when it carries
/// something else, or a later fragment of something.
pub(super) fn icmpv6(packet: &[u8]) -> Option<&[u8]> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;

    let mut kind = *packet.get(6)?;
    let mut rest = packet.get(V6_HEADER..)?;
    while kind != ICMPV6 {
        let (next, len) = (*rest.first()?, usize::from(*rest.get(1)?));
        let len = match kind {
            HOP_BY_HOP | ROUTING | DESTINATION => 8 * (len + 1),
            AUTHENTICATION => 4 * (len + 2),
            // The offset is in the upper 13 bits.
            FRAGMENT if u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) >> 3 == 0 => 8,
            _ => return None,
        };
        (kind, rest) = (next, rest.get(len..)?);
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of RFC 1071, section 3, whose sum is ddf2.
    #[test]
    fn the_example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&[&bytes]), !0xddf2);
        assert_eq!(checksum(&[&bytes[..2], &bytes[2..]]), !0xddf2);
        assert_eq!(checksum(&[&[0xab]]), !0xab00);
    }

    #[test]
    fn icmpv6_is_found_behind_extension_headers() {
        let packet = |kind: u8, rest: &[u8]| {
            let mut header = v6_header([1; 16], [2; 16], rest.len());
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
        assert_eq!(icmpv6(&packet(60, &options[..1])), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = icmpv6(&bytes);
        }

        /// Whoever sums a packet with its checksum gets nothing.
        #[test]
        fn a_message_sums_to_zero(mut message in prop::collection::vec(any::<u8>(), 4..200)) {
            let header = v6_header([3; 16], [4; 16], message.len());
            sum_icmpv6(&header, &mut message);
            let len = (message.len() as u32).to_be_bytes();
            prop_assert_eq!(checksum(&[&header[8..], &len, &[0, 0, 0, ICMPV6], &message]), 0);
        }
    }
}
