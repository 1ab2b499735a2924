//! No timer is lost, and no moment that was set is erased.

use std::sync::Arc;
use std::time::Duration;

use wireloom_types::limits::KEEPALIVE_TIMEOUT;

use super::at;
use crate::limits::UNANSWERED_TIMEOUT;
use crate::sync::Mutex;
use crate::sync::model::{Bound, check, spawn};
use crate::time::Instant;
use crate::transport::activity::{Activity, AtomicInstant};

/// When the first timer fires, as the device derives it.
fn first_due(activity: &Activity) -> Option<Instant> {
    let unanswered = activity.unanswered_since.get().map(|since| since + UNANSWERED_TIMEOUT);
    let owed = activity.keepalive_owed_since.get().map(|since| since + KEEPALIVE_TIMEOUT);
    unanswered.into_iter().chain(owed).min()
}

/// A check is scheduled before the packet's timer, so the packet does not signal unless that check is gone.
#[test]
fn the_device_sees_the_cause_of_a_timer_or_is_told_of_it() {
    check(Bound::Exhaustive, || {
        let activity = Arc::new(Activity::new());
        activity.schedule_check(|| Some(at(10)));
        let worker = {
            let activity = Arc::clone(&activity);
            spawn(move || activity.note_sent(at(1), true))
        };
        let scheduled = activity.schedule_check(|| first_due(&activity));
        let told = worker.join().unwrap();
        assert!(told || scheduled.is_some());
    });
}

/// Two workers, one that sends and one that receives, and a device that checks the peer for a reason of its own. When
/// it has then done what it was told, a check is scheduled for every timer.
#[test]
fn every_timer_has_a_check_when_the_device_has_done_what_it_was_told() {
    check(Bound::Preemptions(2), || {
        let activity = Arc::new(Activity::new());
        activity.schedule_check(|| Some(at(30)));
        let told = Arc::new(Mutex::new(0));
        let worker = |note: fn(&Activity) -> bool| {
            let (activity, told) = (Arc::clone(&activity), Arc::clone(&told));
            spawn(move || {
                if note(&activity) {
                    *told.lock().unwrap() += 1;
                }
            })
        };
        let workers = [
            worker(|activity| activity.note_sent(at(1), true)),
            worker(|activity| activity.note_received(at(2), true)),
        ];
        let mut scheduled = activity.schedule_check(|| first_due(&activity));
        for worker in workers {
            worker.join().unwrap();
        }
        if *told.lock().unwrap() > 0 {
            scheduled = activity.schedule_check(|| first_due(&activity));
        }
        if let Some(due) = first_due(&activity) {
            assert!(scheduled.is_some_and(|check| check <= due), "{scheduled:?} is after {due:?}");
        }
    });
}

#[test]
fn a_moment_that_is_set_while_an_earlier_one_is_taken_stays() {
    check(Bound::Exhaustive, || {
        let moment = Arc::new(AtomicInstant::never());
        moment.set(Some(at(5)));
        let taker = {
            let moment = Arc::clone(&moment);
            spawn(move || moment.take_if_due(at(6)))
        };
        moment.set(Some(at(170)));
        taker.join().unwrap();
        assert_eq!(moment.get(), Some(at(170)));
    });
}

#[test]
fn of_two_who_take_a_moment_one_gets_it() {
    check(Bound::Exhaustive, || {
        let moment = Arc::new(AtomicInstant::never());
        moment.set(Some(at(5)));
        let taker = {
            let moment = Arc::clone(&moment);
            spawn(move || moment.take_if_due(at(6)))
        };
        let here = moment.take_if_passed(at(15), Duration::from_secs(10));
        let there = taker.join().unwrap();
        assert!(here != there);
        assert_eq!(moment.get(), None);
    });
}

/// The device gives up on a cause that it saw. Meanwhile the peer answers, and another packet is sent.
#[test]
fn a_cause_that_went_and_came_again_stays() {
    check(Bound::Exhaustive, || {
        let activity = Arc::new(Activity::new());
        assert!(activity.note_sent(at(1), true), "no check is scheduled");
        let worker = {
            let activity = Arc::clone(&activity);
            spawn(move || {
                activity.note_received(at(15), false);
                activity.note_sent(at(15), true);
            })
        };
        activity.unanswered_since.take_if_passed(at(16), UNANSWERED_TIMEOUT);
        worker.join().unwrap();
        assert_eq!(activity.unanswered_since.get(), Some(at(15)));
    });
}
