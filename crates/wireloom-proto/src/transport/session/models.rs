//! Model checks of one session. See [`crate::sync::model`].

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::sync::model::{Bound, check, spawn};

const BORN: Instant = Instant::from_nanos(1_000_000_000);

fn session(role: Role) -> Arc<Session> {
    let keys = SessionKeys { sending: [1; 32].into(), receiving: [2; 32].into() };
    Arc::new(Session::new(&keys, role, 10, 20, BORN))
}

/// Three counters are left for two batches of two.
#[test]
fn the_last_counters_are_used_once_and_never_exceeded() {
    check(Bound::Exhaustive, || {
        let session = session(Role::Initiator);
        session.next_counter.store(REJECT_AFTER_MESSAGES - 3, Ordering::Relaxed);
        let take = |session: &Session| session.reserve(BORN, 2).ok().map(|counters| counters.0.start);
        let worker = {
            let session = Arc::clone(&session);
            spawn(move || take(&session))
        };
        let here = take(&session);
        let there = worker.join().unwrap();
        let taken: Vec<_> = here.into_iter().chain(there).collect();
        assert_eq!(taken, [REJECT_AFTER_MESSAGES - 3], "one of the two gets some");
        assert!(session.reserve(BORN, 1).is_ok(), "one counter is left");
        assert!(session.reserve(BORN, 1).is_err());
    });
}

#[test]
fn counters_are_used_once() {
    check(Bound::Exhaustive, || {
        let session = session(Role::Initiator);
        let worker = || {
            let session = Arc::clone(&session);
            spawn(move || [1, 2].map(|messages| session.reserve(BORN, messages).expect("it is new").0))
        };
        let mut taken: Vec<u64> =
            [worker(), worker()].into_iter().flat_map(|worker| worker.join().unwrap()).flatten().collect();
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4, 5]);
    });
}

/// The window moves ahead by more than its size while older messages are marked.
#[test]
fn the_window_accepts_each_counter_once_while_it_moves() {
    check(Bound::Exhaustive, || {
        let session = session(Role::Initiator);
        let is_new = |session: &Session, counter| {
            let mut opened = [(counter, Ok(()))];
            session.mark_received(&mut opened);
            opened[0].1.is_ok()
        };
        let worker = |counters: [u64; 2]| {
            let session = Arc::clone(&session);
            spawn(move || counters.map(|counter| is_new(&session, counter)))
        };
        let workers = [worker([3, 20_000]), worker([3, 19_999])];
        let [first, second] = workers.map(|worker| worker.join().unwrap());
        assert!(!(first[0] && second[0]), "accepted twice");
        assert!(first[1] && second[1], "new ones are accepted in any order");
        assert!([3, 19_999, 20_000].iter().all(|counter| !is_new(&session, *counter)));
    });
}

/// Renewal is asked for once, whoever sends.
#[test]
fn one_thread_asks_for_renewal() {
    check(Bound::Exhaustive, || {
        let session = session(Role::Initiator);
        let old = BORN + REKEY_AFTER_TIME + Duration::from_secs(1);
        let worker = {
            let session = Arc::clone(&session);
            spawn(move || session.asks_for_rekey(old))
        };
        let here = session.asks_for_rekey(old);
        assert!(here != worker.join().unwrap());
    });
}

#[test]
fn the_first_message_confirms_a_session_once() {
    check(Bound::Exhaustive, || {
        let session = session(Role::Responder);
        let worker = {
            let session = Arc::clone(&session);
            spawn(move || session.confirm())
        };
        let here = session.confirm();
        assert!(here != worker.join().unwrap());
        assert!(session.is_confirmed());
    });
}
