//! How soon a device that has ended is started again.

use std::time::Duration;

/// The pause after the second end in a row. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. The kubelet's, which would follow if this process ended too, grows to 5 minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A device that ended sooner after its start makes the pause longer.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// After one that lived as long, everything begins anew.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// How often a device has ended in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    /// Counts the end of a device that has lived so long. Returns the pause before the next start; the first has none.
    pub(super) fn pause(&mut self, life: Duration) -> Duration {
        if life >= LONG_LIFE {
            self.0 = 0;
        }
        let pause = match self.0 {
            0 => Duration::ZERO,
            ends => FIRST_PAUSE.saturating_mul(1 << (ends - 1).min(10)).min(LONGEST_PAUSE),
        };
        if self.0 == 0 || life < SHORT_LIFE {
            self.0 = self.0.saturating_add(1);
        }
        pause
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_is_at_once_and_the_pauses_double_up_to_5_s() {
        let mut backoff = Backoff::default();
        let lives = |backoff: &mut Backoff, millis: &[u64]| -> Vec<u128> {
            millis.iter().map(|life| backoff.pause(Duration::from_millis(*life)).as_millis()).collect()
        };
        assert_eq!(lives(&mut backoff, &[3_600_000, 50, 50, 999]), [0, 100, 200, 400]);
        assert_eq!(lives(&mut backoff, &[1_000, 9_999]), [800, 800], "it was not short, and not long");
        assert_eq!(lives(&mut backoff, &[1, 1, 1, 1, 1]), [800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(lives(&mut backoff, &[10_000, 10_000, 1]), [0, 0, 100]);
        backoff.reset();
        assert_eq!(lives(&mut backoff, &[1, 1]), [0, 100]);
        let many = vec![1; 100];
        assert_eq!(lives(&mut backoff, &many).last(), Some(&5_000));
    }
}
