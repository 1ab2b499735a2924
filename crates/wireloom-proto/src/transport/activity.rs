//! What the data path notes about a peer, for the timers to be derived from.
//!
//! Timers that every packet would re-arm are kept as the moments of their causes. The device looks
//! at them when a peer's deadline comes: if the cause is gone it sleeps on, else it acts or sleeps
//! until the later moment. So a packet costs a few relaxed stores, and news for the device arises
//! only when a timer is armed that is due before its next look.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wireloom_types::limits::KEEPALIVE_TIMEOUT;

use crate::limits::UNANSWERED_TIMEOUT;
use crate::time::{Instant, nanos};

/// A moment, or never.
#[derive(Debug)]
pub(crate) struct AtomicInstant(AtomicU64);

/// Stands for "never": 584 years after the clock's origin.
const NEVER: u64 = u64::MAX;

impl AtomicInstant {
    pub(crate) const fn never() -> Self {
        Self(AtomicU64::new(NEVER))
    }

    pub(crate) fn get(&self) -> Option<Instant> {
        let nanos = self.0.load(Ordering::SeqCst);
        (nanos != NEVER).then(|| Instant::from_nanos(nanos))
    }

    pub(crate) fn set(&self, at: Option<Instant>) {
        let nanos = at.map_or(NEVER, Instant::as_nanos);
        self.0.store(nanos, Ordering::Relaxed);
    }

    /// Sets the moment to never, visible to all before anything that follows is read.
    fn forget(&self) {
        self.0.store(NEVER, Ordering::SeqCst);
    }

    /// Writes only when there is something to clear: the line stays shared between readers.
    pub(crate) fn clear(&self) {
        if self.0.load(Ordering::Relaxed) != NEVER {
            self.0.store(NEVER, Ordering::Relaxed);
        }
    }

    /// Sets the moment if there was none; true when this call did.
    fn arm(&self, now: Instant) -> bool {
        self.0.load(Ordering::Relaxed) == NEVER
            && self.0.compare_exchange(NEVER, now.as_nanos(), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Brings the moment forward to `at`; true when it was later.
    fn bring_forward(&self, at: u64) -> bool {
        self.0.load(Ordering::SeqCst) > at && self.0.fetch_min(at, Ordering::SeqCst) > at
    }

    /// Whether the moment has come; if so it is reset to never, and one caller alone is told.
    pub(crate) fn take_if_due(&self, now: Instant) -> bool {
        self.0.load(Ordering::Relaxed) <= now.as_nanos() && self.0.swap(NEVER, Ordering::Relaxed) != NEVER
    }
}

/// The causes of a peer's timers.
#[derive(Debug)]
pub(crate) struct Activity {
    /// First data sent since the last authenticated receipt.
    pub(crate) unanswered_since: AtomicInstant,
    /// First data received since the last authenticated sending.
    pub(crate) owing_since: AtomicInstant,

    /// Last authenticated message received.
    pub(crate) heard: AtomicInstant,
    /// Last authenticated message sent or received.
    pub(crate) traversed: AtomicInstant,
    /// The device's next look at this peer.
    next_look: AtomicInstant,
    /// When receiving asks for a last-minute renewal of the current session.
    pub(crate) last_minute: AtomicInstant,
}

impl Activity {
    pub(crate) const fn new() -> Self {
        Self {
            unanswered_since: AtomicInstant::never(),
            owing_since: AtomicInstant::never(),

            heard: AtomicInstant::never(),
            traversed: AtomicInstant::never(),
            next_look: AtomicInstant::never(),
            last_minute: AtomicInstant::never(),
        }
    }

    /// An authenticated message was sent, handshake messages and keepalives included. True when a
    /// timer is now due before the device's next look.
    pub(crate) fn note_sent(&self, now: Instant, data: bool) -> bool {
        self.owing_since.clear();
        self.traversed.set(Some(now));
        data && self.unanswered_since.arm(now) && self.due_before_look(now, UNANSWERED_TIMEOUT)
    }

    /// An authenticated message was received, handshake messages and keepalives included. True when
    /// a timer is now due before the device's next look.
    pub(crate) fn note_received(&self, now: Instant, data: bool) -> bool {
        self.unanswered_since.clear();
        self.heard.set(Some(now));
        self.traversed.set(Some(now));
        data && self.owing_since.arm(now) && self.due_before_look(now, KEEPALIVE_TIMEOUT)
    }

    /// Finds the moment of the device's next look with `deadline`, which derives it from the causes.
    ///
    /// The data path first writes a cause and then reads the next look; here the next look is
    /// forgotten first and then the causes are read. So in every interleaving of the two, either
    /// `deadline` sees the cause or the data path sees no look ahead and signals.
    pub(crate) fn plan_look(&self, deadline: impl FnOnce() -> Option<Instant>) -> Option<Instant> {
        self.next_look.forget();
        let look = deadline();
        self.next_look.set(look);
        look
    }

    /// Forgets every cause, as after a wipe of all keys.
    pub(crate) fn reset(&self) {
        self.unanswered_since.clear();
        self.owing_since.clear();
        self.heard.clear();
        self.traversed.clear();
        self.last_minute.clear();
    }

    fn due_before_look(&self, now: Instant, after: Duration) -> bool {
        self.next_look.bring_forward(now.as_nanos().saturating_add(nanos(after)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_origin(Duration::from_secs(seconds))
    }

    fn deadline(activity: &Activity) -> Option<Instant> {
        activity.unanswered_since.get().map(|since| since + UNANSWERED_TIMEOUT)
    }

    #[test]
    fn the_first_unanswered_packet_counts() {
        let activity = Activity::new();
        assert!(activity.note_sent(at(1), true), "nobody would look otherwise");
        assert!(!activity.note_sent(at(2), true));
        assert_eq!(activity.unanswered_since.get(), Some(at(1)));
        assert!(!activity.note_received(at(3), false));
        assert_eq!(activity.unanswered_since.get(), None);
        assert_eq!(activity.traversed.get(), Some(at(3)));
    }

    #[test]
    fn the_device_hears_only_of_timers_before_its_next_look() {
        let activity = Activity::new();
        assert!(activity.note_sent(at(1), true));
        assert_eq!(activity.plan_look(|| deadline(&activity)), Some(at(16)));
        // An answer is owed at 13 s, before that look; and then nothing is due before 13 s.
        assert!(activity.note_received(at(3), true));
        for second in 4..13 {
            assert!(!activity.note_sent(at(second), true));
            assert!(!activity.note_received(at(second), true));
        }
    }

    #[test]
    fn one_caller_is_told_that_a_moment_has_come() {
        let moment = AtomicInstant::never();
        assert!(!moment.take_if_due(at(9)));
        moment.set(Some(at(5)));
        assert!(!moment.take_if_due(at(4)));
        assert!(moment.take_if_due(at(5)));
        assert!(!moment.take_if_due(at(6)));
    }

    /// A packet is noted while the device plans its next look: one of the two must see the other.
    #[test]
    fn no_interleaving_loses_a_timer() {
        const ROUNDS: usize = 50_000;
        // A look is ahead that comes before the packet's timer: the packet relies on it.
        let activities: Vec<Activity> = std::iter::repeat_with(|| {
            let activity = Activity::new();
            activity.plan_look(|| Some(at(10)));
            activity
        })
        .take(ROUNDS)
        .collect();
        let arrived = AtomicUsize::new(0);
        // Both threads meet before each round, awake unless there is one CPU for both.
        let meet = |round: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            for spins in 0_u32.. {
                if arrived.load(Ordering::SeqCst) >= 2 * (round + 1) {
                    break;
                }
                if spins > 1000 {
                    std::thread::yield_now();
                }
            }
        };
        std::thread::scope(|scope| {
            let packets = scope.spawn(|| {
                let rounds = activities.iter().enumerate().map(|(round, activity)| {
                    meet(round);
                    activity.note_sent(at(1), true)
                });
                rounds.collect::<Vec<bool>>()
            });
            let looks: Vec<_> = activities
                .iter()
                .enumerate()
                .map(|(round, activity)| {
                    meet(round);
                    activity.plan_look(|| deadline(activity))
                })
                .collect();
            for (signalled, look) in packets.join().unwrap().into_iter().zip(looks) {
                assert!(signalled || look.is_some());
            }
        });
    }
}
