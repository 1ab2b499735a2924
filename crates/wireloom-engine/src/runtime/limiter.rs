//! Limits the rate of what strangers can cause.

use std::time::Duration;

use wireloom_proto::Instant;

/// Allows one thing in each interval, and bursts (the generic cell rate algorithm of ITU-T I.371).
#[derive(Debug)]
pub(crate) struct Limiter {
    interval: Duration,
    burst: u32,
    /// When a whole burst will be allowed again.
    full_at: Instant,
}

impl Limiter {
    /// A limiter that allows a burst of this many at once.
    pub(crate) fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst, full_at: Instant::from_origin(Duration::ZERO) }
    }

    /// Whether one more is allowed now. If so, it is counted.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now);
        if full_at.since(now) > self.interval * (self.burst - 1) {
            return false;
        }
        self.full_at = full_at + self.interval;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_in_each_interval() {
        let mut limiter = Limiter::new(Duration::from_millis(1), 250);
        let at = |millis: u64| Instant::from_origin(Duration::from_millis(5_000 + millis));
        let allowed =
            |limiter: &mut Limiter, millis| (0..1000).filter(|_| limiter.allows(at(millis))).count();
        assert_eq!(allowed(&mut limiter, 0), 250);
        assert_eq!(allowed(&mut limiter, 0), 0);
        assert_eq!(allowed(&mut limiter, 10), 10);
        assert_eq!(allowed(&mut limiter, 60_000), 250);
    }
}
