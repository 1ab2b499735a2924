//! When a peer was active: what the data path records for the timers.
//!
//! Most packets would re-arm a timer. Instead, the data path records when each timer's cause arose, and the device
//! derives the timers from that when it checks the peer. If a cause is gone by then, or newer, the device waits on.
//! So a packet costs a few relaxed stores, and the data path signals the device only when it arms a timer that is due
//! before the device's next check of the peer.

use std::time::Duration;

use wireloom_types::limits::KEEPALIVE_TIMEOUT;

use crate::handover::ActivityState;
use crate::limits::UNANSWERED_TIMEOUT;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::{Instant, nanos};

/// A moment or never, shared between threads.
#[derive(Debug)]
pub(crate) struct AtomicInstant(AtomicU64);

/// Means never: 584 years after the clock's origin.
const NEVER: u64 = u64::MAX;

impl AtomicInstant {
    pub(crate) fn never() -> Self {
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

    /// Sets the moment to never, before anything that this thread reads afterwards.
    fn forget(&self) {
        self.0.store(NEVER, Ordering::SeqCst);
    }

    /// Sets the moment to never. Writes only when that is a change, so that the cache line stays shared.
    pub(crate) fn clear(&self) {
        let seen = self.0.load(Ordering::Relaxed);
        if seen != NEVER {
            self.forget_seen(seen);
        }
    }

    /// Sets the moment if it is never. Returns whether it did.
    fn arm(&self, now: Instant) -> bool {
        self.0.load(Ordering::Relaxed) == NEVER
            && self.0.compare_exchange(NEVER, now.as_nanos(), Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Brings the moment forward to `at`, in nanoseconds. Returns whether it was later.
    fn bring_forward(&self, at: u64) -> bool {
        self.0.load(Ordering::SeqCst) > at && self.0.fetch_min(at, Ordering::SeqCst) > at
    }

    /// Whether the moment has come. If so, sets it to never; only one of several callers gets `true`.
    pub(crate) fn take_if_due(&self, now: Instant) -> bool {
        self.seen_due(now).is_some_and(|seen| self.forget_seen(seen))
    }

    /// Whether the moment lies `after` or longer ago. If so, sets it to never, as [`Self::take_if_due`] does.
    pub(crate) fn take_if_passed(&self, now: Instant, after: Duration) -> bool {
        now.as_nanos().checked_sub(nanos(after)).is_some_and(|at| self.take_if_due(Instant::from_nanos(at)))
    }

    /// The moment, in nanoseconds, if it has come.
    fn seen_due(&self, now: Instant) -> Option<u64> {
        let seen = self.0.load(Ordering::Relaxed);
        (seen <= now.as_nanos()).then_some(seen)
    }

    /// Sets the moment to never if it is still the one that was seen: another thread may have set a later one since.
    fn forget_seen(&self, seen: u64) -> bool {
        self.0.compare_exchange(seen, NEVER, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// The causes of a peer's timers, and when the device checks them next.
#[derive(Debug)]
pub(crate) struct Activity {
    /// When the first data was sent since a message last arrived. Never, if there was none.
    pub(crate) unanswered_since: AtomicInstant,
    /// When the first data arrived since a message was last sent. Never, if there was none.
    pub(crate) keepalive_owed_since: AtomicInstant,
    /// When an authentic message was last received.
    pub(crate) last_received: AtomicInstant,
    /// When an authentic message was last sent or received.
    pub(crate) last_traffic: AtomicInstant,
    /// When the device checks this peer next.
    next_check: AtomicInstant,
    /// When receiving asks for renewal of the current session, since it is about to expire.
    pub(crate) last_minute: AtomicInstant,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self {
            unanswered_since: AtomicInstant::never(),
            keepalive_owed_since: AtomicInstant::never(),
            last_received: AtomicInstant::never(),
            last_traffic: AtomicInstant::never(),
            next_check: AtomicInstant::never(),
            last_minute: AtomicInstant::never(),
        }
    }

    /// The causes, to be handed over.
    pub(crate) fn state(&self) -> ActivityState {
        ActivityState {
            unanswered_since: self.unanswered_since.get(),
            keepalive_owed_since: self.keepalive_owed_since.get(),
            last_received: self.last_received.get(),
            last_traffic: self.last_traffic.get(),
            last_minute: self.last_minute.get(),
        }
    }

    /// Takes the causes that were handed over.
    pub(crate) fn set_state(&self, state: &ActivityState) {
        self.unanswered_since.set(state.unanswered_since);
        self.keepalive_owed_since.set(state.keepalive_owed_since);
        self.last_received.set(state.last_received);
        self.last_traffic.set(state.last_traffic);
        self.last_minute.set(state.last_minute);
    }

    /// Records that a message was sent: of any type, with `data` when it was more than a keepalive or handshake
    /// message. Returns whether a timer is now due before the device's next check.
    pub(crate) fn note_sent(&self, now: Instant, data: bool) -> bool {
        self.keepalive_owed_since.clear();
        self.last_traffic.set(Some(now));
        data && self.unanswered_since.arm(now) && self.due_before_check(now, UNANSWERED_TIMEOUT)
    }

    /// Records that an authentic message was received, as [`Self::note_sent`] does.
    pub(crate) fn note_received(&self, now: Instant, data: bool) -> bool {
        self.unanswered_since.clear();
        self.last_received.set(Some(now));
        self.last_traffic.set(Some(now));
        data && self.keepalive_owed_since.arm(now) && self.due_before_check(now, KEEPALIVE_TIMEOUT)
    }

    /// Sets the device's next check of the peer to what `deadline` derives from the causes, and returns it.
    ///
    /// The data path writes a cause and then reads the next check. This method sets the next check to never and then
    /// reads the causes. So in every interleaving of the two, either `deadline` sees the cause, or the data path sees
    /// that no check is scheduled, and signals.
    pub(crate) fn schedule_check(&self, deadline: impl FnOnce() -> Option<Instant>) -> Option<Instant> {
        self.next_check.forget();
        let at = deadline();
        self.next_check.set(at);
        at
    }

    /// Clears every cause.
    pub(crate) fn reset(&self) {
        self.unanswered_since.clear();
        self.keepalive_owed_since.clear();
        self.last_received.clear();
        self.last_traffic.clear();
        self.last_minute.clear();
    }

    fn due_before_check(&self, now: Instant, after: Duration) -> bool {
        self.next_check.bring_forward(now.as_nanos().saturating_add(nanos(after)))
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
    fn the_timer_runs_from_the_first_unanswered_packet() {
        let activity = Activity::new();
        assert!(activity.note_sent(at(1), true), "no check is scheduled yet");
        assert!(!activity.note_sent(at(2), true));
        assert_eq!(activity.unanswered_since.get(), Some(at(1)));
        assert!(!activity.note_received(at(3), false));
        assert_eq!(activity.unanswered_since.get(), None);
        assert_eq!(activity.last_traffic.get(), Some(at(3)));
    }

    #[test]
    fn only_a_timer_due_before_the_next_check_is_signalled() {
        let activity = Activity::new();
        assert!(activity.note_sent(at(1), true));
        assert_eq!(activity.schedule_check(|| deadline(&activity)), Some(at(16)));
        // A keepalive is owed at 13 s, before that check. Nothing else is due before 13 s.
        assert!(activity.note_received(at(3), true));
        for second in 4..13 {
            assert!(!activity.note_sent(at(second), true));
            assert!(!activity.note_received(at(second), true));
        }
    }

    #[test]
    fn a_moment_that_has_come_is_taken_once() {
        let moment = AtomicInstant::never();
        assert!(!moment.take_if_due(at(9)));
        moment.set(Some(at(5)));
        assert!(!moment.take_if_due(at(4)));
        assert!(moment.take_if_due(at(5)));
        assert!(!moment.take_if_due(at(6)));
    }

    /// The steps of one thread, with another thread's between them.
    #[test]
    fn a_moment_that_is_set_while_an_earlier_one_is_taken_stays() {
        let moment = AtomicInstant::never();
        moment.set(Some(at(5)));
        let seen = moment.seen_due(at(6)).expect("it has come");
        moment.set(Some(at(170)));
        assert!(!moment.forget_seen(seen), "that moment is gone");
        assert_eq!(moment.get(), Some(at(170)));
        // The same for a cause that went and came again: packets that were answered and sent since.
        moment.clear();
        assert!(moment.arm(at(171)));
        assert!(!moment.forget_seen(seen));
        assert!(!moment.take_if_passed(at(180), Duration::from_secs(10)), "it is 9 s old");
        assert_eq!(moment.get(), Some(at(171)));
        assert!(moment.take_if_passed(at(181), Duration::from_secs(10)));
        assert!(
            !moment.take_if_passed(at(1), Duration::from_secs(10)),
            "the clock has not run for that long"
        );
    }

    /// One thread records a packet while another schedules the next check: one of the two must see the other.
    #[test]
    fn no_interleaving_loses_a_timer() {
        const ROUNDS: usize = 50_000;
        // A check is scheduled before the packet's timer, so the packet does not signal unless that check is gone.
        let activities: Vec<Activity> = std::iter::repeat_with(|| {
            let activity = Activity::new();
            activity.schedule_check(|| Some(at(10)));
            activity
        })
        .take(ROUNDS)
        .collect();
        let arrived = AtomicUsize::new(0);
        // Both threads meet before each round. They spin, and yield when there may be only one CPU.
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
            let checks: Vec<_> = activities
                .iter()
                .enumerate()
                .map(|(round, activity)| {
                    meet(round);
                    activity.schedule_check(|| deadline(activity))
                })
                .collect();
            for (signalled, check) in packets.join().unwrap().into_iter().zip(checks) {
                assert!(signalled || check.is_some());
            }
        });
    }
}
