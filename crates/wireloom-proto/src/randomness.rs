//! The device's random generator, which forgets the secrets that it gave out.

use std::fmt;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

use crate::wiped_stack::on_wiped_stack;

/// The stream of the seed that numbers come from. Secrets come from the first stream, 0.
const NUMBERS: u64 = 1;

/// A generator that expands a seed.
pub(crate) struct Randomness {
    /// The seed of the next secret. It lies on the heap, so that moving a device leaves no copy of it behind.
    seed: Box<Zeroizing<[u8; 32]>>,
    numbers: ChaCha20Rng,
}

impl Randomness {
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        on_wiped_stack(|| {
            let mut stream = ChaCha20Rng::from_seed(*seed);
            stream.set_stream(NUMBERS);
            let numbers = ChaCha20Rng::from_rng(&mut stream);
            Self { seed: Box::new(Zeroizing::new(*seed)), numbers }
        })
    }

    /// 32 bytes that cannot be had again: the generator takes a new seed from its own output and overwrites the old
    /// one ("fast key erasure"). Otherwise whoever reads this process's memory later could compute all ephemeral keys
    /// of the past, and with them all sessions.
    pub(crate) fn draw_secret(&mut self) -> Zeroizing<[u8; 32]> {
        on_wiped_stack(|| {
            let mut stream = ChaCha20Rng::from_seed(**self.seed);
            let mut secret = Zeroizing::new([0; 32]);
            stream.fill_bytes(&mut *secret);
            stream.fill_bytes(&mut **self.seed);
            secret
        })
    }

    /// Fills a buffer with bytes that need not be secret.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        self.numbers.fill_bytes(buffer);
    }

    /// A number that need not be secret.
    pub(crate) fn draw_u64(&mut self) -> u64 {
        self.numbers.next_u64()
    }
}

impl fmt::Debug for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Randomness").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_follow_from_the_seed() {
        let mut generators = [Randomness::new(&[1; 32]), Randomness::new(&[1; 32])];
        // Numbers that are drawn between two secrets change neither.
        generators[0].draw_u64();
        let [first, second] =
            generators.map(|mut generator| [generator.draw_secret(), generator.draw_secret()]);
        assert_eq!(first, second);
        assert_ne!(first[0], first[1]);
        assert_ne!(Randomness::new(&[2; 32]).draw_secret(), first[0]);
    }
}
