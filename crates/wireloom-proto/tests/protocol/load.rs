//! Handshakes under load: cookies, and the rate of each source.

use std::time::Duration;

use wireloom_proto::{DropReason, MessageKind, message};

use crate::world::{ALICE, BOB, LATENCY, World, address, sign_mac1};

const SECOND: Duration = Duration::from_secs(1);
/// Handshake messages within 250 ms that are not yet load.
const LOAD_THRESHOLD: u32 = 256;
/// How long load lasts after its last sign.
const LOAD_DURATION: Duration = SECOND;

/// Puts Bob under load with copies of an initiation.
fn flood(world: &mut World, initiation: &[u8]) {
    for _ in 0..=LOAD_THRESHOLD {
        world.deliver(address(99), address(2), initiation.to_vec());
    }
}

#[test]
fn under_load_a_cookie_is_demanded_and_then_accepted() {
    let mut world = World::pair();
    world.assert_connected();
    let old = world.seen_of(MessageKind::Initiation)[0].bytes.clone();
    world.run(300 * SECOND);
    world.seen.clear();
    world.nodes[BOB].drops.clear();

    flood(&mut world, &old);
    assert!(world.nodes[BOB].drops.iter().all(|drop| *drop == DropReason::StaleTimestamp));
    world.nodes[BOB].drops.clear();
    world.send(ALICE, BOB, b"hello");
    world.run(4 * LATENCY);
    assert_eq!(world.nodes[BOB].drops, [DropReason::CookieRequired]);
    assert_eq!(world.count(MessageKind::CookieReply), 1);
    assert_eq!(world.count(MessageKind::Response), 0);

    // The load goes on. The next initiation carries the cookie.
    while world.count(MessageKind::Initiation) < 2 {
        flood(&mut world, &old);
        world.run(SECOND / 10);
    }
    flood(&mut world, &old);
    world.run(SECOND / 10);
    assert_eq!(world.count(MessageKind::Response), 1);
    assert_eq!(world.take_received(BOB), [b"hello".to_vec()]);
}

/// Sixteen handshake messages arrive every 125 ms: no load, unless the device is too slow for them.
#[test]
fn a_device_with_a_lasting_backlog_demands_cookies_sooner() {
    let mut world = World::pair();
    let initiation = world.capture_initiation();
    for (backlog, demanded) in [(false, false), (true, true)] {
        for _ in 0..10 {
            for _ in 0..16 {
                world.deliver(address(99), address(2), initiation.clone());
            }
            let now = world.now();
            world.nodes[BOB].device.note_backlog(now, backlog);
            world.run(SECOND / 8);
        }
        let cookies = world.nodes[BOB].drops.contains(&DropReason::CookieRequired);
        assert_eq!(cookies, demanded);
    }
    // Without a backlog, the load ends after a second.
    let now = world.now();
    world.nodes[BOB].device.note_backlog(now, false);
    world.run(LOAD_DURATION);
    world.deliver(address(99), address(2), initiation);
    assert_eq!(world.nodes[BOB].drops.last(), Some(&DropReason::StaleTimestamp));
}

#[test]
fn under_load_strangers_get_cookie_replies_too() {
    let mut world = World::pair();
    let initiation = world.capture_initiation();
    flood(&mut world, &initiation);
    world.deliver(address(99), address(2), initiation);
    let reply = world.seen_of(MessageKind::CookieReply).pop().cloned().expect("a cookie reply");
    assert_eq!(reply.to, address(99));
    assert!(reply.bytes.len() < message::INITIATION_LEN, "no amplification");
}

#[test]
fn load_ends_after_a_second() {
    let mut world = World::pair();
    let initiation = world.capture_initiation();
    flood(&mut world, &initiation);
    world.deliver(address(99), address(2), initiation.clone());
    assert_eq!(world.nodes[BOB].drops.last(), Some(&DropReason::CookieRequired));
    world.run(LOAD_DURATION);
    world.deliver(address(99), address(2), initiation);
    assert_eq!(world.nodes[BOB].drops.last(), Some(&DropReason::StaleTimestamp));
}

/// Puts Bob under load and returns an initiation from Alice with a valid MAC2, which Bob has not seen yet.
fn initiation_with_cookie(world: &mut World) -> Vec<u8> {
    let first = world.capture_initiation();
    flood(world, &first);
    world.deliver(address(1), address(2), first);
    world.settle();
    assert_eq!(world.count(MessageKind::CookieReply), 1);
    world.unreachable = vec![address(2)];
    world.run(6 * SECOND);
    world.unreachable.clear();
    world.nodes[BOB].drops.clear();
    let initiation = world.seen_of(MessageKind::Initiation).pop().unwrap().bytes.clone();
    assert_ne!(initiation[132..], [0; 16], "MAC2");
    flood(world, &initiation);
    world.nodes[BOB].drops.clear();
    initiation
}

#[test]
fn a_cookie_is_valid_for_its_address_and_port_only() {
    let mut world = World::pair();
    let initiation = initiation_with_cookie(&mut world);
    let mut other_port = address(1);
    other_port.set_port(1);
    for from in [address(3), other_port] {
        world.deliver(from, address(2), initiation.clone());
        assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::CookieRequired));
    }
    world.deliver(address(1), address(2), initiation);
    assert_ne!(world.nodes[BOB].drops.pop(), Some(DropReason::CookieRequired));
}

#[test]
fn a_cookie_is_valid_until_its_secret_is_120_seconds_old() {
    let mut world = World::pair();
    let initiation = initiation_with_cookie(&mut world);
    world.unreachable = vec![address(1)];
    world.run(113 * SECOND);
    flood(&mut world, &initiation);
    world.deliver(address(1), address(2), initiation.clone());
    assert_ne!(world.nodes[BOB].drops.pop(), Some(DropReason::CookieRequired));
    world.run(2 * SECOND);
    flood(&mut world, &initiation);
    world.deliver(address(1), address(2), initiation);
    assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::CookieRequired));
}

#[test]
fn under_load_one_source_gets_5_answers_at_once_and_20_per_second() {
    let mut world = World::pair();
    let initiation = initiation_with_cookie(&mut world);
    let answered = |world: &mut World| {
        world.nodes[BOB].drops.clear();
        for _ in 0..50 {
            world.deliver(address(1), address(2), initiation.clone());
        }
        let limited = |drop: &&DropReason| **drop == DropReason::RateLimited;
        50 - world.nodes[BOB].drops.iter().filter(limited).count()
    };
    assert_eq!(answered(&mut world), 5);
    assert_eq!(answered(&mut world), 0);
    world.run(SECOND / 10);
    flood(&mut world, &initiation);
    assert_eq!(answered(&mut world), 2);
}

/// Bob is under load, and begins a handshake. Returns Alice's response, which he has not got.
fn response_under_load(world: &mut World) -> Vec<u8> {
    world.assert_connected();
    let old = world.seen_of(MessageKind::Initiation)[0].bytes.clone();
    world.run(300 * SECOND);
    flood(world, &old);
    world.unreachable = vec![address(2)];
    world.send(BOB, ALICE, b"hello");
    world.settle();
    world.unreachable.clear();
    world.nodes[BOB].drops.clear();
    world.seen_of(MessageKind::Response).pop().expect("a response").bytes.clone()
}

#[test]
fn the_answer_to_our_own_handshake_needs_no_cookie() {
    let mut world = World::pair();
    let response = response_under_load(&mut world);
    world.deliver(address(1), address(2), response.clone());
    world.settle();
    assert_eq!(world.take_received(ALICE), [b"hello".to_vec()]);
    assert!(world.nodes[BOB].drops.is_empty());
    world.deliver(address(1), address(2), response);
    assert_eq!(world.nodes[BOB].drops, [DropReason::CookieRequired], "nobody waits for it any more");
}

#[test]
fn who_forges_answers_to_our_own_handshake_is_asked_for_a_cookie_soon() {
    let mut world = World::pair();
    let response = response_under_load(&mut world);
    let mut forged = response.clone();
    forged[50] ^= 1;
    sign_mac1(&mut forged, &world.nodes[BOB].public_key);
    for bytes in [&forged, &forged, &forged, &response] {
        world.deliver(address(1), address(2), bytes.clone());
    }
    let [failed, asked] = [DropReason::BadCiphertext, DropReason::CookieRequired];
    assert_eq!(world.nodes[BOB].drops, [failed, failed, asked, asked]);
}

#[test]
fn forged_cookie_replies_are_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let initiation = world.seen_of(MessageKind::Initiation)[0].bytes.clone();
    let mut reply = vec![0; message::COOKIE_REPLY_LEN];
    reply[0] = 3;
    world.deliver(address(2), address(1), reply.clone());
    reply[4..8].copy_from_slice(&initiation[4..8]);
    world.deliver(address(2), address(1), reply);
    let expected = [DropReason::UnknownIndex, DropReason::BadCiphertext];
    assert_eq!(world.nodes[ALICE].drops, expected);
}
