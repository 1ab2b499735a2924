//! The internet checksum (RFC 1071).

use super::{IPV4_HEADER, IPV6_HEADER};

/// A one's-complement sum that is not folded yet.
///
/// Words are added as the machine reads them, whatever its byte order: the sum is the same with its
/// bytes swapped (RFC 1071, section 2, B), and [`Self::fold`] swaps them back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`, the last of which is followed by a zero when their number is odd.
    pub fn of(bytes: &[u8]) -> Self {
        // Two sums of 32-bit halves, which the compiler turns into vectors of such sums. A packet has
        // fewer than 2^16 of them, so nothing overflows.
        let (words, rest) = bytes.as_chunks::<8>();
        let (mut low, mut high) = (0, 0);
        for word in words {
            let word = u64::from_ne_bytes(*word);
            low += word & u64::from(u32::MAX);
            high += word >> 32;
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let last = u64::from_ne_bytes(last);
        Self(low + high + (last & u64::from(u32::MAX)) + (last >> 32))
    }

    /// With the sum of something that follows at an even distance.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// With one number of 16 bits.
    pub fn and_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// With one number of 32 bits.
    pub fn and_u32(self, value: u32) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Without a number of 16 bits that is part of it.
    pub fn without_u16(self, value: u16) -> Self {
        self.and_u16(!value)
    }

    /// The sum in 16 bits. It is never 0 unless all that was added is.
    pub fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(sum as u16)
    }

    /// The checksum of what was added, whose checksum field was not, or was 0.
    pub fn complement(self) -> u16 {
        !self.fold()
    }

    /// The same for UDP, to which a 0 means that there is none: it is written as its equal 0xffff.
    pub fn udp_complement(self) -> u16 {
        match self.complement() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// Whether the sum of what contains its own checksum says that it is intact.
    pub fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The sum of the pseudo-header of TCP (RFC 9293, section 3.1) or UDP over the IP header at the start
/// of `packet`, which is whole; `len` is that of the transport header and what follows.
pub(super) fn pseudo_header(packet: &[u8], protocol: u8, len: usize) -> Sum {
    let addresses = match packet[0] >> 4 {
        4 => &packet[12..IPV4_HEADER],
        _ => &packet[8..IPV6_HEADER],
    };
    Sum::of(addresses).and_u16(protocol.into()).and_u32(len as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 4.1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn example_of_the_rfc() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of(&bytes).complement(), 0x220d);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        assert_eq!(Sum::of(&vec![0xff; 1 << 17]).fold(), 0xffff);
        assert_eq!(Sum::default().fold(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).complement(), 0);
        assert_eq!(Sum::of(&[0xff, 0xff]).udp_complement(), 0xffff);
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_sum(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), naive(&bytes));
        }

        #[test]
        fn is_the_sum_of_its_parts(
            bytes in prop::collection::vec(any::<u8>(), 4..200),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len()) & !1;
            let (head, tail) = bytes.split_at(cut);
            prop_assert_eq!(Sum::of(head).and(Sum::of(tail)).fold(), naive(&bytes));
            let word = u16::from_be_bytes([bytes[0], bytes[1]]);
            let rest = Sum::of(&bytes).without_u16(word);
            // Zero has two forms here.
            prop_assert_eq!(rest.fold() % 0xffff, naive(&bytes[2..]) % 0xffff);
            prop_assert_eq!(rest.and_u16(word).fold() % 0xffff, naive(&bytes) % 0xffff);
            let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            prop_assert_eq!(Sum::of(&bytes[4..]).and_u32(word).fold(), naive(&bytes));
        }
    }
}
