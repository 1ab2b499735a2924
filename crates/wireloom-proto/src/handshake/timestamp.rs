//! The timestamps of initiations, which refuse replays.

use crate::drop_reason::DropReason;
use crate::limits::INITIATION_INTERVAL_MIN;
use crate::message::TIMESTAMP_LEN;
use crate::time::{Instant, UnixTime};

/// The TAI64N timestamp of an initiation: 8 bytes of seconds and 4 bytes of nanoseconds, big endian.
///
/// A responder accepts an initiation only if its timestamp is greater than the peer's last one (paper, section 5.1).
/// The order of the bytes is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tai64N([u8; Self::LEN]);

/// The label of 1970-01-01 00:00:10 TAI, which is the Unix epoch (<https://cr.yp.to/libtai/tai64.html>).
const TAI64_EPOCH: u64 = (1 << 62) + 10;

impl Tai64N {
    /// Length on the wire, in bytes.
    pub(crate) const LEN: usize = TIMESTAMP_LEN;

    /// Timestamps are rounded down to multiples of 2^24 ns (17 ms), so that they do not disclose a precise clock. The
    /// kernel's `tai64n_now` does the same.
    const GRANULARITY: u32 = 1 << 24;

    /// The timestamp with these bytes.
    #[must_use]
    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    #[must_use]
    pub(crate) const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The timestamp of an initiation that is sent now. It is later than `last`, the previous one, even if the wall
    /// clock was set back: otherwise the peer would refuse it.
    #[must_use]
    pub(crate) fn next(now: UnixTime, last: Option<Self>) -> Self {
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

/// Decides which of a peer's initiations are answered.
#[derive(Debug, Default)]
pub(crate) struct InitiationFilter {
    greatest: Option<Tai64N>,
    /// When the last one passed.
    last: Option<Instant>,
}

impl InitiationFilter {
    /// Lets an authentic initiation pass if its timestamp is greater than all before, and if the last one passed at
    /// least [`INITIATION_INTERVAL_MIN`] ago.
    pub(crate) fn pass(&mut self, now: Instant, timestamp: Tai64N) -> Result<(), DropReason> {
        if self.greatest.is_some_and(|greatest| timestamp <= greatest) {
            return Err(DropReason::StaleTimestamp);
        }
        if self.last.is_some_and(|last| now.since(last) < INITIATION_INTERVAL_MIN) {
            return Err(DropReason::InitiationFlood);
        }
        self.greatest = Some(timestamp);
        self.last = Some(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(secs: u64, nanos: u32) -> UnixTime {
        UnixTime::from_epoch(Duration::new(secs, nanos))
    }

    #[test]
    fn timestamps_have_the_tai64n_layout() {
        // 1970-01-01 00:00:00 UTC is 4000000000000000a in TAI64.
        let epoch = Tai64N::next(at(0, 0), None);
        assert_eq!(epoch.as_bytes(), b"\x40\0\0\0\0\0\0\x0a\0\0\0\0");
        // Rounded down to a multiple of 2^24 ns: 0x0200_0001 ns becomes 0x0200_0000.
        let later = Tai64N::next(at(1, 0x0200_0001), None);
        assert_eq!(later.as_bytes(), b"\x40\0\0\0\0\0\0\x0b\x02\0\0\0");
    }

    #[test]
    fn timestamps_grow_even_if_the_wall_clock_is_set_back() {
        let mut last = Tai64N::next(at(1_700_000_000, 0), None);
        for _ in 0..200 {
            let next = Tai64N::next(at(1_600_000_000, 0), Some(last));
            assert!(next > last);
            last = next;
        }
        let ahead = Tai64N::next(at(1_800_000_000, 0), Some(last));
        assert_eq!(ahead, Tai64N::next(at(1_800_000_000, 0), None));
    }
}
