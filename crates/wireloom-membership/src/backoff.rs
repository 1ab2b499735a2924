//! How long to wait before the next attempt: longer each time, and spread, so that the agents of a fleet do not come
//! back all at once.

use std::time::Duration;

/// Waits that double from a shortest to a longest one.
#[derive(Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    /// How many waits there have been since the last success.
    times: u32,
    /// The state of the generator that spreads them.
    seed: u64,
}

impl Backoff {
    /// Agents with different seeds wait differently.
    pub(crate) fn new(shortest: Duration, longest: Duration, seed: u64) -> Self {
        Self { shortest, longest, times: 0, seed }
    }

    /// The next wait: between half of what it is its turn to be, and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let turn = self.shortest.saturating_mul(1 << self.times.min(20)).min(self.longest);
        self.times = self.times.saturating_add(1);
        self.spread(turn)
    }

    /// Between half of this time and all of it.
    pub(crate) fn spread(&mut self, time: Duration) -> Duration {
        time.mul_f64(0.5 + self.random() / 2.0)
    }

    /// Starts with the shortest wait again.
    pub(crate) fn reset(&mut self) {
        self.times = 0;
    }

    /// A number from 0 to 1. The generator is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    /// Generators, 2014).
    fn random(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_differ_between_seeds() {
        let second = Duration::from_secs(1);
        let waits = |seed| {
            let mut backoff = Backoff::new(second, 30 * second, seed);
            (0..40).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        for (times, wait) in waits(7).into_iter().enumerate() {
            let turn = (second * (1 << times.min(10))).min(30 * second);
            assert!(wait >= turn / 2 && wait <= turn, "wait {times}: {wait:?}");
        }
        assert_ne!(waits(7), waits(8));
    }

    #[test]
    fn a_success_starts_anew() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 30 * second, 1);
        for _ in 0..5 {
            backoff.next();
        }
        backoff.reset();
        assert!(backoff.next() <= second);
    }
}
