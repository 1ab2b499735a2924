//! Load: whether so many handshakes arrive that the device must demand cookies.

use crate::limits::{LOAD_DURATION, LOAD_INTERVAL, LOAD_THRESHOLD, LOAD_THRESHOLD_BACKLOG};
use crate::time::Instant;

/// Counts handshake messages, and tells whether the device is under load.
#[derive(Debug, Default)]
pub(crate) struct LoadGauge {
    interval_began: Option<Instant>,
    arrivals: u32,
    /// Since when datagrams have been waiting after every round of handling.
    backlog_since: Option<Instant>,
    loaded_until: Option<Instant>,
}

impl LoadGauge {
    /// Counts a handshake message with a valid MAC1.
    pub(crate) fn count(&mut self, now: Instant) {
        let fresh = self.interval_began.is_some_and(|began| now.since(began) < LOAD_INTERVAL);
        if !fresh {
            self.interval_began = Some(now);
            self.arrivals = 0;
        }
        self.arrivals += 1;
        let has_backlog = self.backlog_since.is_some_and(|since| now.since(since) >= LOAD_INTERVAL);
        if self.arrivals > if has_backlog { LOAD_THRESHOLD_BACKLOG } else { LOAD_THRESHOLD } {
            self.loaded_until = Some(now + LOAD_DURATION);
        }
    }

    /// Takes note of whether datagrams wait after a round of handling them.
    pub(crate) fn note_backlog(&mut self, now: Instant, more_wait: bool) {
        self.backlog_since = more_wait.then(|| self.backlog_since.unwrap_or(now));
    }

    pub(crate) fn is_under_load(&self, now: Instant) -> bool {
        self.loaded_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn load_begins_above_the_threshold_and_lasts_for_a_second() {
        let mut gauge = LoadGauge::default();
        (0..LOAD_THRESHOLD).for_each(|_| gauge.count(at(0)));
        assert!(!gauge.is_under_load(at(0)));
        gauge.count(at(249));
        assert!(gauge.is_under_load(at(249)));
        assert!(gauge.is_under_load(at(1248)));
        assert!(!gauge.is_under_load(at(1249)));
    }

    #[test]
    fn a_thousand_handshakes_per_second_are_no_load() {
        let mut gauge = LoadGauge::default();
        for millis in 0..10_000 {
            gauge.count(at(millis));
            assert!(!gauge.is_under_load(at(millis)));
        }
    }

    /// A processor that takes 8 ms per message, and handles 8 per round. `waits` tells whether more wait after a round.
    /// Returns the number of messages after which it is under load.
    fn slow(messages: u64, waits: impl Fn(u64) -> bool) -> Option<u64> {
        let mut gauge = LoadGauge::default();
        (0..messages).find(|message| {
            let now = at(message / 8 * 64);
            gauge.count(now);
            if message % 8 == 7 {
                gauge.note_backlog(now, waits(message / 8));
            }
            gauge.is_under_load(now)
        })
    }

    #[test]
    fn a_lasting_backlog_lowers_the_threshold() {
        // The backlog lasts since 0 ms, which is long enough at 256 ms. At 320 ms, the 17th message of an interval
        // comes.
        assert_eq!(slow(1000, |_| true), Some(8 * 6));
        assert_eq!(slow(1000, |round| round % 4 != 3), None, "no backlog after every fourth round");
        assert_eq!(slow(1000, |_| false), None);
    }

    #[test]
    fn a_few_handshakes_among_a_backlog_of_data_are_no_load() {
        let mut gauge = LoadGauge::default();
        for millis in 0..10_000 {
            gauge.note_backlog(at(millis), true);
            if millis % 16 == 0 {
                gauge.count(at(millis));
            }
            assert!(!gauge.is_under_load(at(millis)));
        }
    }
}
