//! The rate limiter: how many handshake messages of one source are answered under load.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::limits::{ANSWERS_BURST, ANSWERS_PER_SECOND};
use crate::time::{Instant, nanos};

/// A token bucket per source. A source is an IPv4 address or an IPv6 /64.
#[derive(Debug, Default)]
pub(crate) struct RateLimiter {
    buckets: BTreeMap<Source, Bucket>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6(u64),
}

/// A token bucket whose tokens are nanoseconds, so that it fills with time.
#[derive(Debug)]
struct Bucket {
    tokens: u64,
    filled: Instant,
}

const TOKENS_PER_MESSAGE: u64 = 1_000_000_000 / ANSWERS_PER_SECOND;
const TOKENS_MAX: u64 = TOKENS_PER_MESSAGE * ANSWERS_BURST;
/// After this time without a message a bucket is full, so it need not be kept.
const FULL_AFTER: Duration = Duration::from_secs(1);
/// The most sources with a bucket, which bounds the memory. The kernel bounds its table too (`max_entries` in
/// `ratelimiter.c`).
const SOURCES_MAX: usize = 1 << 16;

impl RateLimiter {
    /// Whether a message of this source may be answered now.
    pub(crate) fn allows(&mut self, now: Instant, from: IpAddr) -> bool {
        self.sweep(now);
        let source = Source::of(from);
        let room = self.buckets.len() < SOURCES_MAX;
        if !room && !self.buckets.contains_key(&source) {
            return false;
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { tokens: TOKENS_MAX, filled: now });
        let grown = bucket.tokens.saturating_add(nanos(now.since(bucket.filled)));
        bucket.tokens = grown.min(TOKENS_MAX);
        bucket.filled = now;
        let allowed = bucket.tokens >= TOKENS_PER_MESSAGE;
        if allowed {
            bucket.tokens -= TOKENS_PER_MESSAGE;
        }
        allowed
    }

    /// Removes full buckets, at most once per [`FULL_AFTER`].
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|at| now.since(at) < FULL_AFTER) {
            return;
        }
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| now.since(bucket.filled) < FULL_AFTER);
    }
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(millis))
    }

    #[test]
    fn each_source_has_its_own_bucket() {
        let mut limiter = RateLimiter::default();
        let mut allowed = |millis, source: &str| {
            let source = source.parse().unwrap();
            (0..10).filter(|_| limiter.allows(at(millis), source)).count()
        };
        assert_eq!(allowed(0, "192.0.2.1"), 5);
        assert_eq!(allowed(0, "192.0.2.2"), 5);
        assert_eq!(allowed(0, "2001:db8::1"), 5);
        assert_eq!(allowed(0, "2001:db8::2"), 0, "the same /64");
        assert_eq!(allowed(0, "2001:db8:0:1::1"), 5);
        assert_eq!(allowed(49, "192.0.2.1"), 0);
        assert_eq!(allowed(50, "192.0.2.1"), 1);
        assert_eq!(allowed(5000, "192.0.2.1"), 5);
    }

    #[test]
    fn the_number_of_buckets_is_bounded_and_full_ones_are_removed() {
        let mut limiter = RateLimiter::default();
        let source = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        assert!((0..SOURCES_MAX).all(|number| limiter.allows(at(0), source(number))));
        assert!(!limiter.allows(at(0), source(SOURCES_MAX)));
        assert!(limiter.allows(at(0), source(0)), "it has a bucket already");
        assert!(limiter.allows(at(1000), source(SOURCES_MAX)));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
