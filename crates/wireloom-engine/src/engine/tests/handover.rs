//! Engines that hand over to a successor: whatever they know goes through bytes, and the rest as descriptors would.

use super::*;
use crate::handover::state::{InterfaceState, Prepared};

impl Machine {
    /// Replaces the engine by a successor. `between` happens after the copy, while the engine is at work.
    pub(super) fn hand_over(&mut self, now: Now, between: impl FnOnce(&mut Self)) {
        let interface = InterfaceState::default();
        let copied = self.engine.snapshot(interface);
        let seed = [self.inner.octets()[3] + 100; 32];
        let prepared = Prepared::new(&seed, &copied.copy()).expect("it was just written");
        between(self);

        self.engine.stop(now, || false).expect("memory does not fail");
        let changes = self.engine.changes_since(&copied, interface);
        let received = prepared.with_changes(&changes).expect("they were just written");
        let nowhere = Self::on(&network(), 1).engine;
        let (tun, queues, sockets) = std::mem::replace(&mut self.engine, nowhere).into_parts();
        let pool = (queues.len() > 1).then(|| CryptoPool::start(1, queues.len()).expect("threads"));
        let runner = Box::new(self.workers.clone());
        let interface = (tun, queues);
        let network = self.network.clone();
        self.engine = Engine::take_over(now, received, interface, network, sockets, runner, pool.as_ref())
            .expect("an event");
        self.engine.resume();
    }

    /// Replaces the engine by one that has its interface and sockets, and knows nothing.
    fn forget_everything(&mut self, now: Now) {
        self.engine.stop(now, || false).expect("memory does not fail");
        let nowhere = Self::on(&network(), 1).engine;
        let (tun, queues, sockets) = std::mem::replace(&mut self.engine, nowhere).into_parts();
        let runner = Box::new(self.workers.clone());
        let network = self.network.clone();
        self.engine =
            Engine::new(&[9; 32], Mode::STANDARD, (tun, queues), network, runner, None).expect("an event");
        self.up();
        self.engine.adopt_unknown(now, sockets, 0).expect("memory does not fail");
    }
}

fn from_to(from: &Machine, to: &Machine, number: u8) -> Vec<u8> {
    packet(from.inner, to.inner, &[number])
}

#[test]
fn what_waits_at_the_interface_and_at_the_port_is_carried_by_the_successor() {
    let (mut a, mut b) = pair();
    a.stack.send(&from_to(&a, &b, 0));
    settle(at(1), &mut [&mut a, &mut b]);
    let handshakes = a.network.seen().len();
    for number in 1..5 {
        a.stack.send(&from_to(&a, &b, number));
        b.stack.send(&from_to(&b, &a, number));
        b.turn(at(1));
        let now = at(1 + u64::from(number));
        a.hand_over(now, |_| ());
    }
    settle(at(6), &mut [&mut a, &mut b]);
    for number in 0..5 {
        assert_eq!(b.stack.receive(), Some(from_to(&a, &b, number)));
    }
    for number in 1..5 {
        assert_eq!(a.stack.receive(), Some(from_to(&b, &a, number)));
    }
    assert_eq!(a.network.seen().len() - handshakes, 8, "eight packets, and no handshake");
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn settings_and_counters_go_over_with_what_changes_after_the_copy() {
    let (mut a, mut b) = pair();
    let unknown = Ipv4Addr::new(10, 0, 0, 99);
    a.stack.send(&packet(a.inner, unknown, b"nobody"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(a.dropped("no-peer-for-destination"), 1);
    a.hand_over(at(2), |machine| assert_eq!(machine.set(at(2), "fwmark=7\nlisten_port=4000"), Reply::Done));
    assert_eq!(a.dropped("no-peer-for-destination"), 1);
    let shown = a.get(at(3));
    assert!(shown.contains("listen_port=4000\n") && shown.contains("fwmark=7\n"), "{shown}");
    assert_eq!(a.engine.udp().map(Udp::port), Some(4000));
    let before = shown;
    a.hand_over(at(3), |_| ());
    assert_eq!(a.get(at(3)), before);
}

/// What happens to an engine before it has peers.
type Meanwhile<'m> = &'m dyn Fn(&mut Machine, Now);

#[test]
fn what_waits_for_an_engine_that_knows_nothing_waits_until_it_has_peers() {
    let key = |machine: &mut Machine, port: u16, now| {
        let key = format!("private_key={}\nlisten_port={port}", machine.key.expose_hex().as_str());
        assert_eq!(machine.set(now, &key), Reply::Done);
    };
    let meanwhile: [Meanwhile<'_>; 5] = [
        &|a, now| key(a, PORT, now),
        &|a, now| key(a, 4001, now),
        &|a, now| assert_eq!(a.set(now, "fwmark=7"), Reply::Done),
        &|a, now| a.hand_over(now, |_| ()),
        &|a, now| {
            a.down();
            a.turn(now);
            a.up();
        },
    ];
    for step in meanwhile {
        let (mut a, mut b) = pair();
        a.stack.send(&from_to(&a, &b, 0));
        settle(at(1), &mut [&mut a, &mut b]);
        a.forget_everything(at(2));
        for number in 1..4 {
            a.stack.send(&from_to(&a, &b, number));
            settle(at(2 + u64::from(number)), &mut [&mut a, &mut b]);
        }
        assert!(a.stack.receive().is_none(), "nothing is refused");
        step(&mut a, at(6));
        settle(at(6), &mut [&mut a, &mut b]);
        assert!(a.stack.receive().is_none(), "nor without peers");
        a.configure(at(7), &[&b]);
        settle(at(7), &mut [&mut a, &mut b]);
        for number in 0..4 {
            assert_eq!(b.stack.receive(), Some(from_to(&a, &b, number)));
        }
        assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
    }
}

#[test]
fn packets_wait_until_they_are_read() {
    let (mut a, mut b) = pair();
    a.hand_over(at(2), |_| ());
    a.engine.note_stopped(at(1).monotonic);
    assert!(a.engine.note_reading(at(2).monotonic));
    assert_eq!(a.engine.waited, Some(Duration::from_secs(1)));

    a.forget_everything(at(4));
    a.engine.note_stopped(at(3).monotonic);
    assert!(!a.engine.note_reading(at(4).monotonic), "it awaits peers");
    a.turn(at(5));
    assert_eq!(a.engine.waited, None);
    a.configure(at(7), &[&b]);
    settle(at(7), &mut [&mut a, &mut b]);
    assert_eq!(a.engine.waited, Some(Duration::from_secs(4)));
}

#[test]
fn what_waits_for_an_engine_that_gets_no_peers_is_refused() {
    let (mut a, b) = pair();
    a.forget_everything(at(2));
    a.stack.send(&from_to(&a, &b, 1));
    let NextTurn::Wait(Some(due)) = a.turn(at(3)) else { panic!("it says when") };
    assert_eq!(due, at(32).monotonic);
    assert!(a.stack.receive().is_none());
    a.turn(at(32));
    assert!(a.stack.receive().is_some(), "an error");
    assert_eq!(a.dropped("no-peer-for-destination"), 1);
}

#[test]
fn an_engine_that_stops_late_drops_what_its_workers_have_punted() {
    for (is_late, dropped) in [(false, 0), (true, 20 - HANDSHAKES_AT_ONCE as u64)] {
        let (mut a, mut b) = pair();
        a.stack.send(&from_to(&a, &b, 0));
        settle(at(1), &mut [&mut a, &mut b]);
        let seen = a.network.seen();
        let (_, _, initiation) = seen.iter().find(|(_, _, datagram)| datagram[0] == 1).expect("one");
        for _ in 0..20 {
            inject(&a.network, a.engine_address(), b.endpoint(), initiation);
        }
        b.carry(at(2), 0);
        b.engine.stop(at(2), || is_late).expect("memory does not fail");
        assert_eq!(b.dropped("forgotten"), dropped);
        b.engine.resume();
        b.stack.send(&from_to(&b, &a, 1));
        settle(at(2), &mut [&mut a, &mut b]);
        assert_eq!(a.stack.receive(), Some(from_to(&b, &a, 1)));
    }
}

#[test]
fn an_engine_that_resumes_goes_on_as_if_nothing_had_been() {
    let (mut a, mut b) = pair();
    for number in 0..4 {
        a.stack.send(&from_to(&a, &b, number));
        let now = at(1 + u64::from(number));
        let copied = a.engine.snapshot(InterfaceState::default());
        a.engine.stop(now, || false).expect("memory does not fail");
        drop(a.engine.changes_since(&copied, InterfaceState::default()));
        a.engine.resume();
        settle(now, &mut [&mut a, &mut b]);
        assert_eq!(b.stack.receive(), Some(from_to(&a, &b, number)));
    }
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn an_interface_that_is_down_stays_down_and_comes_up_with_the_same_port() {
    let (mut a, mut b) = pair();
    assert_eq!(a.set(at(1), "listen_port=0"), Reply::Done);
    a.turn(at(1));
    let port = a.engine.udp().map(Udp::port);
    a.down();
    a.turn(at(2));
    a.hand_over(at(3), |_| ());
    a.turn(at(3));
    assert!(a.engine.udp().is_none());
    a.up();
    settle(at(4), &mut [&mut a, &mut b]);
    assert_eq!(a.engine.udp().map(Udp::port), port);
}
