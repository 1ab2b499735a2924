//! A tunnel between Wireloom and another implementation, whichever begins the handshake: Debian's wireguard-go, and
//! the kernel's WireGuard where there is one (feature `kernel-wireguard`).

#[cfg(feature = "slow")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use Program::Wireloom;
use wireloom_lab::{Capture, Content, PATIENCE, at_this_pace, until};
use wireloom_plan::routing::Family;

use crate::{
    device::handover::nobody_notices,
    fixtures::{
        background::while_repeating,
        transfer::uninterrupted,
        tunnel::{PORT, Program, Tunnel, all_answered, inner, ping},
    },
};

/// A module of tests with this program at the other end.
macro_rules! tests_with {
    ($module:ident, $other:ident) => {
        mod $module {
            use super::Program::$other;

            #[test]
            fn a_handshake_and_pings_cross_over_ipv4() {
                super::over_ipv4($other);
            }

            #[test]
            fn a_handshake_and_pings_cross_over_ipv6() {
                super::over_ipv6($other);
            }

            #[test]
            fn pings_cross_once_both_ends_have_the_preshared_key() {
                super::pings_cross_once_both_ends_have_the_preshared_key($other);
            }

            #[test]
            fn both_follow_the_other_to_another_port() {
                super::both_follow_the_other_to_another_port($other);
            }

            #[test]
            fn both_follow_the_other_to_another_address_family() {
                super::both_follow_the_other_to_another_address_family($other);
            }

            #[test]
            fn large_packets_cross_in_both_directions() {
                super::large_packets_cross_in_both_directions($other);
            }

            #[test]
            fn under_load_it_demands_a_cookie_of_wireloom_and_gets_it() {
                super::a_responder_under_load_demands_a_cookie_and_gets_it(super::Wireloom, $other);
            }

            #[test]
            fn wireloom_under_load_demands_a_cookie_of_it_and_gets_it() {
                super::a_responder_under_load_demands_a_cookie_and_gets_it($other, super::Wireloom);
            }

            #[test]
            fn a_peer_that_starts_again_is_heard_again() {
                super::a_peer_that_starts_again_is_heard_again($other);
            }

            #[test]
            fn it_does_not_notice_that_its_peer_hands_over() {
                super::it_does_not_notice_that_its_peer_hands_over($other);
            }

            #[cfg(feature = "slow")]
            #[test]
            fn a_session_is_renewed_without_losing_a_packet() {
                super::a_session_is_renewed_without_losing_a_packet($other);
            }
        }
    };
}

tests_with!(wireguard_go, WireguardGo);
#[cfg(feature = "kernel-wireguard")]
tests_with!(kernel, Kernel);

fn it_does_not_notice_that_its_peer_hands_over(other: Program) {
    let tunnel = shake_hands([Wireloom, other], Family::V4);
    tunnel.set_endpoint(1, 0, Family::V4);
    nobody_notices(&tunnel.lab, true);
}

fn either_begins(other: Program) -> [[Program; 2]; 2] {
    [[Wireloom, other], [other, Wireloom]]
}

/// Sets up a tunnel over this family: the first node begins the handshake, then the second sends as well.
fn shake_hands(programs: [Program; 2], family: Family) -> Tunnel {
    let tunnel = Tunnel::new(&programs);
    let capture = Capture::open(tunnel.lab.underlay()).unwrap();
    tunnel.set_endpoint(0, 1, family);
    tunnel.settle();
    tunnel.settle_from(1, 0);
    // The responder has learnt the initiator's endpoint.
    assert_eq!(tunnel.shown(1, "endpoints"), tunnel.endpoint(0, family).to_string());
    assert!(tunnel.handshake(0) > 0 && tunnel.handshake(1) > 0);
    let packets = capture.drain().unwrap();
    let plaintext: Vec<_> = packets
        .iter()
        .filter(|packet| !matches!(packet.content, Content::WireGuard { .. } | Content::Link))
        .collect();
    assert!(plaintext.is_empty(), "{plaintext:?}");
    let count = |kind| {
        let of_kind =
            |content: &Content| matches!(content, Content::WireGuard { message, .. } if *message == kind);
        packets.iter().filter(|packet| of_kind(&packet.content)).count()
    };
    assert_eq!((count(1), count(2), count(3)), (1, 1, 0), "one initiation, one response, no cookie");
    tunnel
}

fn over_ipv4(other: Program) {
    for programs in either_begins(other) {
        shake_hands(programs, Family::V4);
    }
}

fn over_ipv6(other: Program) {
    for programs in either_begins(other) {
        shake_hands(programs, Family::V6);
    }
}

fn pings_cross_once_both_ends_have_the_preshared_key(other: Program) {
    for programs in either_begins(other) {
        let tunnel = Tunnel::new(&programs);
        let secret = tunnel.node(0).run("wg genpsk").unwrap();
        for place in [0, 1] {
            tunnel.node(place).host.space.write("/run/psk", &secret).unwrap();
        }
        tunnel.set_peer(0, 1, "preshared-key /run/psk");
        tunnel.set_endpoint(0, 1, Family::V4);
        for address in inner(1) {
            assert!(!ping(tunnel.node(0), address), "the keys differ");
        }
        assert_eq!((tunnel.handshake(0), tunnel.handshake(1)), (0, 0));
        tunnel.set_peer(1, 0, "preshared-key /run/psk");
        tunnel.settle();
        tunnel.settle_from(1, 0);
    }
}

fn both_follow_the_other_to_another_port(other: Program) {
    for programs in either_begins(other) {
        let tunnel = shake_hands(programs, Family::V4);
        for (mover, follower, port) in [(0, 1, 2000), (1, 0, 3000)] {
            tunnel.node(mover).run(&format!("wg set wg0 listen-port {port}")).unwrap();
            tunnel.settle_from(mover, follower);
            let moved = SocketAddr::new(tunnel.endpoint(mover, Family::V4).ip(), port);
            assert_eq!(tunnel.shown(follower, "endpoints"), moved.to_string(), "{programs:?}");
            tunnel.settle_from(follower, mover);
        }
    }
}

fn both_follow_the_other_to_another_address_family(other: Program) {
    for programs in either_begins(other) {
        let tunnel = shake_hands(programs, Family::V4);
        tunnel.set_endpoint(0, 1, Family::V6);
        tunnel.settle();
        assert_eq!(tunnel.shown(1, "endpoints"), tunnel.endpoint(0, Family::V6).to_string());
        tunnel.settle_from(1, 0);
    }
}

fn large_packets_cross_in_both_directions(other: Program) {
    for programs in either_begins(other) {
        let tunnel = shake_hands(programs, Family::V4);
        for (from, to) in [(0, 1), (1, 0)] {
            let [v4, v6] = inner(to);
            // First packets of exactly the MTU, 1,420 bytes with their headers; then some to be fragmented.
            for (address, size) in [(v4, 1392), (v6, 1372), (v4, 20_000), (v6, 20_000)] {
                all_answered(tunnel.node(from), &[format!("-c 3 -i 0.01 -s {size} {address}")], 3);
            }
        }
    }
}

/// A genuine handshake initiation for the first node. Its MAC1 is valid, so each copy makes the responder work. The
/// third node makes it, and sends it to a socket of this test.
fn initiation_for_the_first_node(tunnel: &Tunnel) -> Vec<u8> {
    let space = &tunnel.node(2).host.space;
    let trap = space.inside(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    trap.set_read_timeout(Some(at_this_pace(PATIENCE))).unwrap();
    let there = trap.local_addr().unwrap();
    tunnel.set_peer(2, 0, &format!("endpoint {there} persistent-keepalive 1"));
    let mut datagram = [0; 2048];
    let (len, _) = uninterrupted(|| trap.recv_from(&mut datagram)).unwrap();
    assert_eq!((datagram[0], len), (1, 148));
    tunnel.set_peer(2, 0, "remove");
    datagram[..len].to_vec()
}

fn a_responder_under_load_demands_a_cookie_and_gets_it(initiator: Program, responder: Program) {
    const TRIES: usize = 5;
    let tunnel = Tunnel::new(&[responder, initiator, Wireloom]);
    let initiation = initiation_for_the_first_node(&tunnel);
    let victim = tunnel.endpoint(0, Family::V4);
    let flooder = tunnel.node(2).host.space.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    flooder.set_nonblocking(true).unwrap();
    let flood = || {
        for _ in 0..256 {
            // What does not fit into the queues is lost, as in any flood.
            let _ = flooder.send_to(&initiation, victim);
        }
        thread::sleep(Duration::from_millis(50));
    };
    let [v4, v6] = inner(0);
    let handshake = || {
        let mut datagram = [0; 2048];
        while flooder.recv_from(&mut datagram).is_ok() {}
        until(PATIENCE, &format!("a cookie reply of {responder:?} to the flood"), || {
            let received = flooder.recv_from(&mut datagram);
            received.is_ok_and(|(len, _)| datagram[0] == 3 && len == 64).then_some(())
        })
        .unwrap();
        // What arrives at the initiator: the flood on the underlay would overflow a capture there.
        let capture = Capture::open(&tunnel.node(1).host.space).unwrap();
        tunnel.set_peer(1, 0, &format!("allowed-ips {v4}/32,{v6}/128"));
        tunnel.set_endpoint(1, 0, Family::V4);
        let own = tunnel.endpoint(1, Family::V4).ip();
        let mut to_initiator = Vec::new();
        until(PATIENCE, &format!("a handshake with {responder:?} under load"), || {
            let _ = ping(tunnel.node(1), v4);
            let done = tunnel.handshake(1) > 0;
            to_initiator.extend(capture.drain().unwrap().into_iter().filter_map(
                |packet| match packet.content {
                    Content::WireGuard { message, .. } if packet.destination == own => Some(message),
                    _ => None,
                },
            ));
            done.then_some(())
        })
        .unwrap();
        let cookie = to_initiator.iter().position(|message| *message == 3);
        let response = to_initiator.iter().position(|message| *message == 2);
        if cookie.is_some() && response > cookie { Ok(()) } else { Err(to_initiator) }
    };
    while_repeating(flood, || {
        // Where the flood pauses for a second, because its thread has no processor, nobody is under load any more.
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            match handshake() {
                Ok(()) => return,
                Err(messages) => seen.push(messages),
            }
            tunnel.set_peer(1, 0, "remove");
        }
        panic!("{responder:?} answered without a cookie: {seen:?}");
    });
    tunnel.settle_from(1, 0);
    tunnel.settle_from(0, 1);
}

fn a_peer_that_starts_again_is_heard_again(other: Program) {
    for programs in either_begins(other) {
        let tunnel = shake_hands(programs, Family::V4);
        let node = tunnel.node(0);
        node.run("ip link delete wg0").unwrap();
        until(PATIENCE, "the old process to end", || {
            node.host.space.read("/run/wireguard/wg0.sock").is_ok_and(|file| file.is_none()).then_some(())
        })
        .unwrap();
        programs[0].start(node);
        let [v4, v6] = inner(1);
        let [own, _] = inner(0);
        node.run(&format!("wg set wg0 private-key /run/key listen-port {PORT}")).unwrap();
        node.run(&format!("ip address add {own}/24 dev wg0")).unwrap();
        node.run("ip link set wg0 up").unwrap();
        tunnel.set_peer(0, 1, &format!("allowed-ips {v4}/32,{v6}/128"));
        tunnel.set_endpoint(0, 1, Family::V4);
        until(PATIENCE, "a ping to the peer", || ping(node, v4).then_some(())).unwrap();
    }
}

/// In real time: a session is renewed after 120 s (REKEY_AFTER_TIME, section 6.1 of the WireGuard paper).
#[cfg(feature = "slow")]
fn a_session_is_renewed_without_losing_a_packet(other: Program) {
    let failed = &AtomicBool::new(false);
    thread::scope(|scope| {
        for programs in either_begins(other) {
            scope.spawn(move || {
                let tunnel = shake_hands(programs, Family::V4);
                let first = [tunnel.handshake(0), tunnel.handshake(1)];
                let address = inner(1)[0];
                // 130 s, in parts: a tunnel that dies fails the test soon, and the other tunnel's thread ends as well.
                let _failed = SetOnPanic(failed);
                for _ in 0..13 {
                    if failed.load(Ordering::Relaxed) {
                        return;
                    }
                    all_answered(tunnel.node(0), &[format!("-c 100 -i 0.1 {address}")], 100);
                }
                let second = [tunnel.handshake(0), tunnel.handshake(1)];
                for (first, second) in first.into_iter().zip(second) {
                    let late = at_this_pace(Duration::from_secs(6)).as_secs();
                    assert!((120..=120 + late).contains(&(second - first)), "{programs:?}: {first} {second}");
                }
            });
        }
    });
}

#[cfg(feature = "slow")]
struct SetOnPanic<'a>(&'a AtomicBool);

#[cfg(feature = "slow")]
impl Drop for SetOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}
