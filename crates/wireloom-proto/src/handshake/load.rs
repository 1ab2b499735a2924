//! When handshakes come too fast: whether the device is under load, and how much one source may then
//! ask for.

use crate::limits::{LOAD_INTERVAL, LOAD_LINGERS, LOAD_THRESHOLD, LOAD_THRESHOLD_BEHIND};
use crate::time::Instant;

/// Counts handshake messages and tells whether there are too many: for any processor, or for this one.
#[derive(Debug, Default)]
pub(crate) struct LoadGauge {
    interval_began: Option<Instant>,
    arrivals: u32,
    /// Since when there has been more to handle at every look.
    behind_since: Option<Instant>,
    loaded_until: Option<Instant>,
}

impl LoadGauge {
    /// Counts one message that is worth an answer.
    pub(crate) fn count(&mut self, now: Instant) {
        let fresh = self.interval_began.is_some_and(|began| now.since(began) < LOAD_INTERVAL);
        if !fresh {
            self.interval_began = Some(now);
            self.arrivals = 0;
        }
        self.arrivals += 1;
        let behind = self.behind_since.is_some_and(|since| now.since(since) >= LOAD_INTERVAL);
        if self.arrivals > if behind { LOAD_THRESHOLD_BEHIND } else { LOAD_THRESHOLD } {
            self.loaded_until = Some(now + LOAD_LINGERS);
        }
    }

    /// Whether something waits that arrived before now and is not handled yet.
    pub(crate) fn note_backlog(&mut self, now: Instant, waits: bool) {
        self.behind_since = waits.then(|| self.behind_since.unwrap_or(now));
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
    fn load_begins_above_the_threshold_and_lingers() {
        let mut gauge = LoadGauge::default();
        (0..LOAD_THRESHOLD).for_each(|_| gauge.count(at(0)));
        assert!(!gauge.is_under_load(at(0)));
        gauge.count(at(249));
        assert!(gauge.is_under_load(at(249)));
        assert!(gauge.is_under_load(at(1248)));
        assert!(!gauge.is_under_load(at(1249)));
    }

    #[test]
    fn a_steady_trickle_is_no_load() {
        let mut gauge = LoadGauge::default();
        for millis in 0..10_000 {
            gauge.count(at(millis));
            assert!(!gauge.is_under_load(at(millis)));
        }
    }

    /// A processor that takes 8 milliseconds for one message, and looks at the queue after each 8.
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
    fn who_stays_behind_is_under_load_by_fewer() {
        // Behind since 0 ms; at 256 ms that is long enough, and at 320 ms the 17th of an interval comes.
        assert_eq!(slow(1000, |_| true), Some(8 * 6));
        assert_eq!(slow(1000, |turn| turn % 4 != 3), None, "caught up now and then");
        assert_eq!(slow(1000, |_| false), None);
    }

    #[test]
    fn who_is_behind_with_data_bears_a_few_handshakes() {
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
