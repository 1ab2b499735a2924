//! No event is lost on its way from the workers to the device.

use std::sync::Arc;

use super::{at, endpoint, message, ours, path, theirs};
use crate::index_permutation::IndexPermutation;
use crate::randomness::Randomness;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::model::{Bound, check, spawn};
use crate::transport::Transport;
use crate::transport::role::Role;
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

/// A worker stages two packets while the device takes what it was told of. It is told once for all that wait, and looks
/// at them after it has taken the news.
#[test]
fn the_device_looks_again_after_the_last_packet_was_staged() {
    check(Bound::Exhaustive, || {
        let news = Arc::new(News::default());
        let (staged, told) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(false)));
        let worker = {
            let (news, staged, told) = (Arc::clone(&news), Arc::clone(&staged), Arc::clone(&told));
            spawn(move || {
                for _ in 0..2 {
                    *staged.lock().unwrap() += 1;
                    if news.add_once(Events::PACKETS_WAIT) {
                        *told.lock().unwrap() = true;
                    }
                }
            })
        };
        let mut seen = 0;
        let mut look = || {
            if std::mem::take(&mut *told.lock().unwrap()) && news.take().contains(Events::PACKETS_WAIT) {
                seen = *staged.lock().unwrap();
            }
            seen
        };
        look();
        worker.join().unwrap();
        assert_eq!(look(), 2);
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
