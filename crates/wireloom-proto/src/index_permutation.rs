//! The permutation that makes receiver indices look random.

use std::fmt;

use crate::randomness::Randomness;

/// A keyed permutation of the numbers of 32 bits: a Feistel network whose halves have 16 bits.
///
/// Receiver indices are on the wire in the clear. Were they the numbers that the tables count with, everyone on the way
/// could see how many sessions a device has. The round function is a hash of the multiply-shift kind (Dietzfelbinger
/// and others, 1997), a multiplication and an addition, because the data path inverts the permutation. This is no
/// cipher: who can begin very many sessions with the device may find the key, and learns their number.
#[derive(Clone, Copy)]
pub(crate) struct IndexPermutation([Round; ROUNDS]);

/// Four rounds make a pseudorandom permutation that may be asked for both directions (Luby and Rackoff, 1988).
const ROUNDS: usize = 4;

#[derive(Clone, Copy)]
struct Round {
    /// Odd.
    factor: u64,
    summand: u64,
}

impl IndexPermutation {
    pub(crate) fn draw(randomness: &mut Randomness) -> Self {
        Self(std::array::from_fn(|_| Round {
            factor: randomness.draw_u64() | 1,
            summand: randomness.draw_u64(),
        }))
    }

    /// The factor and the summand of each round, to be handed over.
    pub(crate) fn state(&self) -> [(u64, u64); ROUNDS] {
        self.0.map(|round| (round.factor, round.summand))
    }

    /// The permutation that was handed over.
    pub(crate) fn from_state(state: [(u64, u64); ROUNDS]) -> Self {
        Self(state.map(|(factor, summand)| Round { factor, summand }))
    }

    /// The index on the wire for a number of the tables.
    pub(crate) fn index(&self, number: u32) -> u32 {
        let mut halves = split(number);
        for round in &self.0 {
            halves = (halves.1, halves.0 ^ round.hash(halves.1));
        }
        join(halves)
    }

    /// The number of the tables for an index on the wire.
    pub(crate) fn number(&self, index: u32) -> u32 {
        let mut halves = split(index);
        for round in self.0.iter().rev() {
            halves = (halves.1 ^ round.hash(halves.0), halves.0);
        }
        join(halves)
    }
}

impl Round {
    /// The high bits, which depend on all bits of the half.
    fn hash(self, half: u16) -> u16 {
        (self.factor.wrapping_mul(u64::from(half)).wrapping_add(self.summand) >> 48) as u16
    }
}

fn split(number: u32) -> (u16, u16) {
    ((number >> 16) as u16, number as u16)
}

fn join((high, low): (u16, u16)) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

impl fmt::Debug for IndexPermutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexPermutation").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn permutation(seed: u8) -> IndexPermutation {
        IndexPermutation::draw(&mut Randomness::new(&[seed; 32]))
    }

    #[test]
    fn every_number_has_one_index() {
        for seed in 0..20 {
            let permutation = permutation(seed);
            let numbers = (0..2000_u32).flat_map(|number| [number, number << 22, number << 11, !number]);
            for number in numbers.chain([0, u32::MAX]) {
                assert_eq!(permutation.number(permutation.index(number)), number);
                assert_eq!(permutation.index(permutation.number(number)), number);
            }
        }
    }

    /// The indices of the first sessions of 64 devices: neither small nor in order, and not the same on two devices.
    #[test]
    fn indices_of_numbers_that_count_up_do_not_show_it() {
        let (mut first, mut ones, mut rising, mut low_bits) = (BTreeSet::new(), 0, 0, BTreeSet::new());
        for seed in 0..64 {
            let permutation = permutation(seed);
            let indices: Vec<u32> = (0..64).map(|number| permutation.index(number)).collect();
            first.insert(indices[0]);
            ones += indices.iter().map(|index| index.count_ones()).sum::<u32>();
            rising += indices.windows(2).filter(|pair| pair[0] < pair[1]).count();
            low_bits.extend(indices.iter().map(|index| index % 256));
        }
        assert_eq!(first.len(), 64);
        // Of 131,072 bits half are ones, with a standard deviation of 181; of 4,032 pairs half rise.
        assert!((64_000..67_072).contains(&ones), "{ones} ones");
        assert!((1_700..2_332).contains(&rising), "{rising} rising pairs");
        assert_eq!(low_bits.len(), 256);
    }
}
