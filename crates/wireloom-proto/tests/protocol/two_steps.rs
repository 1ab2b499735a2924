//! Batches that are decrypted first and accepted later. The outcome is that of opening them later.

use proptest::prelude::*;
use wireloom_proto::{Decrypted, DropReason, Endpoint, Outcome, Transport, message};

use crate::world::{ALICE, BOB, MTU, World, address, ipv4};

/// A copy of an [`Outcome`].
#[derive(Debug, PartialEq)]
enum Became {
    Payload(Vec<u8>),
    Handshake(Vec<u8>),
    Dropped(DropReason),
    Told(String),
}

fn became(outcome: Outcome<'_, '_>) -> Became {
    match outcome {
        Outcome::Opened { payload, .. } => Became::Payload(payload.to_vec()),
        Outcome::Handshake(_, datagram) => Became::Handshake(datagram.to_vec()),
        Outcome::Dropped(reason) => Became::Dropped(reason),
        Outcome::Signal(signal) => Became::Told(format!("{signal:?}")),
    }
}

type Batch = Vec<(Endpoint, Vec<u8>)>;

fn borrow(batch: &mut Batch) -> impl Iterator<Item = (Endpoint, &mut [u8])> {
    batch.iter_mut().map(|(from, datagram)| (*from, datagram.as_mut_slice()))
}

fn open(world: &World, batch: &mut Batch) -> Vec<Became> {
    let mut all = Vec::new();
    let now = world.now().monotonic;
    transport(world).open_batch(now, borrow(batch), |outcome| all.push(became(outcome)));
    all
}

fn decrypt(world: &World, batch: &mut Batch) -> Decrypted {
    let mut decrypted = Decrypted::default();
    transport(world).decrypt_batch(borrow(batch), &mut decrypted);
    decrypted
}

fn accept(world: &World, batch: &mut Batch, decrypted: &mut Decrypted) -> Vec<Became> {
    let mut all = Vec::new();
    let now = world.now().monotonic;
    transport(world).accept_batch(now, borrow(batch), decrypted, |outcome| all.push(became(outcome)));
    all
}

fn transport(world: &World) -> &Transport {
    world.nodes[BOB].device.transport()
}

/// `count` messages from Alice to Bob, sealed in this order.
fn sealed(world: &World, count: u8) -> Batch {
    let mut messages: Vec<Vec<u8>> = (0..count)
        .map(|number| {
            let packet = ipv4(world.nodes[ALICE].inner, world.nodes[BOB].inner, &[number; 30]);
            let mut message = vec![0; message::data_len(packet.len(), MTU)];
            message[message::DATA_HEADER_LEN..][..packet.len()].copy_from_slice(&packet);
            message
        })
        .collect();
    let now = world.now().monotonic;
    world.path(ALICE, BOB).seal(now, messages.iter_mut().map(Vec::as_mut_slice)).unwrap();
    messages.into_iter().map(|message| (address(1).into(), message)).collect()
}

fn connected() -> World {
    let mut world = World::pair();
    world.assert_connected();
    world
}

fn remove_alice(world: &mut World) {
    let (now, key) = (world.now(), world.nodes[ALICE].public_key);
    world.nodes[BOB].device.configure(now, |configuration| configuration.remove_peer(&key));
}

fn all_dropped(outcomes: &[Became], reason: DropReason) -> bool {
    outcomes.iter().all(|outcome| *outcome == Became::Dropped(reason))
}

/// One of the messages, as the network or an attacker may change it.
fn datagram(messages: &Batch, number: usize, what: u8) -> (Endpoint, Vec<u8>) {
    let (mut from, mut bytes) = messages[number].clone();
    match what {
        0 => bytes[20] ^= 1,
        // The counter.
        1 => bytes[9] ^= 1,
        // The receiver index.
        2 => bytes[5] ^= 1,
        3 => bytes.truncate(20),
        4 => bytes = [vec![1, 0, 0, 0], vec![7; message::INITIATION_LEN - 4]].concat(),
        5 => from = address(9).into(),
        6 => bytes.clear(),
        _ => {}
    }
    (from, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// One world decrypts all batches, in either order, before it accepts the first one. The other world opens each
    /// batch when the first world accepts it. In between, the peer may be removed or its session may expire.
    #[test]
    fn two_steps_report_what_one_step_reports(
        picks in prop::collection::vec(prop::collection::vec((0..60_usize, 0..20_u8), 0..50), 1..6),
        backwards: bool,
        removed_before in prop::option::weighted(0.3, 0..6_usize),
        old: bool,
    ) {
        let mut worlds = [connected(), connected()];
        let messages = sealed(&worlds[0], 60);
        prop_assert_eq!(&messages, &sealed(&worlds[1], 60), "both worlds are the same");
        let mut batches: Vec<Batch> = picks
            .iter()
            .map(|picks| picks.iter().map(|(number, what)| datagram(&messages, *number, *what)).collect())
            .collect();
        let mut again = batches.clone();

        let mut decrypted: Vec<_> = batches.iter().map(|_| Decrypted::default()).collect();
        let mut order: Vec<_> = (0..batches.len()).collect();
        if backwards {
            order.reverse();
        }
        for place in order {
            decrypted[place] = decrypt(&worlds[0], &mut batches[place]);
        }
        if old {
            for world in &mut worlds {
                // Nobody sends, so the session expires and is not renewed.
                world.run(std::time::Duration::from_secs(181));
            }
        }
        for (place, (batch, other)) in batches.iter_mut().zip(&mut again).enumerate() {
            if removed_before == Some(place) {
                worlds.iter_mut().for_each(remove_alice);
            }
            let two = accept(&worlds[0], batch, &mut decrypted[place]);
            let one = open(&worlds[1], other);
            prop_assert_eq!(two, one, "batch {}", place);
        }
        let [two, one] = worlds.map(|world| {
            let device = &world.nodes[BOB].device;
            device.peer(&world.nodes[ALICE].public_key).map(|peer| format!("{peer:?}"))
        });
        prop_assert_eq!(two, one, "the peer's byte counters and times");
    }
}

#[test]
fn a_duplicate_in_another_batch_is_dropped() {
    let world = connected();
    let mut batches = [sealed(&world, 40), Vec::new()];
    batches[1] = batches[0].clone();
    let mut decrypted = batches.each_mut().map(|batch| decrypt(&world, batch));
    let first = accept(&world, &mut batches[0], &mut decrypted[0]);
    assert_eq!(first.iter().filter(|became| matches!(became, Became::Payload(_))).count(), 40);
    let second = accept(&world, &mut batches[1], &mut decrypted[1]);
    assert_eq!(second.len(), 40);
    assert!(all_dropped(&second, DropReason::Replayed), "{second:?}");
}

#[test]
fn forgeries_do_not_move_the_window() {
    let world = connected();
    let messages = sealed(&world, 3);
    let mut forgeries = messages.clone();
    for (_, forgery) in &mut forgeries {
        // A counter far ahead of the window.
        forgery[12] = 1;
    }
    let mut decrypted = decrypt(&world, &mut forgeries);
    let before = world.path(BOB, ALICE).received_bytes();
    assert!(all_dropped(&accept(&world, &mut forgeries, &mut decrypted), DropReason::BadCiphertext));
    assert_eq!(world.path(BOB, ALICE).received_bytes(), before);
    let opened = open(&world, &mut messages.clone());
    assert_eq!(opened.iter().filter(|became| matches!(became, Became::Payload(_))).count(), 3);
}

#[test]
fn decryption_alone_accepts_nothing() {
    let world = connected();
    let messages = sealed(&world, 20);
    let before = world.path(BOB, ALICE).received_bytes();
    drop(decrypt(&world, &mut messages.clone()));
    assert_eq!(world.path(BOB, ALICE).received_bytes(), before);
    let opened = open(&world, &mut messages.clone());
    assert_eq!(
        opened.iter().filter(|became| matches!(became, Became::Payload(_))).count(),
        20,
        "none counts as received"
    );
}

#[test]
fn messages_decrypted_before_their_peer_was_removed_are_dropped() {
    let mut world = connected();
    let mut batch = sealed(&world, 20);
    let mut decrypted = decrypt(&world, &mut batch);
    remove_alice(&mut world);
    let outcomes = accept(&world, &mut batch, &mut decrypted);
    assert_eq!(outcomes.len(), 20);
    assert!(all_dropped(&outcomes, DropReason::UnknownIndex), "{outcomes:?}");
}

#[test]
fn messages_decrypted_before_a_renewal_are_accepted() {
    let mut world = connected();
    let mut batch = sealed(&world, 20);
    let mut decrypted = decrypt(&world, &mut batch);
    let before = world.count(wireloom_proto::MessageKind::Initiation);
    for _ in 0..13 {
        world.run(std::time::Duration::from_secs(10));
        world.assert_connected();
    }
    assert!(world.count(wireloom_proto::MessageKind::Initiation) > before, "the session was renewed");
    let outcomes = accept(&world, &mut batch, &mut decrypted);
    assert_eq!(
        outcomes.iter().filter(|became| matches!(became, Became::Payload(_))).count(),
        20,
        "{outcomes:?}"
    );
}

#[test]
fn messages_that_came_before_their_session_are_opened_in_the_second_step() {
    let world = connected();
    let mut early = sealed(&world, 5);
    // The first step runs with a transport that has no sessions, as Bob's had none before the handshake.
    let mut decrypted = decrypt(&World::pair(), &mut early);
    let outcomes = accept(&world, &mut early, &mut decrypted);
    assert_eq!(
        outcomes.iter().filter(|became| matches!(became, Became::Payload(_))).count(),
        5,
        "{outcomes:?}"
    );
}
