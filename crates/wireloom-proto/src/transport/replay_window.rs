//! The replay window: which counters of a session were received (RFC 6479).

use crate::handover::WindowState;

const WORD_BITS: u64 = u64::BITS as u64;
/// The bitmap has 8,192 bits, as the kernel's has (`COUNTER_BITS_TOTAL`).
const WORDS: u64 = 8192 / WORD_BITS;

/// The size of the window, in counters: one that is at most this far behind the greatest one is accepted if it is new.
/// It is 8,128, as in the kernel (`COUNTER_WINDOW_SIZE`, `counter_validate`): one word less than the bitmap, because
/// the word of the greatest counter may have just begun.
pub(crate) const WINDOW: u64 = (WORDS - 1) * WORD_BITS;

/// A ring of bits, one per counter of the window. A word is cleared when the window moves into it, so no bit is ever
/// shifted.
pub(crate) struct ReplayWindow {
    /// One more than the greatest counter received; 0 before the first.
    next: u64,
    seen: [u64; WORDS as usize],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS as usize] }
    }
}

impl ReplayWindow {
    /// The window, to be handed over.
    pub(crate) fn state(&self) -> WindowState {
        WindowState { next: self.next, seen: self.seen.into() }
    }

    /// The window that was handed over. `None` when its bitmap has another size.
    pub(crate) fn from_state(state: &WindowState) -> Option<Self> {
        let seen = state.seen.as_slice().try_into().ok()?;
        Some(Self { next: state.next, seen })
    }

    /// Marks a counter as received. Returns whether it was new and not behind the window. Call this for authentic
    /// messages only: forgeries must not move the window.
    #[must_use]
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter == u64::MAX || counter.saturating_add(WINDOW + 1) < self.next {
            return false;
        }
        if counter >= self.next {
            self.advance_to(counter);
        }
        let bit = 1 << (counter % WORD_BITS);
        let word = &mut self.seen[slot(counter / WORD_BITS)];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Makes `counter` the greatest one, and clears the words that the window moves into.
    fn advance_to(&mut self, counter: u64) {
        let target = counter / WORD_BITS;
        // Before the first counter, all words are clear.
        if let Some(greatest) = self.next.checked_sub(1) {
            let current = greatest / WORD_BITS;
            for word in current + 1..=target.min(current + WORDS) {
                self.seen[slot(word)] = 0;
            }
        }
        self.next = counter + 1;
    }
}

fn slot(word: u64) -> usize {
    (word % WORDS) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// All counters that were ever accepted.
    #[derive(Default)]
    struct Model(BTreeSet<u64>);

    impl Model {
        fn accept(&mut self, counter: u64) -> bool {
            let behind = self.0.last().is_some_and(|last| counter + WINDOW < *last);
            !behind && self.0.insert(counter)
        }
    }

    /// Random walks, forward and back, with steps around the sizes of a word and of the window.
    fn counters() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            4 => -70..70_i64,
            2 => -(WINDOW as i64 + 70)..(WINDOW as i64 + 70),
            1 => prop::sample::select(vec![
                WINDOW as i64, -(WINDOW as i64), WINDOW as i64 - 1, 1 - WINDOW as i64,
                WINDOW as i64 + 1, WINDOW as i64 + 64, WINDOW as i64 + 65, 100_000,
            ]),
        ];
        proptest::collection::vec(step, 1..400).prop_map(|steps| {
            let mut at = 0_u64;
            let walk = steps.into_iter().map(|step| {
                at = at.saturating_add_signed(step);
                at
            });
            walk.collect()
        })
    }

    proptest! {
        #[test]
        fn window_and_model_accept_the_same_counters(counters in counters()) {
            let (mut window, mut model) = (ReplayWindow::default(), Model::default());
            for counter in counters {
                prop_assert_eq!(window.accept(counter), model.accept(counter), "{}", counter);
            }
        }
    }

    #[test]
    fn counters_in_order_are_accepted_once() {
        let mut window = ReplayWindow::default();
        for counter in 0..3 * WINDOW {
            assert!(window.accept(counter));
            assert!(!window.accept(counter));
        }
    }

    #[test]
    fn counters_in_reverse_are_accepted_back_to_the_end_of_the_window() {
        let mut window = ReplayWindow::default();
        let last = 5 * WINDOW + 17;
        assert_eq!(WINDOW, 8128, "the kernel's");
        for counter in (last - WINDOW..=last).rev() {
            assert!(window.accept(counter), "{counter}");
        }
        assert!(!window.accept(last - WINDOW - 1));
        assert!((last - WINDOW - 1..=last).all(|counter| !window.accept(counter)));
    }

    #[test]
    fn a_jump_ahead_moves_the_whole_window() {
        let mut window = ReplayWindow::default();
        assert!((0..WINDOW).all(|counter| window.accept(counter)));
        let far = u64::MAX - WINDOW;
        assert!(window.accept(far));
        assert!(!window.accept(WINDOW));
        assert!(!window.accept(far - WINDOW - 1));
        assert!((far - WINDOW..far).all(|counter| window.accept(counter)));
    }
}
