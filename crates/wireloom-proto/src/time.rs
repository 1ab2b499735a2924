//! Time as the caller tells it: a monotonic clock for the timers, a wall clock for what peers see.

use std::ops::Add;
use std::time::Duration;

/// A reading of a monotonic clock: nanoseconds since an origin of the caller's choice.
///
/// Use a clock that goes on during suspend (`CLOCK_BOOTTIME` on Linux), as the kernel does:
/// sessions must age while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment this many nanoseconds after the origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The moment this long after the origin; saturates after 584 years.
    #[must_use]
    pub fn from_origin(elapsed: Duration) -> Self {
        Self(nanos(elapsed))
    }

    /// Nanoseconds since the origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of time.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

/// A duration in nanoseconds, saturating at 584 years.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A reading of the wall clock: the time since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(Duration);

impl UnixTime {
    /// The moment this long after the epoch.
    #[must_use]
    pub const fn from_epoch(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// The time since the epoch.
    #[must_use]
    pub const fn since_epoch(self) -> Duration {
        self.0
    }
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Drives every timer.
    pub monotonic: Instant,
    /// Goes into initiations as their timestamp and into the record of the last handshake.
    pub unix: UnixTime,
}

/// A TAI64N timestamp, as initiations carry it: 8 bytes of seconds and 4 of nanoseconds, big endian.
///
/// Responders accept an initiation only when its timestamp is greater than the last one they saw
/// from that peer (paper, section 5.1), so the order of the bytes is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tai64N([u8; Self::LEN]);

/// The label of 1970-01-01 00:00:10 TAI, which is the Unix epoch (<https://cr.yp.to/libtai/tai64.html>).
const TAI64_EPOCH: u64 = (1 << 62) + 10;

impl Tai64N {
    /// Length on the wire, in bytes.
    pub const LEN: usize = 12;

    /// Timestamps are cut to multiples of 2^24 ns (17 ms), so that they are no precise clock for
    /// onlookers; the kernel's `tai64n_now` does the same.
    const GRANULARITY: u32 = 1 << 24;

    /// A timestamp as received.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The timestamp for an initiation sent now. It is later than `last`, the one sent before,
    /// also when the wall clock was set back: the peer would refuse it otherwise.
    #[must_use]
    pub fn next(now: UnixTime, last: Option<Self>) -> Self {
        let elapsed = now.since_epoch();
        let current = Self::from_parts(
            TAI64_EPOCH.saturating_add(elapsed.as_secs()),
            elapsed.subsec_nanos() & !(Self::GRANULARITY - 1),
        );
        match last {
            Some(last) if current <= last => last.successor(),
            _ => current,
        }
    }

    fn from_parts(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    fn successor(self) -> Self {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3] = self.0;
        let seconds = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let nanos = u32::from_be_bytes([n0, n1, n2, n3]).saturating_add(Self::GRANULARITY);
        if nanos < 1_000_000_000 {
            Self::from_parts(seconds, nanos)
        } else {
            Self::from_parts(seconds.saturating_add(1), 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64, nanos: u32) -> UnixTime {
        UnixTime::from_epoch(Duration::new(secs, nanos))
    }

    #[test]
    fn tai64n_layout() {
        // 1970-01-01 00:00:00 UTC is 4000000000000000a in TAI64.
        let epoch = Tai64N::next(at(0, 0), None);
        assert_eq!(epoch.as_bytes(), b"\x40\0\0\0\0\0\0\x0a\0\0\0\0");
        // Cut to 2^24 ns: 0x0200_0001 ns becomes 0x0200_0000.
        let later = Tai64N::next(at(1, 0x0200_0001), None);
        assert_eq!(later.as_bytes(), b"\x40\0\0\0\0\0\0\x0b\x02\0\0\0");
    }

    #[test]
    fn timestamps_grow_when_the_wall_clock_stands_or_goes_back() {
        let mut last = Tai64N::next(at(1_700_000_000, 0), None);
        for _ in 0..200 {
            let next = Tai64N::next(at(1_600_000_000, 0), Some(last));
            assert!(next > last);
            last = next;
        }
        let ahead = Tai64N::next(at(1_800_000_000, 0), Some(last));
        assert_eq!(ahead, Tai64N::next(at(1_800_000_000, 0), None));
    }

    #[test]
    fn instants_saturate() {
        let end = Instant::from_nanos(u64::MAX);
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(Instant::from_nanos(1).since(end), Duration::ZERO);
    }
}
