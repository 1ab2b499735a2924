//! Devices that are replaced by successors, as by another process: whatever a device knows goes through bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use wireloom_proto::handover::{DeviceState, PeerState, StagedPacket, Successor};
use wireloom_proto::{DropReason, MessageKind};

use crate::world::{ALICE, BOB, World, address, private_key};

/// What a device hands over while it is at work.
struct Copy {
    successor: Successor,
    peers: BTreeMap<u64, Vec<u8>>,
}

/// The bytes of a state, as they go to another process.
fn bytes(state: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_allocvec(state).expect("there is memory")
}

fn peers(world: &World, node: usize) -> BTreeMap<u64, Vec<u8>> {
    let peers = world.nodes[node].device.peer_states();
    peers.map(|peer| (peer.id(), bytes(&peer))).collect()
}

fn take_peer(successor: &mut Successor, peer: &[u8]) {
    let peer: PeerState = postcard::from_bytes(peer).expect("it was just written");
    successor.take_peer(&peer);
}

fn copy(world: &World, node: usize, seed: u8) -> Copy {
    let state: DeviceState =
        postcard::from_bytes(&bytes(&world.nodes[node].device.state())).expect("it was just written");
    let mut successor = Successor::new(&[seed; 32], &state);
    let peers = peers(world, node);
    peers.values().for_each(|peer| take_peer(&mut successor, peer));
    Copy { successor, peers }
}

/// Replaces a node's device by the successor, which gets what has changed since the copy.
fn finish(world: &mut World, node: usize, copy: Copy) {
    let Copy { mut successor, peers: before } = copy;
    let now = world.now();
    let after = peers(world, node);
    for gone in before.keys().filter(|number| !after.contains_key(number)) {
        successor.remove_peer(*gone);
    }
    for (_, changed) in after.iter().filter(|(number, peer)| before.get(number) != Some(peer)) {
        take_peer(&mut successor, changed);
    }
    let device = &mut world.nodes[node].device;
    let state: DeviceState = postcard::from_bytes(&bytes(&device.state())).expect("it was just written");
    let staged: Vec<StagedPacket> =
        postcard::from_bytes(&bytes(&device.staged_packets())).expect("it was just written");
    *device = successor.finish(now, &state, &staged);
    world.poll(node);
}

fn hand_over(world: &mut World, node: usize, seed: u8) {
    let copy = copy(world, node, seed);
    finish(world, node, copy);
}

/// Asserts that no nonce was used twice, as far as the eavesdropper can see.
fn assert_nonces_are_unique(world: &World) {
    let mut used = BTreeSet::new();
    for seen in world.seen_of(MessageKind::Data) {
        // The receiver, its index, and the counter.
        assert!(used.insert((seen.to, seen.bytes[4..16].to_vec())), "a nonce was used twice");
    }
}

#[test]
fn a_session_goes_on_and_accepts_no_message_twice() {
    for node in [ALICE, BOB] {
        let mut world = World::pair();
        world.assert_connected();
        for seed in 0..5 {
            hand_over(&mut world, node, seed);
            world.assert_connected();
            let before: Vec<_> = world.seen_of(MessageKind::Data).into_iter().cloned().collect();
            for seen in before {
                world.deliver(seen.from, seen.to, seen.bytes);
            }
            for replayed in [ALICE, BOB] {
                let drops = std::mem::take(&mut world.nodes[replayed].drops);
                assert!(!drops.is_empty() && drops.iter().all(|reason| *reason == DropReason::Replayed));
                assert!(world.take_received(replayed).is_empty());
            }
        }
        assert_eq!(world.count(MessageKind::Initiation), 1, "the peer has noticed nothing");
        assert_nonces_are_unique(&world);
        let peer = world.nodes[node].device.peers().next().expect("a peer");
        assert!(peer.sent_bytes > 0 && peer.received_bytes > 0 && peer.last_handshake.is_some());
    }
}

#[test]
fn a_successor_finishes_the_handshake_that_the_device_has_begun_and_sends_what_waits_in_order() {
    let mut world = World::pair();
    for number in 0..3 {
        world.send(ALICE, BOB, &[number]);
    }
    hand_over(&mut world, ALICE, 9);
    world.send(ALICE, BOB, &[3]);
    world.settle();
    assert_eq!(world.take_received(BOB), [[0], [1], [2], [3]]);
    assert_eq!(world.count(MessageKind::Initiation), 1);
}

#[test]
fn an_initiation_that_the_device_has_answered_is_not_answered_again() {
    let mut world = World::pair();
    world.assert_connected();
    let initiation = world.seen_of(MessageKind::Initiation)[0].clone();
    hand_over(&mut world, BOB, 9);
    world.run(Duration::from_secs(1));
    world.deliver(initiation.from, initiation.to, initiation.bytes);
    assert_eq!(world.nodes[BOB].drops, [DropReason::StaleTimestamp]);
}

#[test]
fn what_changes_after_the_copy_counts() {
    let mut world = World::pair();
    let third = world.add_node();
    let fourth = world.add_node();
    world.introduce(ALICE, third);
    let copy = copy(&world, ALICE, 9);
    let now = world.now();
    let [bob, third, fourth] = [BOB, third, fourth].map(|node| world.nodes[node].public_key);
    world.nodes[ALICE].device.configure(now, |configuration| {
        configuration.remove_peer(&third);
        let mut peer = configuration.add_peer(fourth).expect("there is room");
        // This was the other peer's.
        peer.add_allowed_ip("10.0.0.2/32".parse().expect("a network")).set_endpoint(address(4));
        configuration.set_private_key(Some(private_key(77)));
    });
    finish(&mut world, ALICE, copy);
    let device = &world.nodes[ALICE].device;
    assert_eq!(device.private_key(), Some(&private_key(77)));
    let keys: Vec<_> = device.peers().map(|peer| *peer.public_key).collect();
    assert_eq!(keys, [bob, fourth]);
    assert!(device.peer(&bob).expect("a peer").allowed_ips.is_empty());
    let routes = device.transport().routes();
    let owner = |address: &str| routes.lookup(address.parse().expect("an address"));
    assert_eq!(owner("10.0.0.2").map(|path| *path.public_key()), Some(fourth));
    assert!(owner("10.0.0.3").is_none());
}

/// A slot of the session table that one peer had when it was copied may be another's in the end.
#[test]
fn a_session_in_a_slot_that_was_another_peers_goes_on() {
    const CAROL: usize = 2;
    let mut world = World::pair();
    world.add_node();
    world.introduce(ALICE, CAROL);
    world.introduce(CAROL, ALICE);
    for round in 0..40 {
        world.send(CAROL, ALICE, b"so that there is a session");
        world.send(BOB, ALICE, b"and here");
        world.settle();
        let copied = copy(&world, ALICE, round);
        // Carol's sessions are wiped, and Bob renews his.
        for _ in 0..60 + u64::from(round) {
            world.send(BOB, ALICE, b"on");
            world.run(Duration::from_secs(10));
        }
        finish(&mut world, ALICE, copied);
        world.nodes[ALICE].received.clear();
        world.send(BOB, ALICE, b"still there?");
        world.settle();
        assert_eq!(world.take_received(ALICE), [b"still there?".to_vec()], "round {round}");
    }
}

/// Has both devices of a pair send at least every 25 seconds: no session expires while a packet is under way in it.
fn keep_alive(world: &mut World) {
    let now = world.now();
    for (node, peer) in [(ALICE, BOB), (BOB, ALICE)] {
        let key = world.nodes[peer].public_key;
        world.nodes[node].device.configure(now, |configuration| {
            let mut peer = configuration.peer(&key).expect("a peer");
            peer.set_persistent_keepalive(25.try_into().ok());
        });
    }
}

/// What happens in a world.
#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Run(Duration),
    /// A device is copied, and replaced by the copy some steps later.
    Copy(usize),
    Replace(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..2_usize;
    let step = prop_oneof![
        8 => node.clone().prop_map(Step::Send),
        4 => (0..40_u64).prop_map(|millis| Step::Run(Duration::from_millis(millis))),
        1 => (1..130_u64).prop_map(|seconds| Step::Run(Duration::from_secs(seconds))),
        2 => node.clone().prop_map(Step::Copy),
        2 => node.prop_map(Step::Replace),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// On a link that loses and doubles nothing, every packet arrives once, and no nonce is used twice, however often
    /// both devices are replaced, also in the middle of handshakes and renewals.
    #[test]
    fn nobody_notices_when_devices_are_replaced(steps in steps(), seed in any::<u8>(), jitter in 0..20_u64) {
        let mut world = World::pair_seeded(seed);
        keep_alive(&mut world);
        world.link.jitter = Duration::from_millis(jitter);
        let mut copies = [None, None];
        let mut sent = [BTreeSet::new(), BTreeSet::new()];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send(from) => {
                    let payload = (number as u32).to_be_bytes();
                    sent[from].insert(payload.to_vec());
                    world.send(from, 1 - from, &payload);
                }
                Step::Run(duration) => world.run(duration),
                Step::Copy(node) => copies[node] = Some(copy(&world, node, number as u8)),
                Step::Replace(node) => {
                    let copy = copies[node].take().unwrap_or_else(|| copy(&world, node, number as u8));
                    finish(&mut world, node, copy);
                }
            }
        }
        world.run(Duration::from_secs(30));
        assert_nonces_are_unique(&world);
        for from in [ALICE, BOB] {
            let received = world.take_received(1 - from);
            prop_assert_eq!(received.len(), sent[from].len());
            prop_assert_eq!(&received.into_iter().collect::<BTreeSet<_>>(), &sent[from]);
        }
    }
}
