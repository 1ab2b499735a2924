//! The control thread: what it does holds up no packets, and what it does in a turn is bounded.

use super::*;

/// Two machines with a session, the first of which has another peer that does not answer.
fn pair_and_a_dead_peer() -> (Machine, Machine, Ipv4Addr) {
    let (mut a, mut b) = pair();
    let dead = PrivateKey::from_bytes([77; 32]).public_key().to_hex();
    let lines = format!("public_key={dead}\nendpoint=192.0.2.77:1\nallowed_ip=10.0.0.77/32");
    assert_eq!(a.set(at(1), &lines), Reply::Done);
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert!(b.stack.receive().is_some());
    (a, b, Ipv4Addr::new(10, 0, 0, 77))
}

#[test]
fn packets_for_a_dead_peer_hold_up_nobody_even_if_the_control_thread_does_nothing() {
    let (a, mut b, dead) = pair_and_a_dead_peer();
    let before = a.network.seen().len();
    for number in 0..100_u8 {
        a.stack.send(&packet(a.inner, dead, &[number; 500]));
        a.stack.send(&packet(a.inner, b.inner, &[number; 500]));
    }
    while a.carry(at(2), 0) == Some(Backlog::More) {}
    assert_eq!(a.network.seen().len() - before, 100);
    b.turn(at(2));
    let arrived: Vec<_> = std::iter::from_fn(|| b.stack.receive()).map(|packet| packet[20]).collect();
    assert_eq!(arrived, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_burst_for_a_dead_peer_tells_the_control_thread_once() {
    let (mut a, _b, dead) = pair_and_a_dead_peer();
    for _ in 0..1000 {
        a.stack.send(&packet(a.inner, dead, &[0; 100]));
    }
    while a.carry(at(2), 0) == Some(Backlog::More) {}
    let punted = &a.engine.workers.punted()[0];
    let signals: Vec<_> = std::iter::from_fn(|| punted.next_signal()).collect();
    assert_eq!(signals.len(), 1);
    a.engine.device.handle_signal(at(2), signals[0]);
    assert_eq!(a.dropped("queue-full"), 1000 - 128);
    // They are dropped when the handshake is given up, and counted.
    a.stack.send(&packet(a.inner, dead, &[0; 100]));
    for second in (3..=200).step_by(3) {
        a.turn(at(second));
    }
    assert_eq!(a.all_dropped(), 1001, "{}", a.engine.drops());
}

/// Many peers of one machine, all at one address.
struct Crowd {
    network: MemoryNetwork,
    keys: Vec<PrivateKey>,
    /// How many of the datagrams that were seen it has looked at.
    looked_at: usize,
}

impl Crowd {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    /// Makes `count` peers of the machine. It greets them at once.
    fn of(machine: &mut Machine, count: u16) -> Self {
        let keys = (1..=count).map(|number| {
            let mut key = [7; 32];
            // The lowest bits of a private key do not count.
            key[1..3].copy_from_slice(&number.to_le_bytes());
            PrivateKey::from_bytes(key)
        });
        let keys: Vec<_> = keys.collect();
        let mut lines = format!("private_key={}\n", machine.key.expose_hex().as_str());
        for (key, port) in keys.iter().zip(1..) {
            let key = key.public_key().to_hex();
            let endpoint = SocketAddr::from((Self::ADDRESS, port));
            lines += &format!("public_key={key}\nendpoint={endpoint}\npersistent_keepalive_interval=25\n");
        }
        assert_eq!(machine.set(at(0), &lines), Reply::Done);
        machine.up();
        let network = machine.network.host(Self::ADDRESS.into());
        Self { network, keys, looked_at: 0 }
    }

    /// Answers the initiations that were sent since the last time.
    fn answer(&mut self, now: Now, to: &Machine) {
        for (from, reached, datagram) in self.network.seen().split_off(self.looked_at) {
            self.looked_at += 1;
            if (reached.ip(), datagram[0]) != (Self::ADDRESS.into(), 1) {
                continue;
            }
            // It has no load: it is a device of its own for each.
            let mut device = Device::new(&[9; 32]);
            let key = self.keys[usize::from(reached.port()) - 1].clone();
            let configured = device.configure(now, |configuration| {
                configuration.set_private_key(Some(key));
                configuration.add_peer(to.public_key()).map(drop)
            });
            configured.expect("it is another key");
            device.handle_handshake(now, from.into(), &datagram).expect("it is for this key");
            let mut udp = self.network.bind(reached.port(), 0).expect("a free port");
            let mut batch = OutboundBatch::default();
            batch.push_transmit(&device.poll_transmit(now).expect("a response"));
            udp.send(batch.seal(), &mut Patience::default());
        }
    }
}

/// The initiations that were sent so far.
fn initiations(machine: &Machine) -> usize {
    machine.network.seen().iter().filter(|(_, _, datagram)| datagram[0] == 1).count()
}

#[test]
fn many_peers_that_answer_at_once_get_their_sessions_by_one_initiation_each() {
    const PEERS: u16 = 600;
    let mut a = Machine::on(&network(), 1);
    let mut crowd = Crowd::of(&mut a, PEERS);
    let mut now = at(0);
    for _ in 0..2 * PEERS / 8 {
        a.turn(now);
        crowd.answer(now, &a);
        now.monotonic = now.monotonic + DUE_PAUSE;
    }
    assert_eq!(a.dropped("cookie-required"), 0);
    assert!(a.engine.device.peers().all(|peer| peer.last_handshake.is_some()), "{}", a.engine.drops());
    assert_eq!((initiations(&a), a.all_dropped()), (usize::from(PEERS), 0));
}

#[test]
fn greetings_to_many_peers_are_sent_eight_at_a_time() {
    const PEERS: usize = 200;
    let mut a = Machine::on(&network(), 1);
    let mut crowd = Crowd::of(&mut a, PEERS as u16);
    let mut now = at(0);
    while initiations(&a) < PEERS {
        let before = initiations(&a);
        let next = a.control(now);
        let sent = initiations(&a) - before;
        assert!((1..=8).contains(&sent), "{sent} at once");
        let NextTurn::Wait(Some(at)) = next else { panic!("{next:?}") };
        assert!(initiations(&a) == PEERS || at == now.monotonic + DUE_PAUSE, "{at:?}");
        // Answers and whatever else wakes the control thread meanwhile do not cut the pause short.
        for quarter in 0..4 {
            let early = Now { monotonic: now.monotonic + DUE_PAUSE * quarter / 4, ..now };
            crowd.answer(early, &a);
            while a.turn(early) == NextTurn::Now {}
        }
        assert_eq!(initiations(&a) - before, sent);
        now.monotonic = at;
    }
}

#[test]
fn a_peer_that_packets_wait_for_is_greeted_amid_greetings_to_many() {
    let mut a = Machine::on(&network(), 1);
    Crowd::of(&mut a, 200);
    a.control(at(0));
    let key = PrivateKey::from_bytes([77; 32]).public_key().to_hex();
    let lines = format!("public_key={key}\nendpoint=192.0.2.77:1\nallowed_ip=10.0.0.77/32");
    assert_eq!(a.set(at(0), &lines), Reply::Done);
    let before = initiations(&a);
    a.stack.send(&packet(a.inner, Ipv4Addr::new(10, 0, 0, 77), b"waits"));
    a.turn(at(0));
    assert_eq!(initiations(&a) - before, 1, "and nobody else");
}

#[test]
fn a_peer_is_answered_at_once_amid_a_flood_from_forged_addresses() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"hello"));
    settle(at(1), &mut [&mut a, &mut b]);
    let genuine =
        a.network.seen().into_iter().find(|(_, to, datagram)| *to == b.endpoint() && datagram[0] == 1);
    let genuine = genuine.expect("the session began with one").2;
    // The flood has codes that only somebody who knows the public key can make, and is a replay.
    let flood = |count: u32| {
        for number in 0..count {
            let stranger = Ipv4Addr::from_bits(0xc633_6400 + number % 5000);
            inject(&b.network, stranger.into(), b.endpoint(), &genuine);
        }
    };
    flood(3000);
    a.down();
    a.turn(at(10));
    a.up();
    a.stack.send(&packet(a.inner, b.inner, b"a new session"));
    a.turn(at(10));
    flood(3000);
    while b.carry(at(10), 0) == Some(Backlog::More) {}
    let busy = b.dropped("device-busy");
    assert!(busy > 5000, "{busy}");
    let before = b.network.seen().len();
    b.control(at(10));
    let is_answer = |(from, to, datagram): &(SocketAddr, SocketAddr, Vec<u8>)| {
        *from == b.endpoint() && *to == a.endpoint() && datagram[0] == 2
    };
    assert!(b.network.seen()[before..].iter().any(is_answer));
}

/// Injects messages that are no handshakes but look like ones, from many strangers.
fn strangers(to: &Machine, count: u32) {
    let mut initiation = [0; 148];
    initiation[0] = 1;
    for number in 0..count {
        let stranger = Ipv4Addr::from_bits(0xc633_6400 + number);
        inject(&to.network, stranger.into(), to.endpoint(), &initiation);
    }
}

#[test]
fn a_turn_answers_eight_handshakes_however_many_queues_there_are() {
    const QUEUES: usize = 8;
    const FLOOD: u32 = 401;
    let interface = crate::tun::memory_tun_of(std::num::NonZero::new(QUEUES).expect("not zero"));
    let mut a = Machine::with(&network(), 1, Mode::STANDARD, interface);
    a.configure(at(0), &[]);
    a.up();
    a.turn(at(0));
    strangers(&a, FLOOD);
    for queue in 0..QUEUES {
        while a.carry(at(1), queue) == Some(Backlog::More) {}
    }
    for answered in (0..FLOOD.into()).step_by(8) {
        assert_eq!(a.all_dropped(), answered);
        let is_last = answered + 8 >= FLOOD.into();
        assert_eq!(a.control(at(1)) == NextTurn::Now, !is_last);
    }
    assert_eq!(a.all_dropped(), FLOOD.into(), "each of them has been answered");
}

#[test]
fn a_turn_that_answers_all_there_is_leaves_no_backlog() {
    let mut a = Machine::on(&network(), 1);
    a.configure(at(0), &[]);
    a.up();
    a.turn(at(0));
    strangers(&a, 8);
    assert_ne!(a.turn(at(1)), NextTurn::Now);
    assert_eq!(a.all_dropped(), 8);
}

#[test]
fn a_control_thread_that_is_late_keeps_the_order_of_packets_that_wait_for_a_session() {
    let (mut a, mut b) = pair();
    for number in 0..20_u8 {
        a.stack.send(&packet(a.inner, b.inner, &[number]));
        a.carry(at(1), 0);
        match number {
            3 => drop(a.control(at(1))),
            6 => drop(b.turn(at(1))),
            // The response has come, and is not handled yet.
            9 => drop(a.carry(at(1), 0)),
            15 => drop(a.control(at(1))),
            _ => {}
        }
    }
    settle(at(1), &mut [&mut a, &mut b]);
    let arrived: Vec<_> = std::iter::from_fn(|| b.stack.receive()).map(|packet| packet[20]).collect();
    assert_eq!(arrived, (0..20).collect::<Vec<_>>());
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}
