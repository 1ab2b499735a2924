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

#[test]
fn greetings_to_many_peers_are_sent_eight_at_a_time() {
    const PEERS: u32 = 200;
    let network = network();
    let mut a = Machine::on(&network, 1);
    let mut lines = format!("private_key={}\n", a.key.expose_hex().as_str());
    for number in 0..PEERS {
        let mut key = [7; 32];
        // The lowest bits of a private key do not count.
        key[1..5].copy_from_slice(&number.to_le_bytes());
        let key = PrivateKey::from_bytes(key).public_key().to_hex();
        lines += &format!(
            "public_key={key}\nendpoint=192.0.2.9:{}\npersistent_keepalive_interval=25\n",
            1 + number
        );
    }
    assert_eq!(a.set(at(0), &lines), Reply::Done);
    a.up();
    let mut now = at(0);
    while network.seen().len() < PEERS as usize {
        let before = network.seen().len();
        let next = a.control(now);
        let sent = network.seen().len() - before;
        assert!((1..=8).contains(&sent), "{sent} at once");
        let NextTurn::Wait(Some(at)) = next else { panic!("{next:?}") };
        let is_last = network.seen().len() == PEERS as usize;
        assert!(is_last || at == now.monotonic + DUE_PAUSE, "{at:?}");
        now.monotonic = at;
    }
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
