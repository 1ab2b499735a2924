//! The internet checksum (RFC 1071).

/// A one's-complement sum that is not folded yet.
///
/// Words are added in the machine's byte order. The sum is the same with its bytes swapped (RFC 1071, section 2, B),
/// and [`Self::fold`] swaps them back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of at most 2^18 bytes. An odd number of bytes is padded with a zero.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        // Two sums of 32-bit halves, which the compiler vectorises. Each has at most 2^15 terms for the most bytes that
        // are allowed, so neither overflows.
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

    /// Adds the sum of bytes that are at an even distance from the first ones.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds a 16-bit number.
    #[must_use]
    pub fn and_u16(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Adds a 32-bit number.
    #[must_use]
    pub fn and_u32(self, value: u32) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Subtracts a 16-bit number that is part of the sum.
    #[must_use]
    pub fn without_u16(self, value: u16) -> Self {
        self.and_u16(!value)
    }

    /// The sum in 16 bits. It is 0 only if everything that was added is 0.
    #[must_use]
    pub fn fold(self) -> u16 {
        let sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        u16::from_be(sum as u16)
    }

    /// The checksum. The checksum field itself must have been 0, or left out.
    #[must_use]
    pub fn complement(self) -> u16 {
        !self.fold()
    }

    /// The checksum for UDP, where 0 means that there is none: 0xffff, its equal, is written instead.
    #[must_use]
    pub fn udp_complement(self) -> u16 {
        match self.complement() {
            0 => 0xffff,
            sum => sum,
        }
    }

    /// Whether bytes that contain their own checksum are intact.
    #[must_use]
    pub fn is_intact(self) -> bool {
        self.fold() == 0xffff
    }
}

/// The checksum of several pieces that stand one after the other. All but the last must have an even length.
pub(crate) fn checksum(pieces: &[&[u8]]) -> u16 {
    pieces.iter().fold(Sum::default(), |sum, piece| sum.and(Sum::of(piece))).complement()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The sum as RFC 1071, section 4.1, computes it, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc_has_the_sum_that_it_names() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of(&bytes).complement(), 0x220d);
        assert_eq!(checksum(&[&bytes]), 0x220d);
        assert_eq!(checksum(&[&bytes[..2], &bytes[2..]]), 0x220d);
        assert_eq!(checksum(&[&[0xab]]), !0xab00);
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
        fn the_sum_agrees_with_a_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), naive(&bytes));
        }

        #[test]
        fn the_sum_of_the_parts_is_the_sum_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 4..200),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len()) & !1;
            let (head, tail) = bytes.split_at(cut);
            prop_assert_eq!(Sum::of(head).and(Sum::of(tail)).fold(), naive(&bytes));
            let word = u16::from_be_bytes([bytes[0], bytes[1]]);
            let rest = Sum::of(&bytes).without_u16(word);
            // In one's complement, zero has two forms.
            prop_assert_eq!(rest.fold() % 0xffff, naive(&bytes[2..]) % 0xffff);
            prop_assert_eq!(rest.and_u16(word).fold() % 0xffff, naive(&bytes) % 0xffff);
            let word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            prop_assert_eq!(Sum::of(&bytes[4..]).and_u32(word).fold(), naive(&bytes));
        }
    }
}
