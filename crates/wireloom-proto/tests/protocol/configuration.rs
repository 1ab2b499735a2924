//! Keys and peers that are added, changed and removed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::Duration;

use ipnet::IpNet;
use wireloom_proto::{ConfigureError, Device, DropReason, MessageKind, Staged};
use wireloom_types::{PresharedKey, PublicKey};

use crate::world::{ALICE, BOB, World, address, private_key};

const SECOND: Duration = Duration::from_secs(1);

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn owner(device: &Device, address: &str) -> Option<PublicKey> {
    let routes = device.transport().routes();
    let address: IpAddr = address.parse().expect("an address");
    routes.lookup(address).map(|path| *path.public_key())
}

#[test]
fn settings_can_be_read_back() {
    let mut world = World::new(1);
    let node = world.add_node();
    let (now, key) = (world.now(), private_key(9).public_key());
    let device = &mut world.nodes[node].device;
    assert_eq!(device.private_key(), Some(&private_key(1)));
    device.configure(now, |configuration| {
        configuration
            .add_peer(key)
            .unwrap()
            .set_endpoint(address(9))
            .set_preshared_key(Some(&PresharedKey::from_bytes([3; 32])))
            .set_persistent_keepalive(NonZeroU16::new(25))
            .add_allowed_ip(net("10.1.2.3/8"))
            .add_allowed_ip(net("2001:db8::1/64"));
    });
    let status = device.peer(&key).unwrap();
    assert_eq!(*status.public_key, key);
    assert_eq!(status.endpoint.unwrap().remote, address(9));
    assert_eq!(status.preshared_key, Some(&PresharedKey::from_bytes([3; 32])));
    assert_eq!(status.persistent_keepalive, NonZeroU16::new(25));
    assert_eq!(*status.allowed_ips, BTreeSet::from([net("10.0.0.0/8"), net("2001:db8::/64")]));
    assert_eq!(status.last_handshake, None);
    assert_eq!((status.sent_bytes, status.received_bytes), (0, 0));
    assert_eq!(status.protocol_version, 1);
    assert_eq!(device.peers().count(), 1);
}

#[test]
fn bytes_and_handshakes_are_recorded_as_in_the_kernel() {
    let mut world = World::pair();
    world.assert_connected();
    let handshake = world.now().unix;
    let sent = |address| {
        let from = world.seen.iter().filter(|seen| seen.from == address);
        from.map(|seen| seen.bytes.len() as u64).sum::<u64>()
    };
    for (node, other) in [(ALICE, BOB), (BOB, ALICE)] {
        let status = world.nodes[node].device.peer(&world.nodes[other].public_key).unwrap();
        assert_eq!(status.sent_bytes, sent(world.nodes[node].address), "handshakes included");
        assert_eq!(status.received_bytes, sent(world.nodes[other].address));
        let last = status.last_handshake.unwrap();
        assert!(handshake.since_epoch() - last.since_epoch() < SECOND);
    }
}

#[test]
fn an_allowed_ip_belongs_to_the_peer_that_got_it_last() {
    let mut world = World::pair();
    let third = world.add_node();
    let (now, key) = (world.now(), world.nodes[third].public_key);
    let bob = world.nodes[BOB].public_key;
    let device = &mut world.nodes[ALICE].device;
    device.configure(now, |configuration| {
        configuration.add_peer(key).unwrap().add_allowed_ip(net("10.0.0.2/32"));
    });
    assert_eq!(owner(device, "10.0.0.2"), Some(key));
    assert!(device.peer(&bob).unwrap().allowed_ips.is_empty());

    // Removing it from its former owner changes nothing.
    device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().remove_allowed_ip(net("10.0.0.2/32"));
    });
    assert_eq!(owner(device, "10.0.0.2"), Some(key));
    device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().add_allowed_ip(net("10.0.0.0/24"));
    });
    device.configure(now, |configuration| {
        configuration.peer(&key).unwrap().remove_allowed_ip(net("10.0.0.2/32"));
    });
    assert_eq!(owner(device, "10.0.0.2"), Some(bob), "the longest prefix that is left");
    device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().clear_allowed_ips();
    });
    assert_eq!(owner(device, "10.0.0.2"), None);
}

#[test]
fn routes_are_published_when_the_configuration_is_complete() {
    let mut world = World::pair();
    let now = world.now();
    let bob = world.nodes[BOB].public_key;
    let device = &mut world.nodes[ALICE].device;
    let transport = device.transport().clone();
    let look = || transport.routes().lookup([10, 9, 9, 9].into()).is_some();
    device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().add_allowed_ip(net("10.9.0.0/16"));
        assert!(!look());
    });
    assert!(look());
}

#[test]
fn a_removed_peer_neither_sends_nor_receives() {
    let mut world = World::pair();
    world.assert_connected();
    let path = world.path(BOB, ALICE);
    let (now, alice) = (world.now(), world.nodes[ALICE].public_key);
    let bob = &mut world.nodes[BOB].device;
    assert!(bob.configure(now, |configuration| configuration.remove_peer(&alice)));
    assert!(!bob.configure(now, |configuration| configuration.remove_peer(&alice)));
    assert!(bob.peer(&alice).is_none());
    assert_eq!(owner(bob, "10.0.0.1"), None);
    assert_eq!(bob.poll_timeout(), None);
    // Its path cannot seal any more, and no packet is kept for it.
    let mut message = [0; 64];
    assert!(path.seal(now.monotonic, std::iter::once(&mut message[..])).is_err());
    let waiting = bob.transport().reserve_or_stage(now.monotonic, &path, [&message[..]].into_iter(), 64);
    let refused = Staged { signal: None, dropped: Some((DropReason::NoPeerForDestination, 1)) };
    assert_eq!(waiting.err(), Some(refused));

    world.send(ALICE, BOB, b"hello");
    world.settle();
    assert_eq!(world.nodes[BOB].drops, [DropReason::UnknownIndex]);
    // It can be added again.
    world.introduce(BOB, ALICE);
    world.send(BOB, ALICE, b"hello");
    world.settle();
    assert_eq!(world.take_received(ALICE), [b"hello".to_vec()]);
}

#[test]
fn a_new_private_key_ends_all_sessions() {
    let mut world = World::pair();
    world.assert_connected();
    let now = world.now();
    // The same key again changes nothing.
    world.nodes[BOB]
        .device
        .configure(now, |configuration| configuration.set_private_key(Some(private_key(2))));
    world.seen.clear();
    world.assert_connected();
    assert_eq!(world.count(MessageKind::Initiation), 0);

    world.nodes[BOB]
        .device
        .configure(now, |configuration| configuration.set_private_key(Some(private_key(20))));
    world.send(ALICE, BOB, b"to the old bob");
    world.settle();
    assert_eq!(world.nodes[BOB].drops, [DropReason::UnknownIndex]);
    let (old, new) = (world.nodes[BOB].public_key, private_key(20).public_key());
    let now = world.now();
    world.nodes[ALICE].device.configure(now, |configuration| configuration.remove_peer(&old));
    world.nodes[BOB].public_key = new;
    world.introduce(ALICE, BOB);
    world.assert_connected();
}

#[test]
fn a_removed_private_key_ends_all_sessions() {
    let mut world = World::pair();
    world.assert_connected();
    let now = world.now();
    world.nodes[BOB].device.configure(now, |configuration| configuration.set_private_key(None));
    assert_eq!(world.nodes[BOB].device.private_key(), None);
    world.seen.clear();
    world.send(BOB, ALICE, b"silence");
    world.run(10 * SECOND);
    assert!(world.seen.iter().all(|seen| seen.from != address(2)));
}

#[test]
fn a_device_cannot_be_its_own_peer() {
    let mut world = World::pair();
    let now = world.now();
    let (alice, bob) = (world.nodes[ALICE].public_key, world.nodes[BOB].public_key);
    let device = &mut world.nodes[ALICE].device;
    let refused = device.configure(now, |configuration| configuration.add_peer(alice).map(|_| ()));
    assert_eq!(refused, Err(ConfigureError::OwnPublicKey));
    // A peer whose public key becomes our own is removed.
    device.configure(now, |configuration| configuration.set_private_key(Some(private_key(2))));
    assert!(device.peer(&bob).is_none());
    assert_eq!(owner(device, "10.0.0.2"), None);
}

#[test]
fn debug_output_shows_no_secrets() {
    let mut world = World::pair();
    world.assert_connected();
    let (now, bob) = (world.now(), world.nodes[BOB].public_key);
    let device = &mut world.nodes[ALICE].device;
    let psk = PresharedKey::from_bytes([0xab; 32]);
    device.configure(now, |configuration| {
        configuration.peer(&bob).unwrap().set_preshared_key(Some(&psk));
    });
    world.run(121 * SECOND);
    world.send(ALICE, BOB, b"renew");
    let path = world.path(ALICE, BOB);
    world.run(181 * SECOND);
    let now = world.now();
    let waits = [0xcd; 100];
    let staged = world.nodes[ALICE].device.transport().reserve_or_stage(
        now.monotonic,
        &path,
        [&waits[..]].into_iter(),
        100,
    );
    assert!(staged.is_err(), "the session has expired");
    let shown = format!("{:?} {:#?}", world.nodes[ALICE].device, world.nodes[BOB].device);
    let secret = |bytes: &[u8]| format!("{:?}", &bytes[1..4]).trim_matches(['[', ']']).to_string();
    assert!(!shown.contains(&secret(private_key(1).expose_bytes())));
    assert!(!shown.contains(&secret(&[0xab; 32])));
    assert!(!shown.contains("abab"));
    assert!(!shown.contains(&secret(&[0xcd; 32])), "staged packets are secret too");
    assert!(shown.contains("PrivateKey(secret)"));
}

#[test]
fn ten_thousand_peers_can_be_configured_used_and_removed() {
    let mut world = World::pair();
    let now = world.now();
    let key = |number: u32| {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    };
    let device = &mut world.nodes[ALICE].device;
    device.configure(now, |configuration| {
        for number in 0..10_000 {
            configuration
                .add_peer(key(number))
                .unwrap()
                .set_endpoint(address(9))
                .set_persistent_keepalive(NonZeroU16::new(if number % 100 == 0 { 25 } else { 0 }))
                .add_allowed_ip(IpAddr::from(Ipv4Addr::from_bits(0xac10_0000 + number)).into());
        }
    });
    assert_eq!(device.peers().count(), 10_001);
    assert_eq!(owner(device, "172.16.39.15"), Some(key(9_999)));
    world.assert_connected();
    // A hundred peers have persistent keepalives. The others get nothing.
    world.run(4 * SECOND);
    assert_eq!(world.seen.iter().filter(|seen| seen.to == address(9)).count(), 100);
    let now = world.now();
    world.nodes[ALICE].device.configure(now, |configuration| {
        configuration.remove_all_peers();
    });
    assert_eq!(world.nodes[ALICE].device.peers().count(), 0);
    assert_eq!(world.nodes[ALICE].device.poll_timeout(), None);
}
