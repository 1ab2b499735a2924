//! The parsers, with arbitrary bytes and damaged messages: nothing panics, and nothing is accepted.

use std::sync::Arc;

use proptest::prelude::*;
use wireloom_proto::message::{CookieReply, DataHeader, Initiation, Response};
use wireloom_proto::{MessageKind, inner};

use crate::world::{ALICE, BOB, World, address, sign_mac1};

/// Gives these bytes to every parser and to both parts of a device, and asserts that they are dropped.
fn expose(world: &mut World, bytes: &[u8]) {
    let before = world.nodes[BOB].drops.len();
    world.deliver(address(1), address(2), bytes.to_vec());
    assert_eq!(world.nodes[BOB].drops.len(), before + 1, "dropped once");
    let now = world.now();
    let device = &mut world.nodes[BOB].device;
    assert!(device.handle_handshake(now, address(1).into(), bytes).is_err());
    let transport = Arc::clone(device.transport());
    assert!(transport.open(now.monotonic, address(1).into(), &mut bytes.to_vec()).is_err());
    let parsed = [
        Initiation::parse(bytes).is_ok(),
        Response::parse(bytes).is_ok(),
        CookieReply::parse(bytes).is_ok(),
        DataHeader::parse(bytes).is_ok(),
    ];
    let known = usize::from(MessageKind::classify(bytes).is_ok());
    assert_eq!(parsed.iter().filter(|parsed| **parsed).count(), known);
    if let Ok(packet) = inner::Packet::parse(bytes) {
        assert!(packet.len <= bytes.len());
    }
}

fn connected() -> World {
    let mut world = World::pair();
    world.assert_connected();
    world
}

#[test]
fn truncated_and_extended_messages_are_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let messages: Vec<Vec<u8>> = world.seen.iter().map(|seen| seen.bytes.clone()).collect();
    assert_eq!(messages.len(), 4);
    let cookie_reply = {
        let mut bytes = vec![0; 64];
        bytes[0] = 3;
        bytes
    };
    for message in messages.into_iter().chain([cookie_reply]) {
        for len in 0..message.len() {
            expose(&mut world, &message[..len]);
        }
        for extra in [1, 16, 100, 65_000] {
            let mut longer = message.clone();
            longer.resize(message.len() + extra, 0);
            expose(&mut world, &longer);
        }
    }
    world.assert_connected();
}

#[test]
fn parsed_messages_encode_to_the_same_bytes() {
    let mut world = World::pair();
    world.assert_connected();
    for seen in &world.seen {
        let again = match seen.kind() {
            MessageKind::Initiation => Initiation::parse(&seen.bytes).unwrap().to_bytes().to_vec(),
            MessageKind::Response => Response::parse(&seen.bytes).unwrap().to_bytes().to_vec(),
            MessageKind::CookieReply => CookieReply::parse(&seen.bytes).unwrap().to_bytes().to_vec(),
            MessageKind::Data => continue,
        };
        assert_eq!(again, seen.bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_bytes_are_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut world = connected();
        expose(&mut world, &bytes);
        world.assert_connected();
    }

    /// Random bytes with a valid type, length and MAC1 get as far as random bytes can.
    #[test]
    fn random_messages_of_a_valid_type_and_length_are_dropped(kind in 1..=4_u8, body in any::<[[u8; 32]; 8]>()) {
        let mut world = connected();
        let mut bytes = body.concat();
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes.truncate(match kind { 1 => 148, 2 => 92, 3 => 64, _ => 200 });
        if kind <= 2 {
            sign_mac1(&mut bytes, &world.nodes[BOB].public_key);
        }
        expose(&mut world, &bytes);
        world.assert_connected();
    }

    /// Flips one bit anywhere in a genuine message, and makes MAC1 valid again.
    #[test]
    fn a_message_with_a_flipped_bit_does_not_break_the_tunnel(
        message in 0..4_usize,
        place in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let mut world = World::pair();
        world.assert_connected();
        let mut bytes = world.seen[message].bytes.clone();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if message < 2 {
            let receiver = if world.seen[message].to == address(2) { BOB } else { ALICE };
            sign_mac1(&mut bytes, &world.nodes[receiver].public_key);
        }
        let (from, to) = (world.seen[message].from, world.seen[message].to);
        world.deliver(from, to, bytes);
        world.assert_connected();
    }

    #[test]
    fn parsed_inner_packets_lie_within_their_bytes(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        version in 4..=6_u8,
    ) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version << 4 | 5;
        }
        if let Ok(packet) = inner::Packet::parse(&bytes) {
            prop_assert!(packet.len <= bytes.len());
            prop_assert_eq!(packet.source.is_ipv4(), version == 4);
        }
    }
}
