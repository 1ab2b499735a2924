//! Packets that wait for a session while other threads have more of them.

use std::time::Duration;

use wireloom_proto::{Device, DropReason, MessageKind, Staged};

use crate::world::{ALICE, BOB, World, address, ipv4};

/// Has Alice get a session, with these packets waiting for it, and not yet sent.
fn with_session_and_waiting(count: u8) -> World {
    let mut world = World::pair();
    for number in 0..count {
        stage(&mut world, number).expect_err("there is no session");
    }
    world.poll(ALICE);
    let seen = world.seen.last().expect("an initiation").clone();
    let now = world.now();
    let bob = &mut world.nodes[BOB].device;
    bob.handle_handshake(now, seen.from.into(), &seen.bytes).expect("it is genuine");
    let response = bob.poll_transmit(now).expect("a response").datagram.to_vec();
    let (alice, to) = (&mut world.nodes[ALICE].device, seen.to);
    alice.handle_handshake(now, to.into(), &response).expect("it is genuine");
    world
}

/// Stages a packet as a thread of the data path does, and tells the device.
fn stage(world: &mut World, number: u8) -> Result<(), Staged> {
    let now = world.now();
    let path = world.path(ALICE, BOB);
    let packet = ipv4(world.nodes[ALICE].inner, world.nodes[BOB].inner, &[number]);
    let mut message = vec![0; 16];
    message.extend(packet);
    message.resize(16 + 32 + 16, 0);
    let device = &mut world.nodes[ALICE].device;
    let outcome =
        device.transport().reserve_or_stage(now.monotonic, &path, [&*message].into_iter(), message.len());
    match outcome {
        Ok(_) => Ok(()),
        Err(staged) => {
            if let Some(signal) = staged.signal {
                device.handle_signal(now, signal);
            }
            Err(staged)
        }
    }
}

/// The counters of the data messages that Alice polls now.
fn poll(world: &mut World) -> Vec<u64> {
    let now = world.now();
    let mut counters = Vec::new();
    while let Some(transmit) = world.nodes[ALICE].device.poll_transmit(now) {
        assert_eq!(MessageKind::classify(transmit.datagram), Ok(MessageKind::Data));
        counters.push(u64::from_le_bytes(*transmit.datagram[8..].first_chunk().expect("a header")));
    }
    counters
}

#[test]
fn the_data_path_gets_the_session_once_nothing_waits_for_it() {
    let mut world = with_session_and_waiting(3);
    let now = world.now();
    assert_eq!(poll(&mut world), [0, 1, 2]);
    // They are not sent yet, so a later one must not be either.
    stage(&mut world, 3).expect_err("the session is not used yet");
    assert!(world.nodes[ALICE].device.note_transmitted(now), "another one waits");
    assert_eq!(poll(&mut world), [3]);
    assert!(!world.nodes[ALICE].device.note_transmitted(now));
    stage(&mut world, 4).expect("the session is used");
}

#[test]
fn a_thread_that_stages_without_end_gets_the_session_all_the_same() {
    let mut world = with_session_and_waiting(1);
    let now = world.now();
    let mut rounds = 0;
    loop {
        poll(&mut world);
        if stage(&mut world, 0).is_ok() {
            break;
        }
        world.nodes[ALICE].device.note_transmitted(now);
        rounds += 1;
        assert!(rounds < 20);
    }
    assert!(rounds > 5, "{rounds}");
    // Whatever was staged last is sent.
    poll(&mut world);
    assert!(!world.nodes[ALICE].device.note_transmitted(now));
}

#[test]
fn packets_that_were_staged_when_the_session_expired_wait_for_the_next_one() {
    let mut world = with_session_and_waiting(2);
    // Nobody polls until the session is too old.
    let start = world.now();
    let later = wireloom_proto::Now { monotonic: start.monotonic + Duration::from_secs(200), ..start };
    let alice = &mut world.nodes[ALICE].device;
    for _ in 0..10 {
        alice.handle_timeout(later);
    }
    let transmit = alice.poll_transmit(later).expect("an initiation").datagram.to_vec();
    assert_eq!(MessageKind::classify(&transmit), Ok(MessageKind::Initiation));
    assert_eq!(alice.poll_transmit(later), None);
    assert!(!alice.note_transmitted(later));
    let bob = &mut world.nodes[BOB].device;
    bob.handle_handshake(later, address(1).into(), &transmit).expect("it is genuine");
    let response = bob.poll_transmit(later).expect("a response").datagram.to_vec();
    let alice = &mut world.nodes[ALICE].device;
    alice.handle_handshake(later, address(2).into(), &response).expect("it is genuine");
    let lengths: Vec<_> =
        std::iter::from_fn(|| alice.poll_transmit(later).map(|transmit| transmit.datagram.len())).collect();
    assert_eq!(lengths, [64, 64], "both packets");
}

/// Has Bob begin a session, and returns the index at which he receives in it and what he sends first. Nobody else gets
/// anything of it.
fn answer_bob(world: &mut World) -> (u32, Vec<u8>) {
    let now = world.now();
    world.unreachable = vec![address(1), address(2)];
    let to_alice = world.path(BOB, ALICE).id();
    world.nodes[BOB].device.begin_handshake(now, to_alice);
    let [alice, bob] = &mut world.nodes[..] else { panic!("two nodes") };
    let next = |device: &mut Device| device.poll_transmit(now).expect("a message").datagram.to_vec();
    let initiation = next(&mut bob.device);
    alice.device.handle_handshake(now, address(2).into(), &initiation).expect("it is genuine");
    let response = next(&mut alice.device);
    bob.device.handle_handshake(now, address(1).into(), &response).expect("it is genuine");
    let first = next(&mut bob.device);
    assert!(bob.device.poll_transmit(now).is_none());
    assert!(!alice.device.note_transmitted(now) && !bob.device.note_transmitted(now));
    (u32::from_le_bytes(*initiation[4..].first_chunk().expect("an index")), first)
}

/// A worker of Alice's opens a message. She does not hear its signal yet.
fn open(world: &World, mut message: Vec<u8>) -> Result<(), DropReason> {
    let now = world.now().monotonic;
    world.nodes[ALICE].device.transport().open(now, address(2).into(), &mut message).map(drop)
}

#[test]
fn a_session_that_the_peer_has_confirmed_stays_in_use_until_the_device_hears_of_it() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(Duration::from_secs(30));
    world.restart(BOB);
    world.introduce(BOB, ALICE);
    let (receiver, first) = answer_bob(&mut world);
    let (now, path) = (world.now(), world.path(ALICE, BOB));
    assert!(!path.sends_to(receiver), "Alice has one already");
    open(&world, first).expect("it is genuine");
    assert!(path.sends_to(receiver), "Bob has forgotten the other one");
    let alice = &mut world.nodes[ALICE].device;
    alice.send_keepalive(now, path.id());
    assert!(alice.poll_transmit(now).is_some() && alice.poll_transmit(now).is_none());
    alice.note_transmitted(now);
    assert!(path.sends_to(receiver));
}

#[test]
fn a_confirmed_session_that_the_device_has_not_heard_of_outlives_the_next_handshake() {
    let mut world = World::pair();
    let (receiver, first) = answer_bob(&mut world);
    open(&world, first).expect("it is genuine");
    let path = world.path(BOB, ALICE);
    let mut under_way = [0; 64];
    path.seal(world.now().monotonic, std::iter::once(&mut under_way[..])).expect("a session");
    world.run(Duration::from_secs(6));
    let (next, _) = answer_bob(&mut world);
    assert_eq!(open(&world, under_way.to_vec()), Ok(()));
    let path = world.path(ALICE, BOB);
    assert!(path.sends_to(receiver) && !path.sends_to(next), "Bob has not confirmed that one");
}

/// A device that starts again greets all its peers, which takes it a while when there are thousands.
#[test]
fn a_peer_that_packets_wait_for_is_greeted_before_those_that_nothing_waits_for() {
    let mut world = World::new(1);
    let alice = world.add_node();
    let others: Vec<usize> = (0..40).map(|_| world.add_node()).collect();
    let now = world.now();
    for other in &others {
        world.introduce(alice, *other);
        let key = world.nodes[*other].public_key;
        world.nodes[alice].device.configure(now, |configuration| {
            // This has a keepalive sent at once.
            let mut peer = configuration.peer(&key).expect("it was added");
            peer.set_persistent_keepalive(1.try_into().ok()).set_persistent_keepalive(None);
        });
    }
    let last = *others.last().expect("a peer");
    let to = world.nodes[last].address;
    let packet = ipv4(world.nodes[alice].inner, world.nodes[last].inner, b"waits");
    world.send_packet(alice, &packet);
    let device = &mut world.nodes[alice].device;
    device.handle_timeout(now);
    assert_eq!(device.poll_transmit(now).map(|transmit| transmit.endpoint.remote), Some(to));
}
