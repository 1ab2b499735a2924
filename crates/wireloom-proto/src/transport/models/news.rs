//! No event is lost on its way from the workers to the device.

use std::sync::Arc;

use super::{at, endpoint, message, ours, path, theirs};
use crate::index_permutation::IndexPermutation;
use crate::randomness::Randomness;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::model::{Bound, check, spawn};
use crate::transport::Transport;
use crate::transport::session::Role;
use crate::transport::signal::{Events, News};

/// Two workers report at once while the device takes what it was told of before. Its channel has room for one signal,
/// so the second worker's may be dropped.
#[test]
fn the_device_hears_every_event_and_sees_its_cause() {
    check(Bound::Exhaustive, || {
        let news = Arc::new(News::default());
        let confirmed = Arc::new(AtomicBool::new(false));
        let signalled = Arc::new(Mutex::new(false));
        let worker = {
            let (news, confirmed, signalled) =
                (Arc::clone(&news), Arc::clone(&confirmed), Arc::clone(&signalled));
            move |event| {
                move || {
                    if event == Events::SESSION_CONFIRMED {
                        confirmed.store(true, Ordering::Relaxed);
                    }
                    if news.add(event) {
                        *signalled.lock().unwrap() = true;
                    }
                }
            }
        };
        let workers = [spawn(worker.clone()(Events::SESSION_CONFIRMED)), spawn(worker(Events::TIMER_ARMED))];
        let take = || {
            let events = news.take();
            if events.contains(Events::SESSION_CONFIRMED) {
                assert!(confirmed.load(Ordering::Relaxed), "its cause is seen");
            }
            events
        };
        let mut heard = take();
        for worker in workers {
            worker.join().unwrap();
        }
        if std::mem::take(&mut *signalled.lock().unwrap()) {
            heard |= take();
        }
        assert!(heard.contains(Events::SESSION_CONFIRMED | Events::TIMER_ARMED), "{heard:?}");
    });
}

/// A worker drops two packets for an unreachable peer. Meanwhile the device begins an attempt, if it is told of one by
/// then, and gives it up.
#[test]
fn the_device_seeks_an_unreachable_peer_or_is_told_of_the_next_packet() {
    check(Bound::Exhaustive, || {
        let path = path();
        let told = Arc::new(Mutex::new(0));
        let worker = {
            let (path, told) = (Arc::clone(&path), Arc::clone(&told));
            spawn(move || {
                for _ in 0..2 {
                    if path.seek().is_some() {
                        *told.lock().unwrap() += 1;
                    }
                }
            })
        };
        let mut heard = 0;
        let mut hears = || {
            let more = std::mem::take(&mut *told.lock().unwrap());
            heard += more;
            more > 0 && path.news.take().contains(Events::SOUGHT)
        };
        let mut attempts = 0;
        if hears() {
            path.news.end_search();
            attempts += 1;
        }
        worker.join().unwrap();
        let seeks = hears();
        assert!(heard <= 1 + attempts, "once for each attempt");
        assert_eq!(seeks, path.seek().is_none(), "the next packet is heard of where no attempt is under way");
    });
}

/// The first two messages of a session that we answered arrive at two workers.
#[test]
fn the_device_is_told_when_a_session_is_confirmed() {
    check(Bound::Preemptions(2), || {
        let transport = Arc::new(Transport::new(IndexPermutation::draw(&mut Randomness::new(&[1; 32]))));
        let (path, session, peer) = (path(), ours(20, Role::Responder), theirs(20));
        transport.insert(Arc::clone(&session), Arc::clone(&path));
        let mut messages = [message(&peer), message(&peer)];
        let open = |transport: &Transport, message: &mut [u8]| {
            transport.open(at(2), endpoint(1), message).expect("it is authentic and new").signal.is_some()
        };
        let worker = {
            let transport = Arc::clone(&transport);
            let mut message = std::mem::take(&mut messages[1]);
            spawn(move || open(&transport, &mut message))
        };
        let here = open(&transport, &mut messages[0]);
        let there = worker.join().unwrap();
        assert!(here || there, "nobody tells the device");
        assert!(session.is_confirmed());
        assert!(path.news.take().contains(Events::SESSION_CONFIRMED | Events::TIMER_ARMED));
    });
}
