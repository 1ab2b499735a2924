//! The timestamps of initiations, which refuse replays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::drop_reason::DropReason;
use crate::limits::INITIATION_INTERVAL_MIN;
use crate::message::TIMESTAMP_LEN;
use crate::time::{Instant, UnixTime};

/// The TAI64N timestamp of an initiation: 8 bytes of seconds and 4 bytes of nanoseconds, big endian.
///
/// A responder accepts an initiation only if its timestamp is greater than the peer's last one (paper, section 5.1).
/// The order of the bytes is the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
        let current = Self::at(now);
        match last {
            Some(last) if current <= last => last.successor(),
            _ => current,
        }
    }

    fn at(time: UnixTime) -> Self {
        let elapsed = time.since_epoch();
        Self::from_parts(
            TAI64_EPOCH.saturating_add(elapsed.as_secs()),
            elapsed.subsec_nanos() & !(Self::GRANULARITY - 1),
        )
    }

    /// The first whole second that is not before it, since the Unix epoch.
    fn rounded_up(self) -> Duration {
        let [s0, s1, s2, s3, s4, s5, s6, s7, nanos @ ..] = self.0;
        let seconds = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]).saturating_sub(TAI64_EPOCH);
        Duration::from_secs(seconds.saturating_add(u64::from(nanos != [0; 4])))
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

/// The timestamps of a device's own initiations. They grow for each peer, whatever becomes of the wall clock, of the
/// peer's entry and of the device.
#[derive(Debug, Default)]
pub(crate) struct OwnTimestamps {
    /// Some peer may know a timestamp as great as this one, from an earlier device with our key, or from before it was
    /// removed and added again.
    floor: Option<Tai64N>,
    /// The greatest one that was made.
    greatest: Option<Tai64N>,
}

impl OwnTimestamps {
    /// While timestamps follow the clock, the time to keep is a multiple of this many seconds, and at least half of it
    /// ahead. So it is written every few minutes at most, and whoever writes it has 2 minutes for that.
    const STEP: u64 = 1 << 8;

    /// The same while timestamps are ahead of the clock. They grow by no more than 17 ms with each initiation to a peer
    /// then, so that even a step of 1 s takes minutes. A longer one would add up while a device is killed again and
    /// again.
    const STEP_AHEAD: u64 = 1;

    /// The timestamp of an initiation that is sent now to a peer that `last` was sent to.
    pub(crate) fn next(&mut self, now: UnixTime, last: Option<Tai64N>) -> Tai64N {
        let next = Tai64N::next(now, last.max(self.floor));
        self.greatest = self.greatest.max(Some(next));
        next
    }

    /// The floor and the greatest timestamp, to be handed over.
    pub(crate) fn state(&self) -> (Option<Tai64N>, Option<Tai64N>) {
        (self.floor, self.greatest)
    }

    /// The timestamps that were handed over.
    pub(crate) fn from_state((floor, greatest): (Option<Tai64N>, Option<Tai64N>)) -> Self {
        Self { floor, greatest }
    }

    /// All timestamps from now on are greater than this one.
    pub(crate) fn raise_floor(&mut self, to: Option<Tai64N>) {
        self.floor = self.floor.max(to);
    }

    /// As [`Self::raise_floor`], for a time that was [kept](Self::to_keep).
    pub(crate) fn continue_after(&mut self, kept: UnixTime) {
        self.raise_floor(Some(Tai64N::at(kept)));
    }

    /// A time that no timestamp so far is after, in whole seconds.
    pub(crate) fn reached(&self) -> Option<UnixTime> {
        let greatest = self.greatest.max(self.floor)?;
        Some(UnixTime::from_epoch(greatest.rounded_up()))
    }

    /// A time that no timestamp so far is after, nor the next one, even if the clock goes on for 2 minutes before that.
    pub(crate) fn to_keep(&self, now: UnixTime) -> UnixTime {
        let now = now.since_epoch().as_secs().saturating_add(1);
        let reached = self.reached().map_or(0, |reached| reached.since_epoch().as_secs());
        let step = if reached > now { Self::STEP_AHEAD } else { Self::STEP };
        let kept = reached.max(now).saturating_add(step.div_ceil(2)).div_ceil(step).saturating_mul(step);
        UnixTime::from_epoch(Duration::from_secs(kept))
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
    /// The greatest timestamp, and when it passed, to be handed over.
    pub(crate) fn state(&self) -> Option<(Tai64N, Instant)> {
        self.greatest.zip(self.last)
    }

    /// The filter that was handed over.
    pub(crate) fn from_state(state: Option<(Tai64N, Instant)>) -> Self {
        let (greatest, last) = state.unzip();
        Self { greatest, last }
    }

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

    #[test]
    fn what_is_kept_is_minutes_ahead_of_the_clock_and_changes_rarely() {
        let mut own = OwnTimestamps::default();
        let mut kept = vec![own.to_keep(at(1_700_000_000, 0))];
        for second in 0..3_600 {
            let now = at(1_700_000_000 + second, 999_999_999);
            assert!(Tai64N::at(kept[kept.len() - 1]) > own.next(now, None));
            let keep = own.to_keep(now);
            let ahead = keep.since_epoch().as_secs() - now.since_epoch().as_secs();
            assert!((129..=385).contains(&ahead), "{ahead}");
            kept.push(keep);
        }
        kept.dedup();
        assert!(kept.len() <= 16, "{}", kept.len());
    }

    /// A device that is killed again and again does not run away from the clock.
    #[test]
    fn restarts_move_the_timestamps_by_seconds() {
        let now = at(1_700_000_000, 0);
        let mut own = OwnTimestamps::default();
        let mut last = own.next(now, None);
        let first = own.to_keep(now);
        let mut kept = first;
        for _ in 0..100 {
            own = OwnTimestamps::default();
            own.continue_after(kept);
            kept = own.to_keep(now);
            let next = own.next(now, None);
            assert!(last < next && next < Tai64N::at(kept));
            last = next;
            kept = kept.max(own.to_keep(now));
        }
        assert!(kept.since_epoch() - first.since_epoch() <= Duration::from_secs(200));
    }

    #[test]
    fn timestamps_of_a_clock_that_was_set_back_stay_below_what_is_kept() {
        let mut own = OwnTimestamps::default();
        own.continue_after(at(1_700_000_000, 0));
        let (mut last, mut writes) = (None, 0);
        let mut kept = own.to_keep(at(1_600_000_000, 0));
        // An initiation every 5 s, for an hour.
        for initiation in 0..720 {
            let now = at(1_600_000_000 + 5 * initiation, 0);
            let next = own.next(now, last);
            assert!(Some(next) > last && next < Tai64N::at(kept));
            last = Some(next);
            writes += usize::from(own.to_keep(now) > kept);
            kept = kept.max(own.to_keep(now));
        }
        assert!(writes <= 16, "{writes}");
    }

    #[test]
    fn what_was_reached_is_rounded_up_to_a_second() {
        let mut own = OwnTimestamps::default();
        own.next(at(7, 0), None);
        assert_eq!(own.reached(), Some(at(7, 0)));
        own.next(at(7, 1 << 24), None);
        assert_eq!(own.reached(), Some(at(8, 0)));
    }
}
