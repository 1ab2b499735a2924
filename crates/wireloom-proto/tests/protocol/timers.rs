//! Every timer, with its number from the paper.

use std::num::NonZeroU16;
use std::time::Duration;

use wireloom_proto::{Endpoint, Instant, LocalAddress, MessageKind};
use wireloom_types::limits;

use crate::world::{ALICE, BOB, LATENCY, Seen, World, address};

const SECOND: Duration = Duration::from_secs(1);

fn keepalives(world: &World) -> Vec<&Seen> {
    world.seen.iter().filter(|seen| seen.is_keepalive()).collect()
}

fn set_keepalive(world: &mut World, node: usize, other: usize, seconds: u16) {
    let now = world.now();
    let key = world.nodes[other].public_key;
    world.nodes[node].device.configure(now, |configuration| {
        configuration.peer(&key).unwrap().set_persistent_keepalive(NonZeroU16::new(seconds));
    });
}

#[test]
fn an_idle_tunnel_is_silent() {
    let mut world = World::pair();
    world.assert_connected();
    // Bob's packet may still be answered by a keepalive.
    world.run(limits::KEEPALIVE_TIMEOUT + SECOND);
    world.seen.clear();
    world.run(3600 * SECOND);
    assert!(world.seen.is_empty());
    let deadlines = world.nodes.iter().map(|node| node.device.poll_timeout());
    assert!(deadlines.into_iter().all(|deadline| deadline.is_none()), "nothing to wake up for");
}

#[test]
fn who_receives_and_says_nothing_for_10_seconds_sends_a_keepalive() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(60 * SECOND);
    world.seen.clear();
    world.send(ALICE, BOB, b"hello");
    let sent = world.now().monotonic;
    world.run(30 * SECOND);
    let keepalives = keepalives(&world);
    assert_eq!(keepalives.len(), 1);
    assert_eq!(keepalives[0].from, address(2));
    assert_eq!(keepalives[0].at.since(sent), LATENCY + limits::KEEPALIVE_TIMEOUT);
}

#[test]
fn who_answers_sends_no_keepalive() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(60 * SECOND);
    world.seen.clear();
    for _ in 0..5 {
        world.send(ALICE, BOB, b"hello");
        world.run(9 * SECOND);
        world.send(BOB, ALICE, b"hello yourself");
        world.run(SECOND / 2);
    }
    assert!(keepalives(&world).is_empty());
}

#[test]
fn a_one_way_stream_is_acknowledged_every_10_seconds() {
    let mut world = World::pair();
    world.assert_connected();
    world.seen.clear();
    for _ in 0..100 {
        world.send(ALICE, BOB, b"again");
        world.run(SECOND);
    }
    let count = keepalives(&world).len();
    assert!((8..=10).contains(&count), "{count}");
    assert_eq!(world.count(MessageKind::Initiation), 0);
}

#[test]
fn who_hears_nothing_for_15_seconds_begins_a_handshake() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(30 * SECOND);
    world.seen.clear();
    world.unreachable = vec![address(2)];
    world.send(ALICE, BOB, b"hello?");
    let sent = world.now().monotonic;
    world.run(10 * SECOND);
    world.send(ALICE, BOB, b"hello??");
    world.run(6 * SECOND);
    let initiations = world.seen_of(MessageKind::Initiation);
    assert_eq!(initiations.len(), 1, "counted from the first packet that nothing answered");
    let waited = initiations[0].at.since(sent);
    let latest = 15 * SECOND + Duration::from_nanos(333_333_333);
    assert!((15 * SECOND..=latest).contains(&waited), "{waited:?}");
}

#[test]
fn the_initiator_renews_at_120_seconds_when_it_sends() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"hello");
    world.settle();
    world.seen.clear();
    world.run(119 * SECOND);
    world.send(ALICE, BOB, b"young");
    assert_eq!(world.count(MessageKind::Initiation), 0);
    world.run(SECOND);
    world.send(BOB, ALICE, b"the responder does not care");
    assert_eq!(world.count(MessageKind::Initiation), 0);
    world.send(ALICE, BOB, b"old");
    assert_eq!(world.count(MessageKind::Initiation), 1);
    world.settle();
    assert_eq!(world.count(MessageKind::Response), 1);
    let confirmation = world.seen.last().unwrap();
    assert!(confirmation.is_keepalive() && confirmation.from == address(1), "nothing else to send");
}

#[test]
fn an_initiator_that_only_receives_renews_at_165_seconds_once() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"hello");
    world.settle();
    // Alice hears at 164 s, which is early enough to keep the session.
    world.run(164 * SECOND);
    world.seen.clear();
    world.send(BOB, ALICE, b"one");
    world.settle();
    assert_eq!(world.count(MessageKind::Initiation), 0);
    world.run(SECOND);
    world.unreachable = vec![address(2)];
    for _ in 0..4 {
        world.send(BOB, ALICE, b"two");
        world.settle();
    }
    assert_eq!(world.count(MessageKind::Initiation), 1);
}

#[test]
fn persistent_keepalives_begin_at_once_and_go_on() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    let began = world.now().monotonic;
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 1);
    assert_eq!(keepalives(&world).len(), 1, "the session is confirmed");
    world.run(100 * SECOND);
    let at: Vec<Duration> = keepalives(&world).iter().map(|seen| seen.at.since(began)).collect();
    assert_eq!(at.len(), 5);
    for pair in at.windows(2) {
        assert_eq!(pair[1] - pair[0], 25 * SECOND);
    }
    // A day of nothing else keeps the tunnel alive without a gap in sessions.
    world.run(86_400 * SECOND);
    world.seen.clear();
    world.send(BOB, ALICE, b"still there?");
    assert_eq!(world.seen[0].kind(), MessageKind::Data);

    set_keepalive(&mut world, ALICE, BOB, 0);
    world.run(30 * SECOND);
    world.seen.clear();
    world.run(600 * SECOND);
    assert!(keepalives(&world).is_empty());
}

#[test]
fn traffic_puts_persistent_keepalives_off() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    world.run(SECOND);
    world.seen.clear();
    for _ in 0..20 {
        world.send(ALICE, BOB, b"ping");
        world.send(BOB, ALICE, b"pong");
        world.run(5 * SECOND);
    }
    assert!(keepalives(&world).is_empty());
}

#[test]
fn persistent_keepalives_outlast_a_dead_peer() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    world.unreachable = vec![address(2)];
    world.run(600 * SECOND);
    world.unreachable.clear();
    world.run(30 * SECOND);
    assert_eq!(world.count(MessageKind::Response), 1, "connected without anyone's packet");
}

#[test]
fn a_peer_without_endpoint_gets_no_keepalive() {
    let mut world = World::new(1);
    world.add_node();
    world.add_node();
    let now = world.now();
    let key = world.nodes[BOB].public_key;
    world.nodes[ALICE].device.configure(now, |configuration| {
        let mut peer = configuration.add_peer(key).unwrap();
        peer.set_persistent_keepalive(NonZeroU16::new(5));
    });
    assert_eq!(world.nodes[ALICE].device.poll_timeout(), None);
    let now = world.now();
    world.nodes[ALICE].device.configure(now, |configuration| {
        configuration.peer(&key).unwrap().set_endpoint(address(2));
    });
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 1, "as soon as there is one");
}

#[test]
fn nothing_is_left_behind_when_the_interface_goes_down() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    world.run(SECOND);
    let alice = &mut world.nodes[ALICE].device;
    alice.handle_down();
    assert_eq!(alice.poll_timeout(), None);
    world.seen.clear();
    world.run(100 * SECOND);
    assert!(world.seen.iter().all(|seen| seen.from != address(1)));
    world.nodes[ALICE].device.handle_up();
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 1);
    world.assert_connected();
}

#[test]
fn the_data_path_seldom_bothers_the_device() {
    let mut world = World::pair();
    world.assert_connected();
    world.nodes[ALICE].signals = 0;
    world.nodes[BOB].signals = 0;
    let began = world.elapsed();
    for _ in 0..2000 {
        world.send(ALICE, BOB, b"ping");
        world.settle();
        world.send(BOB, ALICE, b"pong");
        world.settle();
    }
    assert_eq!(world.elapsed() - began, 40 * SECOND);
    // 40 seconds of ping-pong: each device looks at most about every 10 seconds.
    assert!(world.nodes.iter().all(|node| node.signals <= 10));
}

/// Has Bob's next packet come to an address of Alice's that is then part of his endpoint.
fn learn_local_address(world: &mut World) -> Endpoint {
    let local = LocalAddress { address: address(1).ip(), interface: 7 };
    let endpoint = Endpoint { remote: address(2), local: Some(local) };
    world.send(BOB, ALICE, b"hello");
    world.unreachable = vec![address(1), address(2)];
    let mut bytes = world.seen.last().unwrap().bytes.clone();
    let now = world.now().monotonic;
    let transport = world.nodes[ALICE].device.transport().clone();
    let opened = transport.open(now, endpoint, &mut bytes).unwrap();
    assert_eq!(opened.path.endpoint(), Some(endpoint));
    endpoint
}

#[test]
fn our_own_address_is_chosen_anew_when_nothing_comes_back() {
    let mut world = World::pair();
    world.assert_connected();
    let path = world.path(ALICE, BOB);
    let endpoint = learn_local_address(&mut world);
    world.send(ALICE, BOB, b"are you there?");
    world.run(14 * SECOND);
    assert_eq!(path.endpoint(), Some(endpoint), "it stays while there is hope");
    world.run(2 * SECOND);
    assert_eq!(path.endpoint(), Some(address(2).into()));
}

#[test]
fn our_own_address_is_chosen_anew_when_an_initiation_is_repeated() {
    let mut world = World::pair();
    world.assert_connected();
    let path = world.path(ALICE, BOB);
    let endpoint = learn_local_address(&mut world);
    world.run(200 * SECOND);
    world.send(ALICE, BOB, b"are you there?");
    world.run(4 * SECOND);
    assert_eq!(path.endpoint(), Some(endpoint));
    world.run(2 * SECOND);
    assert_eq!(path.endpoint(), Some(address(2).into()));
}

#[test]
fn early_and_late_calls_are_harmless() {
    let mut world = World::pair();
    world.assert_connected();
    for second in 0..1000 {
        let mut now = world.now();
        now.monotonic = now.monotonic + second * SECOND / 7;
        world.nodes[ALICE].device.handle_timeout(now);
        world.nodes[BOB].device.handle_timeout(now);
    }
    let end = Instant::from_nanos(u64::MAX - 1);
    let mut now = world.now();
    now.monotonic = end;
    world.nodes[ALICE].device.handle_timeout(now);
}

#[test]
fn a_peer_that_leaves_an_initiation_unanswered_is_unreachable_until_it_is_heard() {
    let mut world = World::pair();
    let path = world.path(ALICE, BOB);
    world.unreachable = vec![address(2)];
    world.send(ALICE, BOB, b"anybody?");
    world.run(Duration::from_secs(4));
    assert!(path.is_reachable(), "there is still time for an answer");
    world.run(Duration::from_secs(2));
    assert!(!path.is_reachable());
    // Whoever is turned away has it sought, also long after the attempt was given up.
    world.run(Duration::from_secs(200));
    world.unreachable.clear();
    let now = world.now();
    world.nodes[ALICE].device.begin_handshake(now, path.id());
    world.poll(ALICE);
    world.settle();
    assert!(path.is_reachable());
}

#[test]
fn one_lost_renewal_makes_nobody_unreachable() {
    let mut world = World::pair();
    let path = world.path(ALICE, BOB);
    world.send(ALICE, BOB, b"hello");
    world.settle();
    // Both talk until the session is due for renewal, whose initiation is lost.
    while world.elapsed() < 110 * SECOND {
        world.run(5 * SECOND);
        world.send(ALICE, BOB, b"hello");
        world.send(BOB, ALICE, b"hello");
        world.settle();
    }
    world.run(119 * SECOND - world.elapsed());
    world.unreachable = vec![address(2)];
    world.run(2 * SECOND);
    world.send(ALICE, BOB, b"renews");
    world.run(Duration::from_secs(6));
    assert!(world.count(MessageKind::Initiation) >= 3, "the renewal was repeated");
    assert!(path.is_reachable(), "it was heard seconds ago");
    world.run(Duration::from_secs(30));
    assert!(!path.is_reachable(), "now it is silent in earnest");
}
