//! Handshakes: in both directions, simultaneous, with right and wrong keys, replayed, forged.

use std::time::Duration;

use wireloom_proto::{Device, DropReason, MessageKind, message};
use wireloom_types::{PresharedKey, PublicKey, limits};

use crate::world::{ALICE, BOB, LATENCY, Seen, World, address, private_key, sign_mac1};

const SECOND: Duration = Duration::from_secs(1);
/// The kernel's bound on the jitter of retransmissions: a third of a second (`REKEY_TIMEOUT_JITTER_MAX_JIFFIES`).
const JITTER_MAX: Duration = Duration::from_nanos(333_333_333);

#[test]
fn a_packet_begins_a_handshake_and_arrives_after_it() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"hello");
    world.settle();
    assert_eq!(world.take_received(BOB), [b"hello".to_vec()]);
    let kinds: Vec<MessageKind> = world.seen.iter().map(Seen::kind).collect();
    let expected = [MessageKind::Initiation, MessageKind::Response, MessageKind::Data];
    assert_eq!(kinds, expected, "and no other message");
    world.assert_connected();
}

#[test]
fn either_side_may_begin_the_handshake() {
    let mut world = World::pair();
    world.send(BOB, ALICE, b"hello");
    world.settle();
    assert_eq!(world.take_received(ALICE), [b"hello".to_vec()]);
    world.assert_connected();
    assert_eq!(world.count(MessageKind::Initiation), 1);
}

#[test]
fn the_responder_sends_nothing_before_the_session_is_confirmed() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"from alice");
    world.run(LATENCY);
    assert_eq!(world.count(MessageKind::Response), 1);
    world.send(BOB, ALICE, b"from bob");
    assert_eq!(world.count(MessageKind::Data), 0, "alice has not proved that she has the keys");
    world.settle();
    let data = world.seen_of(MessageKind::Data);
    assert_eq!(data[0].from, address(1));
    assert_eq!(data[1].from, address(2));
    assert_eq!(world.take_received(ALICE), [b"from bob".to_vec()]);
    assert_eq!(world.count(MessageKind::Initiation), 1, "bob's packet waited for alice's session");
}

#[test]
fn an_initiator_without_data_confirms_with_a_keepalive() {
    let mut world = World::pair();
    let path = world.path(ALICE, BOB);
    let now = world.now();
    world.nodes[ALICE].device.send_keepalive(now, path.id());
    world.poll(ALICE);
    world.settle();
    let data = world.seen_of(MessageKind::Data);
    assert_eq!(data.len(), 1);
    assert!(data[0].is_keepalive());
    assert!(world.nodes[BOB].received.is_empty());
    let status = world.nodes[BOB].device.peer(&world.nodes[ALICE].public_key).unwrap();
    assert!(status.last_handshake.is_some());
}

#[test]
fn simultaneous_handshakes_are_not_followed_by_more() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"one");
    world.send(BOB, ALICE, b"two");
    assert_eq!(world.count(MessageKind::Initiation), 2);
    world.settle();
    assert_eq!(world.take_received(BOB), [b"one".to_vec()]);
    assert_eq!(world.take_received(ALICE), [b"two".to_vec()]);
    for _ in 0..100 {
        world.assert_connected();
        world.run(SECOND);
    }
    assert_eq!(world.count(MessageKind::Initiation), 2, "both sides settle on one session");
}

#[test]
fn simultaneous_handshakes_over_a_bad_link_connect() {
    for seed in 0..40 {
        let mut world = World::pair_seeded(seed);
        world.link.loss = 300;
        world.link.jitter = Duration::from_millis(100);
        world.send(ALICE, BOB, b"one");
        world.send(BOB, ALICE, b"two");
        world.run(60 * SECOND);
        world.link = Default::default();
        world.assert_connected();
    }
}

#[test]
fn an_initiation_is_repeated_every_5_seconds_plus_jitter_for_90_seconds() {
    let mut world = World::pair();
    world.unreachable = vec![address(2)];
    world.send(ALICE, BOB, b"is anybody there?");
    world.run(300 * SECOND);
    let at: Vec<_> = world.seen_of(MessageKind::Initiation).iter().map(|seen| seen.at).collect();
    let gaps: Vec<Duration> = at.windows(2).map(|pair| pair[1].since(pair[0])).collect();
    let latest = limits::REKEY_TIMEOUT + JITTER_MAX;
    for gap in &gaps {
        assert!((limits::REKEY_TIMEOUT..=latest).contains(gap), "{gap:?}");
    }
    let first = gaps[0];
    assert!(gaps.iter().any(|gap| *gap != first), "there is jitter");
    let whole = at[at.len() - 1].since(at[0]);
    assert!(whole < limits::REKEY_ATTEMPT_TIME);
    assert!(whole > limits::REKEY_ATTEMPT_TIME - latest);
    assert_eq!(world.nodes[ALICE].device.timed_out_packets(), 1);

    // A new packet begins a new attempt.
    world.unreachable.clear();
    world.assert_connected();
}

#[test]
fn new_packets_prolong_the_attempt() {
    let mut world = World::pair();
    world.unreachable = vec![address(2)];
    for _ in 0..20 {
        world.send(ALICE, BOB, b"is anybody there?");
        world.run(10 * SECOND);
    }
    let last = world.seen_of(MessageKind::Initiation).last().unwrap().at;
    assert!(world.now().monotonic.since(last) <= 6 * SECOND);
}

#[test]
fn only_the_last_of_several_initiations_can_be_answered() {
    let mut world = World::pair();
    let first = world.capture_initiation();
    world.unreachable = vec![address(1), address(2)];
    world.run(6 * SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 2);
    // The index of the first initiation is free again, so a cookie reply to it is dropped.
    let mut cookie = [vec![3, 0, 0, 0], first[4..8].to_vec()].concat();
    cookie.resize(message::COOKIE_REPLY_LEN, 0);
    world.unreachable.clear();
    world.deliver(address(2), address(1), cookie);
    assert_eq!(world.nodes[ALICE].drops.pop(), Some(DropReason::UnknownIndex));

    let answer = |world: &mut World, initiation: Vec<u8>| {
        world.unreachable.clear();
        world.run(SECOND / 10);
        world.deliver(address(1), address(2), initiation);
        world.settle();
    };
    answer(&mut world, first);
    assert_eq!(world.count(MessageKind::Response), 1);
    assert_eq!(world.nodes[ALICE].drops, [DropReason::UnknownIndex]);
    let second = world.seen_of(MessageKind::Initiation)[1].bytes.clone();
    answer(&mut world, second);
    assert_eq!(world.count(MessageKind::Response), 2);
    assert_eq!(world.take_received(BOB), [b"wants a session".to_vec()]);
}

#[test]
fn a_response_after_the_attempt_was_given_up_is_dropped() {
    let mut world = World::pair();
    world.unreachable = vec![address(2)];
    world.send(ALICE, BOB, b"is anybody there?");
    world.run(100 * SECOND);
    world.unreachable.clear();
    let last = world.seen_of(MessageKind::Initiation).pop().unwrap().bytes.clone();
    world.deliver(address(1), address(2), last);
    world.settle();
    assert_eq!(world.nodes[ALICE].drops, [DropReason::UnknownIndex]);
    assert_eq!(world.count(MessageKind::Data), 0);
    world.assert_connected();
}

#[test]
fn many_packets_do_not_cause_many_initiations() {
    let mut world = World::pair();
    world.unreachable = vec![address(2)];
    for _ in 0..200 {
        world.send(ALICE, BOB, b"is anybody there?");
        world.run(SECOND / 10);
    }
    let at: Vec<_> = world.seen_of(MessageKind::Initiation).iter().map(|seen| seen.at).collect();
    assert!((3..=4).contains(&at.len()), "{} initiations in 20 seconds", at.len());
    assert!(at.windows(2).all(|pair| pair[1].since(pair[0]) >= limits::REKEY_TIMEOUT));
}

#[test]
fn preshared_keys_must_agree() {
    let psk = |byte| Some(PresharedKey::from_bytes([byte; 32]));
    let mut world = World::pair();
    let (alice, bob) = (world.nodes[ALICE].public_key, world.nodes[BOB].public_key);
    let now = world.now();
    world.nodes[ALICE].device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().set_preshared_key(psk(1).as_ref());
    });
    world.nodes[BOB].device.configure(now, |configuration| {
        configuration.peer(&alice).unwrap().set_preshared_key(psk(2).as_ref());
    });
    world.send(ALICE, BOB, b"secret");
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Response), 1, "the preshared key is mixed into the response");
    assert_eq!(world.count(MessageKind::Data), 0);
    assert_eq!(world.nodes[ALICE].drops, [DropReason::BadCiphertext]);

    let now = world.now();
    world.nodes[BOB].device.configure(now, |configuration| {
        configuration.peer(&alice).unwrap().set_preshared_key(psk(1).as_ref());
    });
    world.run(6 * SECOND);
    assert_eq!(world.take_received(BOB), [b"secret".to_vec()]);
    world.assert_connected();
}

#[test]
fn an_initiation_from_an_unknown_public_key_gets_no_answer() {
    let mut world = World::pair();
    let stranger = world.add_node();
    world.introduce(stranger, BOB);
    world.send(stranger, BOB, b"let me in");
    world.run(SECOND);
    assert_eq!(world.nodes[BOB].drops, [DropReason::UnknownPeer]);
    assert!(world.seen.iter().all(|seen| seen.from != address(2)));
}

#[test]
fn an_initiation_for_another_public_key_gets_no_answer() {
    let mut world = World::pair();
    let now = world.now();
    world.nodes[BOB]
        .device
        .configure(now, |configuration| configuration.set_private_key(Some(private_key(77))));
    world.send(ALICE, BOB, b"bob?");
    world.run(SECOND);
    assert_eq!(world.nodes[BOB].drops, [DropReason::BadMac1]);
    assert!(world.seen.iter().all(|seen| seen.from != address(2)));
}

#[test]
fn a_device_without_a_private_key_sends_nothing() {
    let mut world = World::pair();
    let now = world.now();
    world.nodes[BOB].device.configure(now, |configuration| configuration.set_private_key(None));
    world.send(ALICE, BOB, b"bob?");
    world.send(BOB, ALICE, b"alice?");
    world.run(SECOND);
    assert_eq!(world.nodes[BOB].drops, [DropReason::NoPrivateKey]);
    assert!(world.seen.iter().all(|seen| seen.from != address(2)));
}

#[test]
fn nothing_is_sent_to_a_public_key_of_low_order() {
    let mut world = World::pair();
    let zero = PublicKey::from_bytes([0; 32]);
    let now = world.now();
    let alice = &mut world.nodes[ALICE].device;
    alice.configure(now, |configuration| {
        configuration.add_peer(zero).unwrap().set_endpoint(address(9));
    });
    let id = alice.peer(&zero).unwrap().id;
    alice.send_keepalive(now, id);
    world.poll(ALICE);
    world.run(200 * SECOND);
    assert!(world.seen.is_empty());
}

#[test]
fn a_replayed_initiation_is_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let initiation = world.seen_of(MessageKind::Initiation)[0].bytes.clone();
    world.run(SECOND);
    world.deliver(address(1), address(2), initiation);
    assert_eq!(world.nodes[BOB].drops, [DropReason::StaleTimestamp]);
    assert_eq!(world.count(MessageKind::Response), 1);
    world.assert_connected();
}

#[test]
fn an_initiation_overtaken_by_a_later_one_is_dropped() {
    let mut world = World::pair();
    let first = world.capture_initiation();
    world.run(6 * SECOND);
    assert_eq!(world.count(MessageKind::Initiation), 2);
    world.run(SECOND);
    assert_eq!(world.count(MessageKind::Response), 1);
    world.deliver(address(1), address(2), first);
    assert_eq!(world.nodes[BOB].drops, [DropReason::StaleTimestamp]);
}

#[test]
fn an_initiation_less_than_20_ms_after_the_last_one_is_dropped() {
    let mut world = World::pair();
    // Two machines have Alice's key. The second one sends its initiation 18 ms later.
    let twin = world.add_node();
    world.nodes[twin].device = Device::new(&[42; 32]);
    let now = world.now();
    world.nodes[twin]
        .device
        .configure(now, |configuration| configuration.set_private_key(Some(private_key(1))));
    world.introduce(twin, BOB);
    world.send(ALICE, BOB, b"first");
    world.run(Duration::from_millis(18));
    world.send(twin, BOB, b"second");
    world.run(Duration::from_millis(11));
    assert_eq!(world.nodes[BOB].drops, [DropReason::InitiationFlood]);
    assert_eq!(world.count(MessageKind::Response), 1);
}

#[test]
fn a_forged_response_does_not_disturb_the_handshake() {
    let mut world = World::pair();
    world.send(ALICE, BOB, b"hello");
    world.run(LATENCY);
    let response = world.seen_of(MessageKind::Response)[0].bytes.clone();

    let mut broken = response.clone();
    broken[50] ^= 1;
    world.deliver(address(2), address(1), broken.clone());
    assert_eq!(world.nodes[ALICE].drops, [DropReason::BadMac1]);
    sign_mac1(&mut broken, &world.nodes[ALICE].public_key);
    world.deliver(address(2), address(1), broken);
    // A response with another ephemeral key, and one for an index that is not allocated.
    let mut other = response.clone();
    other[12] ^= 1;
    sign_mac1(&mut other, &world.nodes[ALICE].public_key);
    world.deliver(address(2), address(1), other);
    let mut lost = response;
    lost[8] ^= 0xff;
    sign_mac1(&mut lost, &world.nodes[ALICE].public_key);
    world.deliver(address(2), address(1), lost);
    assert_eq!(
        world.nodes[ALICE].drops[1..],
        [DropReason::BadCiphertext, DropReason::BadCiphertext, DropReason::UnknownIndex]
    );

    world.settle();
    assert_eq!(world.take_received(BOB), [b"hello".to_vec()]);
    world.assert_connected();
}

#[test]
fn a_replayed_response_is_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let response = world.seen_of(MessageKind::Response)[0].bytes.clone();
    world.deliver(address(2), address(1), response);
    assert_eq!(world.nodes[ALICE].drops, [DropReason::UnknownIndex]);
    world.assert_connected();
}
