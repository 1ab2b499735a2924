//! The device's random generator, which forgets the secrets that it gave out.

use std::fmt;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use zeroize::Zeroizing;

/// A generator that expands a seed. It lies on the heap, so that moving a device leaves no copy of it behind.
pub(crate) struct Randomness(Box<ChaCha20Rng>);

impl Randomness {
    pub(crate) fn new(seed: &[u8; 32]) -> Self {
        Self(Box::new(ChaCha20Rng::from_seed(*seed)))
    }

    /// 32 bytes that cannot be had again: the generator takes a new seed from its own output and overwrites the old
    /// one ("fast key erasure"). Otherwise whoever reads this process's memory later could compute all ephemeral keys
    /// of the past, and with them all sessions.
    pub(crate) fn draw_secret(&mut self) -> Zeroizing<[u8; 32]> {
        let (mut secret, mut seed) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        self.0.fill_bytes(&mut *secret);
        self.0.fill_bytes(&mut *seed);
        *self.0 = ChaCha20Rng::from_seed(*seed);
        secret
    }

    /// Fills a buffer with bytes that need not be secret.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill_bytes(buffer);
    }

    /// A number that need not be secret.
    pub(crate) fn draw_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}

impl fmt::Debug for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Randomness").finish_non_exhaustive()
    }
}
