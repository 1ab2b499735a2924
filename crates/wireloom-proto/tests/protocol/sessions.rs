//! Sessions: renewal, loss, reordering, roaming, padding, expiry.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use wireloom_proto::{DropReason, Endpoint, MessageKind, Outcome, message};

use crate::world::{ALICE, BOB, MTU, World, address, ipv4, ipv6};

const SECOND: Duration = Duration::from_secs(1);

/// Sends numbered packets in both directions, one per second each, and returns the numbers that came out at each node.
fn converse(world: &mut World, seconds: u32) -> [Vec<u32>; 2] {
    let mut received = [Vec::new(), Vec::new()];
    for number in 0..seconds {
        world.send(ALICE, BOB, &number.to_be_bytes());
        world.send(BOB, ALICE, &number.to_be_bytes());
        world.run(SECOND);
        for node in [ALICE, BOB] {
            let numbers = world.take_received(node).into_iter();
            received[node]
                .extend(numbers.map(|payload| u32::from_be_bytes(payload.try_into().expect("4 bytes"))));
        }
    }
    received
}

#[test]
fn renewals_over_4_hours_lose_no_packet() {
    let mut world = World::pair();
    let seconds = 4 * 3600;
    let everything: Vec<u32> = (0..seconds).collect();
    assert_eq!(converse(&mut world, seconds), [everything.clone(), everything]);
    assert!(world.nodes.iter().all(|node| node.drops.is_empty()));
    // The first handshake is at 0 s. After that, the initiator renews each session when it is 120 s old.
    let initiations = world.count(MessageKind::Initiation) as u32;
    assert!((seconds / 122..=seconds / 120 + 2).contains(&initiations), "{initiations}");
}

#[test]
fn indices_of_ended_sessions_are_freed() {
    let mut world = World::pair();
    converse(&mut world, 1000);
    let indices: Vec<Vec<u8>> = world
        .seen_of(MessageKind::Initiation)
        .iter()
        .filter(|seen| seen.from == address(1))
        .map(|seen| seen.bytes[4..8].to_vec())
        .collect();
    // Of nine handshakes, at most four still have an index: three sessions and one that is under way.
    assert!(indices.len() >= 8);
    for index in &indices[..indices.len() - 3] {
        let mut reply = vec![3, 0, 0, 0];
        reply.extend(index);
        reply.resize(message::COOKIE_REPLY_LEN, 0);
        world.deliver(address(2), address(1), reply);
        assert_eq!(world.nodes[ALICE].drops.pop(), Some(DropReason::UnknownIndex));
    }
}

#[test]
fn renewals_lose_no_packet_when_datagrams_are_reordered() {
    for seed in 0..4 {
        let mut world = World::pair_seeded(seed);
        world.link.jitter = Duration::from_millis(400);
        let received = converse(&mut world, 1800);
        for numbers in received {
            assert_eq!(numbers.iter().copied().collect::<BTreeSet<_>>().len(), 1800);
            assert_eq!(numbers.len(), 1800);
        }
    }
}

#[test]
fn a_bad_link_delays_renewals_but_duplicates_no_packet() {
    let mut world = World::pair();
    world.link.loss = 200;
    world.link.duplication = 200;
    world.link.jitter = Duration::from_millis(200);
    let received = converse(&mut world, 3600);
    for numbers in received {
        let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
        assert_eq!(distinct.len(), numbers.len(), "no packet comes out twice");
        assert!(numbers.len() > 3600 * 75 / 100, "{}", numbers.len());
    }
    assert!(world.nodes[BOB].drops.contains(&DropReason::Replayed));
    world.link = Default::default();
    world.assert_connected();
}

#[test]
fn a_duplicated_message_is_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let last = world.seen.iter().rfind(|seen| seen.to == address(2)).unwrap().clone();
    world.deliver(last.from, last.to, last.bytes);
    assert_eq!(world.nodes[BOB].drops, [DropReason::Replayed]);
    assert!(world.nodes[BOB].received.is_empty());
}

#[test]
fn a_modified_message_is_dropped_and_changes_no_state() {
    let mut world = World::pair();
    world.assert_connected();
    let last = world.seen.iter().rfind(|seen| seen.to == address(2)).unwrap().clone();
    for place in 8..last.bytes.len() {
        let mut bytes = last.bytes.clone();
        bytes[place] ^= 0x40;
        world.deliver(address(66), last.to, bytes);
        assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::BadCiphertext), "byte {place}");
    }
    assert_eq!(world.path(BOB, ALICE).endpoint().unwrap().remote, address(1));
    // Some of the modified counters were far ahead. The window did not move to them.
    world.assert_connected();
}

#[test]
fn a_session_receives_until_180_seconds_and_its_keys_are_wiped_after_540() {
    let mut world = World::pair();
    world.assert_connected();
    let old: Vec<Vec<u8>> = (0..3)
        .map(|_| {
            world.send(ALICE, BOB, b"late");
            world.seen.pop().expect("a data message").bytes
        })
        .collect();
    world.unreachable = vec![address(1), address(2)];
    let deliver = |world: &mut World, message: &[u8]| {
        world.unreachable = vec![address(1)];
        world.deliver(address(1), address(2), message.to_vec());
        world.unreachable = vec![address(1), address(2)];
    };
    world.run(179 * SECOND);
    deliver(&mut world, &old[0]);
    assert_eq!(world.take_received(BOB), [b"late".to_vec()]);
    world.run(SECOND);
    deliver(&mut world, &old[1]);
    assert_eq!(world.nodes[BOB].drops, [DropReason::SessionExpired]);
    world.run(359 * SECOND);
    deliver(&mut world, &old[1]);
    assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::SessionExpired));
    world.run(SECOND);
    deliver(&mut world, &old[2]);
    assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::UnknownIndex), "wiped");
    world.unreachable.clear();
    world.assert_connected();
}

#[test]
fn a_session_sends_until_180_seconds() {
    let mut world = World::pair();
    world.assert_connected();
    world.run(179 * SECOND);
    world.seen.clear();
    world.send(BOB, ALICE, b"in time");
    assert_eq!(world.seen[0].kind(), MessageKind::Data, "the responder does not renew by age");
    world.seen.clear();
    world.unreachable = vec![address(1), address(2)];
    world.run(SECOND);
    world.send(BOB, ALICE, b"too late");
    assert_eq!(world.count(MessageKind::Data), 0);
    assert_eq!(world.count(MessageKind::Initiation), 1);
}

#[test]
fn the_endpoint_follows_the_peer() {
    let mut world = World::pair();
    world.assert_connected();
    world.nodes[ALICE].address = address(201);
    world.send(BOB, ALICE, b"to the old address");
    world.settle();
    assert!(world.take_received(ALICE).is_empty());
    world.send(ALICE, BOB, b"I moved");
    world.settle();
    world.nodes[BOB].received.clear();
    assert_eq!(world.path(BOB, ALICE).endpoint().unwrap().remote, address(201));
    world.assert_connected();
    assert_eq!(world.count(MessageKind::Initiation), 1, "roaming needs no handshake");
}

#[test]
fn a_replayed_message_does_not_change_the_endpoint() {
    let mut world = World::pair();
    world.assert_connected();
    let last = world.seen.iter().rfind(|seen| seen.to == address(2)).unwrap().clone();
    world.deliver(address(66), address(2), last.bytes);
    assert_eq!(world.path(BOB, ALICE).endpoint().unwrap().remote, address(1));
}

#[test]
fn a_responder_learns_the_endpoint_of_its_peer() {
    let mut world = World::new(1);
    world.add_node();
    world.add_node();
    world.introduce(ALICE, BOB);
    let now = world.now();
    let (alice, network) = (world.nodes[ALICE].public_key, world.nodes[ALICE].inner);
    let bob = &mut world.nodes[BOB];
    bob.device.configure(now, |configuration| {
        configuration.add_peer(alice).unwrap().add_allowed_ip(IpAddr::V4(network).into());
    });
    world.send(BOB, ALICE, b"where are you?");
    assert_eq!(world.nodes[BOB].drops, [DropReason::NoEndpoint]);
    assert!(world.seen.is_empty());
    world.assert_connected();
}

#[test]
fn payloads_are_padded_to_16_bytes_but_not_beyond_the_mtu() {
    let mut world = World::pair();
    world.assert_connected();
    for (len, on_the_wire) in [(20, 32), (32, 32), (33, 48), (1408, 1408), (1409, 1420), (1420, 1420)] {
        world.send(ALICE, BOB, &vec![7; len - 20]);
        let last = world.seen.last().unwrap();
        assert_eq!(last.bytes.len(), message::DATA_OVERHEAD + on_the_wire, "{len}");
        world.settle();
        assert_eq!(world.take_received(BOB), [vec![7; len - 20]], "without the padding");
    }
}

#[test]
fn staged_packets_are_padded_like_others() {
    let mut world = World::pair();
    world.send(ALICE, BOB, &[7; MTU - 20 - 3]);
    world.settle();
    let data = world.seen_of(MessageKind::Data);
    assert_eq!(data[0].bytes.len(), message::DATA_OVERHEAD + MTU);
    assert_eq!(world.take_received(BOB), [vec![7; MTU - 20 - 3]]);
}

#[test]
fn a_packet_from_a_source_outside_the_allowed_ips_is_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let forged = ipv4([10, 0, 0, 9].into(), world.nodes[BOB].inner, b"not mine");
    world.send_packet(ALICE, &forged);
    world.settle();
    assert_eq!(world.nodes[BOB].drops, [DropReason::SourceNotAllowed]);
    assert!(world.nodes[BOB].received.is_empty());
}

#[test]
fn ipv4_and_ipv6_share_a_tunnel() {
    let mut world = World::pair();
    let now = world.now();
    let inner = [Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)];
    for (node, other) in [(ALICE, BOB), (BOB, ALICE)] {
        let key = world.nodes[other].public_key;
        world.nodes[node].device.configure(now, |configuration| {
            configuration.peer(&key).unwrap().add_allowed_ip(IpAddr::V6(inner[other]).into());
        });
    }
    let packet = ipv6(inner[ALICE], inner[BOB], b"hello");
    world.send_packet(ALICE, &packet);
    world.poll(ALICE);
    world.settle();
    assert_eq!(world.nodes[BOB].received, [packet]);
    world.nodes[BOB].received.clear();
    let mut forged = ipv6(inner[BOB], inner[BOB], b"hello");
    world.send_packet(ALICE, &forged);
    world.settle();
    assert_eq!(world.nodes[BOB].drops.pop(), Some(DropReason::SourceNotAllowed));
    forged[24..40].fill(0xff);
    world.send_packet(ALICE, &forged);
    assert_eq!(world.nodes[ALICE].drops.pop(), Some(DropReason::NoPeerForDestination));
    world.assert_connected();
}

#[test]
fn an_inner_packet_that_is_not_ip_is_dropped() {
    let mut world = World::pair();
    world.assert_connected();
    let path = world.path(ALICE, BOB);
    let mut buffer = [0xff; 16 + 48 + 16];
    path.seal(world.now().monotonic, std::iter::once(&mut buffer[..])).unwrap();
    world.deliver(address(1), address(2), buffer.to_vec());
    assert_eq!(world.nodes[BOB].drops, [DropReason::BadInnerPacket]);
}

#[test]
fn at_most_128_packets_are_staged_and_the_oldest_is_dropped_first() {
    let mut world = World::pair();
    world.unreachable = vec![address(2)];
    for number in 0..200_u32 {
        world.send(ALICE, BOB, &number.to_be_bytes());
    }
    assert_eq!(world.nodes[ALICE].drops, vec![DropReason::QueueFull; 72]);
    world.settle();
    world.unreachable.clear();
    world.run(6 * SECOND);
    let numbers: Vec<u32> = world
        .take_received(BOB)
        .into_iter()
        .map(|payload| u32::from_be_bytes(payload.try_into().expect("4 bytes")))
        .collect();
    assert_eq!(numbers, (72..200).collect::<Vec<u32>>(), "the newest 128, in order");
}

#[test]
fn a_batch_is_opened_in_order_whatever_is_mixed_into_it() {
    let mut world = World::pair();
    world.assert_connected();
    let packets: Vec<Vec<u8>> = (0..40)
        .map(|number| ipv4(world.nodes[ALICE].inner, world.nodes[BOB].inner, &[number; 300]))
        .collect();
    let mut batch: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| {
            let mut message = vec![0; message::data_len(packet.len(), MTU)];
            message[message::DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
            message
        })
        .collect();
    let now = world.now().monotonic;
    let sealed = world.path(ALICE, BOB).seal(now, batch.iter_mut().map(Vec::as_mut_slice)).unwrap();
    assert_eq!(sealed.endpoint.remote, address(2));

    // Mix in a truncated datagram, one for an unknown index, a handshake message, a duplicate and a forgery.
    batch.insert(7, vec![4, 0, 0, 0, 1, 2, 3]);
    batch.insert(20, [vec![4, 0, 0, 0], vec![0xee; 60]].concat());
    batch.insert(25, [vec![1, 0, 0, 0], vec![0; message::INITIATION_LEN - 4]].concat());
    batch.insert(30, batch[29].clone());
    batch.insert(40, batch[41].clone());
    batch[40][200] ^= 1;
    let transport = world.nodes[BOB].device.transport().clone();
    let path = world.path(BOB, ALICE);
    let received = path.received_bytes();
    let mut outcomes = Vec::new();
    let from = Endpoint::from(address(1));
    let messages = batch.iter_mut().map(|message| (from, message.as_mut_slice()));
    transport.open_batch(now, messages, |outcome| match outcome {
        Outcome::Opened { path: from, payload } => {
            assert_eq!(from.id(), path.id());
            outcomes.push(Ok(payload.to_vec()));
        }
        Outcome::Handshake(_, message) => assert_eq!((outcomes.len(), message[0]), (25, 1)),
        Outcome::Dropped(reason) => outcomes.push(Err(reason)),
        Outcome::Signal(_) => {}
    });
    assert_eq!(outcomes.remove(39), Err(DropReason::BadCiphertext));
    assert_eq!(outcomes.remove(29), Err(DropReason::Replayed));
    assert_eq!(outcomes.remove(20), Err(DropReason::UnknownIndex));
    assert_eq!(outcomes.remove(7), Err(DropReason::BadLength));
    assert_eq!(outcomes.len(), packets.len());
    assert_eq!(
        path.received_bytes() - received,
        40 * batch[0].len() as u64,
        "only authentic and new messages count"
    );
    for (packet, payload) in packets.iter().zip(outcomes) {
        assert_eq!(payload.unwrap()[..packet.len()], packet[..]);
    }
}
