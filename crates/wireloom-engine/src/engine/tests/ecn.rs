//! Congestion notification across the tunnel, and the class of what is sent.

use super::*;
use crate::packet::ecn::Ecn;

const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
/// Expedited forwarding (RFC 3246), which the tunnel does not show.
const EF: u8 = 0xb8;

/// Two machines with a session, between which IPv6 is routed as well.
fn connected() -> (Machine, Machine) {
    let (mut a, mut b) = pair();
    let keys = [b.public_key(), a.public_key()];
    for (machine, peer) in [&mut a, &mut b].into_iter().zip(keys) {
        let lines = format!("public_key={}\nallowed_ip=::/0", peer.to_hex());
        assert_eq!(machine.set(at(0), &lines), Reply::Done);
    }
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert!(b.stack.receive().is_some());
    (a, b)
}

/// A stream over either family with this congestion notification.
fn stream(from: &Machine, to: &Machine, is_v4: bool, payload: usize, ecn: Ecn) -> Stream {
    let v6 = |machine: &Machine| machine.inner.to_ipv6_mapped();
    let stream = if is_v4 {
        Stream::between(from.inner, to.inner, payload)
    } else {
        Stream::between_v6(v6(from), v6(to), payload)
    };
    stream.with_class(EF | ecn as u8)
}

#[test]
fn the_wire_shows_the_congestion_notification_of_each_packet_and_nothing_else_of_its_class() {
    let (mut a, mut b) = connected();
    let before = a.network.seen().len();
    assert_eq!(a.network.classes()[..2], [0x88, 0x88], "the handshake");
    for is_v4 in [true, false] {
        for ecn in ALL {
            a.stack.send(&stream(&a, &b, is_v4, 100, ecn).bytes(false));
        }
        let whole = stream(&a, &b, is_v4, 3000, Ecn::Ect0);
        a.stack.send_super(whole.super_header(1000, 0), &whole.bytes(true));
    }
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(a.network.classes()[before..], [0, 1, 2, 3, 2, 2, 2].repeat(2));
    // Those that can be joined are: a packet that differs in the field cannot.
    let joined =
        std::iter::from_fn(|| b.stack.receive_super()).map(|(header, _)| header.segmentation.is_some());
    assert_eq!(joined.collect::<Vec<_>>(), [false, false, false, false, true].repeat(2));
    // A keepalive has no packet.
    let passed = a.network.classes().len();
    for second in 2..30 {
        settle(at(second), &mut [&mut a, &mut b]);
    }
    assert!(a.network.classes().len() > passed);
    assert!(a.network.classes()[passed..].iter().all(|class| *class == 0));
}

#[test]
fn packets_that_wait_for_a_session_show_their_congestion_notification() {
    let (mut a, mut b) = pair();
    for ecn in ALL {
        a.stack.send(&stream(&a, &b, true, 100, ecn).bytes(false));
    }
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(std::iter::from_fn(|| b.stack.receive()).count(), 4);
    assert_eq!(a.network.classes()[..6], [0x88, 0x88, 0, 1, 2, 3]);
}

#[test]
fn a_mark_of_the_network_reaches_the_packet_or_drops_it() {
    let (mut a, mut b) = connected();
    let mut lost = 0;
    for outer in ALL {
        a.network.mark(Some(outer));
        for (is_v4, inner) in [true, false].into_iter().flat_map(|is_v4| ALL.map(|inner| (is_v4, inner))) {
            a.stack.send(&stream(&a, &b, is_v4, 100, inner).bytes(false));
            settle(at(1), &mut [&mut a, &mut b]);
            let expected = match (inner, outer) {
                (Ecn::NotEct, Ecn::Ce) => None,
                (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) => Some(Ecn::Ce),
                (Ecn::Ect0, Ecn::Ect1) => Some(Ecn::Ect1),
                _ => Some(inner),
            };
            lost += u64::from(expected.is_none());
            let expected = expected.map(|ecn| stream(&a, &b, is_v4, 100, ecn).bytes(false));
            assert_eq!(b.stack.receive(), expected, "{inner:?} in {outer:?}");
        }
    }
    assert_eq!((b.dropped("congested"), b.all_dropped()), (lost, lost));
}
