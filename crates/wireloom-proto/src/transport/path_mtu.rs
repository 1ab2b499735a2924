//! The path MTU of a peer: the largest IP packet that the underlay carries to it, as far as known, and when to probe
//! it.
//!
//! All fields are atomic, and all threads share them: a thread that reads while another one writes sees the old value
//! or the new one. A thread that has lost a race probes once too often.

use std::time::Duration;

use crate::handover::PathMtuState;
use crate::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use crate::time::Instant;

/// How long a path MTU from the network is used (RFC 1191, section 6.3).
const LEARNT_LASTS: Duration = Duration::from_secs(600);

/// The smallest path MTU that is accepted, in bytes: the kernel's `net.ipv4.route.min_pmtu`. Anybody can forge a report
/// of a smaller one.
pub const PATH_MTU_MIN: usize = 552;

/// The times from one probe to the next, in milliseconds. The kernel answers a probe at once if it knows the path MTU,
/// and learns it from the ICMP error that a probe causes, so a probe may need another one a round trip later: a narrow
/// path is known within a second. Then the last two alternate, for paths that become narrower.
const INTERVALS: [u64; 7] = [50, 100, 200, 300, 300, 10_000, 200];

/// A probe that is due for longer than this, in milliseconds, begins anew: the traffic has changed.
const STALE: u64 = 5_000;

#[derive(Debug, Default)]
pub(crate) struct PathMtu {
    /// In bytes; 0 when none is configured.
    configured: AtomicU16,
    /// What the network reported, in the lower 16 bits, and the millisecond at which that expires above them; 0 when it
    /// reported nothing.
    learnt: AtomicU64,
    /// When the next probe is due, and what was probed: see [`Probing`].
    probing: AtomicU64,
}

/// What [`PathMtu::probing`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Probing {
    /// The millisecond at which the next probe is due; 44 bits.
    due: u64,
    /// Which of [`INTERVALS`] comes next; 4 bits.
    step: usize,
    /// The longest packet that was probed, in bytes; 16 bits.
    len: usize,
}

impl Probing {
    fn unpack(bits: u64) -> Self {
        Self { due: bits >> 20, step: (bits >> 16) as usize & 15, len: bits as usize & 0xffff }
    }

    fn pack(self) -> u64 {
        self.due << 20 | (self.step as u64) << 16 | self.len as u64
    }

    /// The state after a probe of `len` bytes, if there should be one now.
    fn probe(self, now: u64, len: usize) -> Option<Self> {
        let step = if len > self.len || now >= self.due + STALE {
            0
        } else if now >= self.due && len == self.len {
            self.step
        } else {
            return None;
        };
        let next = if step + 1 < INTERVALS.len() { step + 1 } else { INTERVALS.len() - 2 };
        Some(Self { due: now + INTERVALS[step], step: next, len })
    }
}

impl PathMtu {
    /// What is known, to be handed over.
    pub(crate) fn state(&self) -> PathMtuState {
        PathMtuState {
            configured: self.configured.load(Ordering::Relaxed),
            learnt: self.learnt.load(Ordering::Relaxed),
            probing: self.probing.load(Ordering::Relaxed),
        }
    }

    /// What was handed over. Probing begins anew if it had come to a step that there is not.
    pub(crate) fn from_state(state: &PathMtuState) -> Self {
        let is_possible = Probing::unpack(state.probing).step < INTERVALS.len();
        Self {
            configured: AtomicU16::new(state.configured),
            learnt: AtomicU64::new(state.learnt),
            probing: AtomicU64::new(if is_possible { state.probing } else { 0 }),
        }
    }

    /// The path MTU that counts at this time: the smaller one of those that are known, in bytes.
    #[inline]
    pub(crate) fn at(&self, now: Instant) -> Option<usize> {
        let configured = self.configured.load(Ordering::Relaxed);
        let learnt = self.learnt.load(Ordering::Relaxed);
        if configured == 0 && learnt == 0 {
            return None;
        }
        let learnt = (millis(now) < learnt >> 16).then_some(learnt as u16);
        let configured = (configured > 0).then_some(configured);
        configured.into_iter().chain(learnt).min().map(usize::from)
    }

    pub(crate) fn configure(&self, bytes: Option<u16>) {
        self.configured.store(bytes.unwrap_or(0), Ordering::Relaxed);
    }

    pub(crate) fn learn(&self, now: Instant, bytes: usize) {
        let bytes = bytes.clamp(PATH_MTU_MIN, usize::from(u16::MAX));
        if self.at(now) != Some(bytes) {
            self.probing.store(0, Ordering::Relaxed);
        }
        let until = millis(now + LEARNT_LASTS);
        self.learnt.store(until << 16 | bytes as u64, Ordering::Relaxed);
    }

    /// Forgets what the network reported: the peer is elsewhere.
    pub(crate) fn forget(&self) {
        self.learnt.store(0, Ordering::Relaxed);
        self.probing.store(0, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn probe(&self, now: Instant, len: usize) -> bool {
        if len <= PATH_MTU_MIN {
            return false;
        }
        let probing = Probing::unpack(self.probing.load(Ordering::Relaxed));
        let Some(next) = probing.probe(millis(now), len) else { return false };
        self.probing.store(next.pack(), Ordering::Relaxed);
        true
    }
}

/// A time in milliseconds, rounded down. 44 bits of them are 557 years.
fn millis(time: Instant) -> u64 {
    time.as_nanos() / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_origin(Duration::from_millis(1_000_000 + millis))
    }

    /// When packets of this length, one every 10 ms from `from` until `to`, are probes.
    fn probes(path: &PathMtu, from: u64, to: u64, len: usize) -> Vec<u64> {
        (from..to).step_by(10).filter(|millis| path.probe(at(*millis), len)).collect()
    }

    #[test]
    fn the_smaller_path_mtu_counts_and_a_learnt_one_lasts_ten_minutes() {
        let path = PathMtu::default();
        assert_eq!(path.at(at(0)), None);
        path.learn(at(0), 1400);
        assert_eq!((path.at(at(599_999)), path.at(at(600_000))), (Some(1400), None));
        path.configure(Some(1300));
        assert_eq!((path.at(at(0)), path.at(at(600_000))), (Some(1300), Some(1300)));
        path.configure(Some(9000));
        assert_eq!((path.at(at(0)), path.at(at(600_000))), (Some(1400), Some(9000)));
        path.configure(None);
        path.learn(at(1), 68);
        assert_eq!(path.at(at(1)), Some(PATH_MTU_MIN));
        path.learn(at(1), 100_000);
        assert_eq!(path.at(at(1)), Some(65_535));
        path.forget();
        assert_eq!(path.at(at(1)), None);
    }

    #[test]
    fn probes_are_dense_at_first_and_then_come_in_pairs() {
        let path = PathMtu::default();
        let expected = [0, 50, 150, 350, 650, 950, 10_950, 11_150, 21_150, 21_350];
        assert_eq!(probes(&path, 0, 30_000, 1480), expected);
        assert_eq!(probes(&path, 30_000, 30_010, 1000), [], "it would not tell about longer ones");
        assert_eq!(probes(&path, 30_010, 30_200, 1484), [30_010, 30_060, 30_160], "longer than all before");
    }

    #[test]
    fn a_step_that_there_is_not_begins_anew() {
        let mut state = PathMtu::default().state();
        state.probing = Probing { due: millis(at(0)), step: INTERVALS.len(), len: 1480 }.pack();
        assert_eq!(probes(&PathMtu::from_state(&state), 0, 200, 1480), [0, 50, 150]);
    }

    #[test]
    fn probes_begin_anew_after_a_pause_and_when_the_path_mtu_has_changed() {
        let path = PathMtu::default();
        assert_eq!(probes(&path, 0, 200, 1480), [0, 50, 150]);
        assert_eq!(probes(&path, 20_000, 20_100, 1200), [20_000, 20_050], "shorter ones, after a pause");
        path.learn(at(20_100), 1200);
        assert_eq!(probes(&path, 20_100, 20_200, 1200), [20_100, 20_150]);
        path.learn(at(20_200), 1200);
        assert_eq!(probes(&path, 20_200, 20_300, 1200), [20_250], "nothing has changed");
        assert_eq!(probes(&path, 90_000, 99_000, PATH_MTU_MIN), [], "every path takes these");
    }
}
