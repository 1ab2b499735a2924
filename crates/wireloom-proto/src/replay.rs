//! The replay window: which counters of a session were seen (RFC 6479).

/// A counter this far behind the greatest one seen is still accepted, if it is new. The kernel's
/// bitmap has the same 8,192 bits (`COUNTER_BITS_TOTAL`).
pub(crate) const WINDOW: u64 = 8192;

const WORD_BITS: u64 = u64::BITS as u64;
/// One word more than the window, because the word of the greatest counter is partly in the future.
const WORDS: u64 = WINDOW / WORD_BITS + 1;

/// A ring of bits, one for each counter of the window. A word is cleared when the window moves into
/// it, so no bit is ever shifted.
pub(crate) struct ReplayWindow {
    /// One more than the greatest counter seen.
    next: u64,
    seen: [u64; WORDS as usize],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, seen: [0; WORDS as usize] }
    }
}

impl ReplayWindow {
    /// Marks a counter as seen, if it is new and not behind the window. Call it only for messages
    /// that proved authentic: forgeries must not move the window.
    #[must_use]
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        if counter == u64::MAX || counter.saturating_add(WINDOW) < self.next {
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

    /// Makes `counter` the greatest one seen and clears the words that the window moves into.
    fn advance_to(&mut self, counter: u64) {
        let target = counter / WORD_BITS;
        // Before anything was seen there is nothing to clear, and no word that is in use.
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
