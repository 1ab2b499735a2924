//! Fairness: a flood in one place does not hold up traffic elsewhere.

use super::*;
use crate::packet::checksum::checksum;

/// Three machines with sessions: a hub, and two peers of the hub only.
fn star() -> [Machine; 3] {
    let network = network();
    let [mut hub, mut x, mut y] = [1, 2, 3].map(|number| Machine::on(&network, number));
    hub.configure(at(0), &[&x, &y]);
    x.configure(at(0), &[&hub]);
    y.configure(at(0), &[&hub]);
    for machine in [&hub, &x, &y] {
        machine.up();
    }
    settle(at(0), &mut [&mut hub, &mut x, &mut y]);
    for leaf in [&x, &y] {
        leaf.stack.send(&packet(leaf.inner, hub.inner, b"hello"));
        hub.stack.send(&packet(hub.inner, leaf.inner, b"hello"));
    }
    settle(at(1), &mut [&mut hub, &mut x, &mut y]);
    for machine in [&hub, &x, &y] {
        while machine.stack.receive().is_some() {}
    }
    [hub, x, y]
}

/// More packets than one turn takes.
const FLOOD: usize = 5000;

#[test]
fn a_flood_from_one_peer_does_not_hold_up_packets_to_another() {
    let [mut hub, mut x, mut y] = star();
    for _ in 0..FLOOD {
        x.stack.send(&packet(x.inner, hub.inner, &[0; 1000]));
    }
    while x.turn(at(2)) == NextTurn::Now {}
    hub.stack.send(&packet(hub.inner, y.inner, b"to another"));
    assert_eq!(hub.turn(at(2)), NextTurn::Now, "some of the flood is left");
    y.turn(at(2));
    assert!(y.stack.receive().is_some_and(|packet| packet.ends_with(b"to another")));
}

#[test]
fn a_flood_to_one_peer_does_not_hold_up_packets_from_another() {
    let [mut hub, x, mut y] = star();
    for _ in 0..FLOOD {
        hub.stack.send(&packet(hub.inner, x.inner, &[0; 1000]));
    }
    y.stack.send(&packet(y.inner, hub.inner, b"from another"));
    y.turn(at(2));
    assert_eq!(hub.turn(at(2)), NextTurn::Now, "some of the flood is left");
    assert!(hub.stack.receive().is_some_and(|packet| packet.ends_with(b"from another")));
}

#[test]
fn a_flood_for_a_peer_without_a_session_is_bounded_and_does_not_hold_up_others() {
    let [mut hub, mut x, mut y] = star();
    // x is away, and the hub has lost all its sessions.
    x.down();
    hub.down();
    hub.turn(at(2));
    hub.up();
    hub.turn(at(2));
    for _ in 0..FLOOD {
        hub.stack.send(&packet(hub.inner, x.inner, &[0; 1000]));
    }
    while hub.turn(at(2)) == NextTurn::Now {}
    hub.stack.send(&packet(hub.inner, y.inner, b"to another"));
    settle(at(2), &mut [&mut hub, &mut y]);
    assert!(y.stack.receive().is_some_and(|packet| packet.ends_with(b"to another")));
    // The latest packets for x were kept, as many as the kernel keeps.
    x.up();
    x.turn(at(8));
    settle(at(8), &mut [&mut hub, &mut x, &mut y]);
    assert_eq!(std::iter::from_fn(|| x.stack.receive()).count(), 128);
}

/// The processor is so slow that it answers only a few handshakes in a turn of 130 ms.
#[test]
fn a_slow_machine_that_falls_behind_with_handshakes_demands_cookies() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"hello"));
    settle(at(1), &mut [&mut a, &mut b]);
    let seen = b.network.seen();
    let to_b =
        |(_, to, datagram): &&(SocketAddr, SocketAddr, Vec<u8>)| *to == b.endpoint() && datagram[0] == 1;
    let initiation = seen.iter().find(to_b).expect("the session began with one").2.clone();
    let stranger = IpAddr::from([192, 0, 2, 99]);
    for _ in 0..400 {
        inject(&b.network, stranger, b.endpoint(), &initiation);
    }
    for turn in 0..5 {
        let begin = at(2);
        let monotonic = begin.monotonic + Duration::from_millis(130 * turn);
        assert_eq!(
            b.turn(Now { monotonic, ..begin }),
            NextTurn::Now,
            "more datagrams wait than a turn takes"
        );
        assert!(turn > 1 || b.dropped("cookie-required") == 0, "turn {turn}");
    }
    assert!(b.dropped("cookie-required") > 0);
}

#[test]
fn a_flood_without_a_peer_does_not_hold_up_packets_from_a_peer() {
    let [mut hub, x, mut y] = star();
    let nobody = Ipv4Addr::new(10, 7, 7, 7);
    for _ in 0..FLOOD {
        hub.stack.send(&packet(hub.inner, nobody, &[0; 100]));
    }
    y.stack.send(&packet(y.inner, hub.inner, b"from another"));
    y.turn(at(2));
    assert_eq!(hub.turn(at(2)), NextTurn::Now, "some of the flood is left");
    assert!(hub.stack.receive().is_some_and(|packet| packet.ends_with(b"from another")));
    while hub.turn(at(2)) == NextTurn::Now {}
    assert_eq!(hub.dropped("no-peer-for-destination"), FLOOD as u64);
    assert_eq!(x.all_dropped() + y.all_dropped(), 0);
}

/// Keeps the queue of a machine standing with super-packets of this class. Returns how many segments it dropped, how
/// many it marked as having met congestion, and how many are missing at the other end.
fn stand(class: u8) -> (u64, usize, usize) {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    let _ = b.stack.receive();
    let stream = Stream::between(a.inner, b.inner, 60_000).with_class(class);
    let begin = at(2);
    const TURNS: u64 = 20;
    for turn in 0..TURNS {
        // More than a turn sends, so the queue is never empty.
        for _ in 0..8 {
            a.stack.send_super(stream.super_header(1000, 0), &stream.bytes(true));
        }
        let monotonic = begin.monotonic + Duration::from_millis(10 * turn);
        assert_eq!(a.turn(Now { monotonic, ..begin }), NextTurn::Now);
    }
    settle(at(3), &mut [&mut a, &mut b]);
    let dropped = a.dropped("queue-stood");
    assert_eq!(a.all_dropped(), dropped);
    let arrived: Vec<_> = std::iter::from_fn(|| b.stack.receive()).collect();
    assert!(arrived.iter().all(|packet| checksum(&[&packet[..20]]) == 0));
    let marked = arrived.iter().filter(|packet| packet[1] == class | 0b11).count();
    (dropped, marked, TURNS as usize * 8 * 60 - arrived.len())
}

#[test]
fn a_standing_queue_loses_single_segments() {
    let (dropped, _, missing) = stand(0);
    assert!((1..=4).contains(&dropped), "{dropped}");
    assert_eq!(missing as u64, dropped);
}

#[test]
fn a_standing_queue_marks_single_segments_where_it_may() {
    for class in [0b01, 0xb8 | 0b10] {
        let (dropped, marked, missing) = stand(class);
        assert!((1..=4).contains(&marked), "{marked}");
        assert_eq!((dropped, missing), (0, 0));
    }
}
