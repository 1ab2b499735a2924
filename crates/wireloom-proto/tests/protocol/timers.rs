//! Every timer, with its value from the paper.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use wireloom_proto::message::DATA_OVERHEAD;
use wireloom_proto::{Endpoint, Instant, LocalAddress, MessageKind, Now, SealError};
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
fn an_idle_tunnel_sends_nothing_and_schedules_nothing() {
    let mut world = World::pair();
    world.assert_connected();
    // Alice still owes a keepalive for Bob's last packet.
    world.run(limits::KEEPALIVE_TIMEOUT + SECOND);
    world.seen.clear();
    world.run(3600 * SECOND);
    assert!(world.seen.is_empty());
    let deadlines = world.nodes.iter().map(|node| node.device.poll_timeout());
    assert!(deadlines.into_iter().all(|deadline| deadline.is_none()), "no timer is armed");
}

#[test]
fn a_peer_that_received_and_sends_nothing_for_10_seconds_sends_a_keepalive() {
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
fn a_peer_that_answers_sends_no_keepalive() {
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
fn a_one_way_stream_is_answered_with_a_keepalive_every_10_seconds() {
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
fn a_peer_that_gets_no_answer_for_15_seconds_begins_a_handshake() {
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
    assert_eq!(initiations.len(), 1, "15 seconds after the first unanswered packet");
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
    assert!(
        confirmation.is_keepalive() && confirmation.from == address(1),
        "a keepalive confirms the session"
    );
}

/// Another thread has sealed a packet, and its signal takes its time.
#[test]
fn a_late_request_for_renewal_does_not_renew_the_session_that_came_meanwhile() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(Duration::from_secs(121));
    let initiations = world.count(MessageKind::Initiation);
    let now = world.now();
    let bob = world.nodes[BOB].public_key;
    let device = &mut world.nodes[ALICE].device;
    let path = Arc::clone(device.peer(&bob).expect("a peer").path);
    let sealed = path.seal(now.monotonic, std::iter::once(&mut [0; 64][..])).expect("a session");
    let signal = sealed.signal.expect("the session is old");
    device.begin_handshake(now, path.id());
    world.poll(ALICE);
    // Longer than it takes until another initiation may be sent.
    world.run(Duration::from_secs(6));
    let now = world.now();
    world.nodes[ALICE].device.handle_signal(now, signal);
    world.poll(ALICE);
    assert_eq!(world.count(MessageKind::Initiation), initiations + 1);
    world.assert_connected();
}

#[test]
fn an_initiator_that_only_receives_renews_at_165_seconds_once() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"hello");
    world.settle();
    // What arrives at 164 s does not ask for renewal yet.
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
fn a_peer_that_starts_again_in_the_last_minute_of_a_session_is_not_greeted_as_well() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(166 * SECOND);
    world.seen.clear();
    world.restart(BOB);
    world.introduce(BOB, ALICE);
    world.send(BOB, ALICE, b"I am back");
    world.run(20 * SECOND);
    assert_eq!(world.take_received(ALICE).last(), Some(&b"I am back".to_vec()));
    assert_eq!(world.count(MessageKind::Initiation), 1, "it has just made a session");
}

#[test]
fn persistent_keepalives_begin_at_once_and_keep_the_session_alive() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    let began = world.now().monotonic;
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 1);
    assert_eq!(keepalives(&world).len(), 1, "which confirms the session");
    world.run(100 * SECOND);
    let at: Vec<Duration> = keepalives(&world).iter().map(|seen| seen.at.since(began)).collect();
    assert_eq!(at.len(), 5);
    for pair in at.windows(2) {
        assert_eq!(pair[1] - pair[0], 25 * SECOND);
    }
    // After a day with keepalives only, there is still a session.
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
fn traffic_postpones_persistent_keepalives() {
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
fn persistent_keepalives_reconnect_a_peer_that_comes_back() {
    let mut world = World::pair();
    set_keepalive(&mut world, ALICE, BOB, 25);
    world.unreachable = vec![address(2)];
    world.run(600 * SECOND);
    world.unreachable.clear();
    world.run(30 * SECOND);
    assert_eq!(world.count(MessageKind::Response), 1, "the keepalives connected them");
}

#[test]
fn a_peer_without_an_endpoint_gets_no_keepalive() {
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
    assert_eq!(world.count(MessageKind::Initiation), 1, "the keepalive is sent when there is an endpoint");
}

#[test]
fn nothing_is_sent_while_the_interface_is_down() {
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
fn steady_traffic_rarely_signals_the_device() {
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
    // 2,000 packets in each direction in 40 seconds.
    assert!(world.nodes.iter().all(|node| node.signals <= 10));
}

/// The network stack may answer a request before the device hears of it: it often does on one core.
#[test]
fn requests_that_are_answered_before_the_device_hears_of_them_rarely_signal_it() {
    let mut world = World::pair();
    world.assert_connected();
    let paths = [world.path(ALICE, BOB), world.path(BOB, ALICE)];
    let mut signals = 0;
    for _ in 0..2000 {
        let now = world.now();
        let mut reported = [Vec::new(), Vec::new()];
        for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
            let mut packet = [0; DATA_OVERHEAD + 32];
            let sealed =
                paths[from].seal(now.monotonic, std::iter::once(&mut packet[..])).expect("a session");
            reported[from].extend(sealed.signal);
            let transport = world.nodes[to].device.transport();
            let source = Endpoint::from(world.nodes[from].address);
            reported[to].extend(transport.open(now.monotonic, source, &mut packet).expect("a packet").signal);
        }
        signals += reported[BOB].len();
        for (node, reported) in world.nodes.iter_mut().zip(reported) {
            reported.into_iter().for_each(|signal| node.device.handle_signal(now, signal));
        }
        world.run(SECOND / 50);
    }
    assert_eq!(world.count(MessageKind::Initiation), 1, "40 seconds have passed");
    assert!(signals <= 10, "{signals}");
}

/// Delivers a packet from Bob to an address of Alice, which becomes part of his endpoint. Returns that endpoint.
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
fn routing_chooses_our_address_again_when_nothing_comes_back() {
    let mut world = World::pair();
    world.assert_connected();
    let path = world.path(ALICE, BOB);
    let endpoint = learn_local_address(&mut world);
    world.send(ALICE, BOB, b"are you there?");
    world.run(14 * SECOND);
    assert_eq!(path.endpoint(), Some(endpoint), "an answer may still come");
    world.run(2 * SECOND);
    assert_eq!(path.endpoint(), Some(address(2).into()));
}

#[test]
fn routing_chooses_our_address_again_when_an_initiation_is_repeated() {
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
fn an_early_timeout_changes_nothing() {
    let mut world = World::pair();
    world.assert_connected();
    let now = world.now();
    for node in &mut world.nodes {
        let deadline = node.device.poll_timeout().expect("the keys are to be wiped");
        let wait = deadline.since(now.monotonic);
        for tenth in 0..10 {
            let early = Now { monotonic: now.monotonic + wait * tenth / 10, ..now };
            node.device.handle_timeout(early);
            assert_eq!(node.device.poll_timeout(), Some(deadline));
            assert_eq!(node.device.poll_transmit(early), None);
        }
    }
}

#[test]
fn timeouts_between_the_deadlines_change_nothing_that_is_sent() {
    let mut worlds = [World::pair(), World::pair()];
    for world in &mut worlds {
        world.assert_connected();
        set_keepalive(world, ALICE, BOB, 25);
    }
    // 1,000 sevenths of a second, beyond the renewal at 120 seconds.
    for _ in 0..1000 {
        worlds.iter_mut().for_each(|world| world.run(SECOND / 7));
        let world = &mut worlds[1];
        let now = world.now();
        world.nodes.iter_mut().for_each(|node| node.device.handle_timeout(now));
        world.poll(ALICE);
        world.poll(BOB);
    }
    let [without, with] = worlds
        .map(|world| world.seen.into_iter().map(|seen| (seen.at, seen.from, seen.bytes)).collect::<Vec<_>>());
    assert!(without.len() > 8, "keepalives and a renewal");
    assert_eq!(with, without);
}

#[test]
fn a_late_timeout_does_everything_that_is_due() {
    let start = World::pair().now().monotonic;
    for late in [start + 1000 * SECOND, Instant::from_nanos(u64::MAX - 1)] {
        let mut world = World::pair();
        world.assert_connected();
        let paths = [world.path(ALICE, BOB), world.path(BOB, ALICE)];
        let in_time = world.now().monotonic;
        let now = Now { monotonic: late, ..world.now() };
        for (node, path) in world.nodes.iter_mut().zip(paths) {
            node.device.handle_timeout(now);
            assert!(node.device.poll_timeout().is_none_or(|next| next > late), "nothing that is due is left");
            // Alice owes a keepalive and Bob has got no answer. Both need a new session for that.
            let transmit = node.device.poll_transmit(now).expect("an initiation");
            assert_eq!(MessageKind::classify(transmit.datagram), Ok(MessageKind::Initiation));
            assert_eq!(node.device.poll_transmit(now), None, "one initiation");
            let sealed = path.seal(in_time, std::iter::once(&mut [0; DATA_OVERHEAD][..]));
            assert_eq!(sealed.err(), Some(SealError::NoSession), "the old keys are wiped");
        }
    }
}

#[test]
fn a_peer_that_leaves_an_initiation_unanswered_is_unreachable_until_it_answers() {
    let mut world = World::pair();
    let path = world.path(ALICE, BOB);
    world.unreachable = vec![address(2)];
    world.send(ALICE, BOB, b"anybody?");
    world.run(Duration::from_secs(4));
    assert!(path.is_reachable(), "there is still time for an answer");
    world.run(Duration::from_secs(2));
    assert!(!path.is_reachable());
    // A handshake is begun for a dropped packet, long after the attempt was given up.
    world.run(Duration::from_secs(200));
    world.unreachable.clear();
    let now = world.now();
    world.nodes[ALICE].device.begin_handshake(now, path.id());
    world.poll(ALICE);
    world.settle();
    assert!(path.is_reachable());
}

#[test]
fn a_lost_initiation_does_not_make_a_live_peer_unreachable() {
    let mut world = World::pair();
    let path = world.path(ALICE, BOB);
    world.send(ALICE, BOB, b"hello");
    world.settle();
    // Both send until the session is due for renewal. Then the initiation is lost.
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
    assert!(world.count(MessageKind::Initiation) >= 3, "the initiation was repeated");
    assert!(path.is_reachable(), "it sent something seconds ago");
    world.run(Duration::from_secs(30));
    assert!(!path.is_reachable(), "it has sent nothing for 15 seconds");
}
