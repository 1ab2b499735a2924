//! How often other programs delete our rules: by that, a program that shows nothing else of itself is known.

use std::{collections::VecDeque, fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// What happened before is forgotten.
const WINDOW: Duration = Duration::from_secs(600);

/// Deletions that are remembered; a program that deletes faster than this fills the window is caught anyway.
const REMEMBERED: usize = 1024;

/// When our rules were found deleted by others. Times are durations since any fixed moment, and do not go back.
#[derive(Debug, Clone, Default)]
pub struct Removals {
    times: VecDeque<Duration>,
}

/// Our rules were deleted several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recurrence {
    /// How many times in the last ten minutes; at least twice.
    pub times: usize,
    /// The mean time from one deletion to the next, seconds.
    pub period: u64,
}

impl Removals {
    /// Notes that rules were found deleted.
    pub fn note(&mut self, now: Duration) {
        self.times.truncate(REMEMBERED - 1);
        self.times.push_front(now);
    }

    /// How often that happened lately; `None` when it did not happen twice.
    pub fn recurrence(&mut self, now: Duration) -> Option<Recurrence> {
        let oldest = now.saturating_sub(WINDOW);
        self.times.retain(|time| *time >= oldest);
        let (last, first) = (self.times.front()?, self.times.back()?);
        let intervals = u64::try_from(self.times.len() - 1).ok().filter(|intervals| *intervals > 0)?;
        let period = (*last).saturating_sub(*first).as_secs_f64() / intervals as f64;
        Some(Recurrence { times: self.times.len(), period: period.round() as u64 })
    }
}

impl fmt::Display for Recurrence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times in the last {} minutes, ", self.times, WINDOW.as_secs() / 60)?;
        match self.period {
            0 => f.write_str("more than once a second"),
            period => write!(f, "about every {period} s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_recurs_is_reported_with_its_period_and_forgotten_later() {
        let mut removals = Removals::default();
        assert_eq!(removals.recurrence(seconds(1000)), None);
        removals.note(seconds(1000));
        assert_eq!(removals.recurrence(seconds(1000)), None, "once is nothing");
        for time in [1090, 1181, 1270] {
            removals.note(seconds(time));
        }
        let recurrence = removals.recurrence(seconds(1280)).unwrap();
        assert_eq!(recurrence, Recurrence { times: 4, period: 90 });
        assert_eq!(recurrence.to_string(), "4 times in the last 10 minutes, about every 90 s");
        assert_eq!(removals.recurrence(seconds(1780)).unwrap().times, 2);
        assert_eq!(removals.recurrence(seconds(1900)), None);
    }

    #[test]
    fn a_program_that_deletes_all_the_time_costs_no_more_memory() {
        let mut removals = Removals::default();
        for time in 0..100_000 {
            removals.note(Duration::from_millis(time));
        }
        let recurrence = removals.recurrence(seconds(100)).unwrap();
        assert_eq!(recurrence, Recurrence { times: REMEMBERED, period: 0 });
        assert!(recurrence.to_string().ends_with("more than once a second"));
    }
}
