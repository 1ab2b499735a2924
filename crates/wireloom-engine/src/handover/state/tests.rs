//! A device goes on with the state of another one; the recorded bytes of each version; damaged bytes.

use std::{fs, iter, net::Ipv4Addr, path::PathBuf, time::Duration};

use proptest::prelude::*;
use wireloom_proto::{Instant, Now, PeerPath, Transport, UnixTime, message};
use wireloom_types::{PresharedKey, PrivateKey, PublicKey};

use super::*;

fn now() -> Now {
    let elapsed = Duration::from_secs(1_790_000_000);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

fn key(number: u8) -> PublicKey {
    PrivateKey::from_bytes([number; 32]).public_key()
}

/// Two devices that are peers of each other and have a session. The first one has another peer, which a packet waits
/// for.
fn devices() -> [Device; 2] {
    let [mut a, mut b] = [1, 2].map(|number: u8| {
        let mut device = Device::new(&[number; 32]);
        device.configure(now(), |configuration| {
            configuration.set_private_key(Some(PrivateKey::from_bytes([number; 32])));
            let mut peer = configuration.add_peer(key(3 - number)).expect("there is room");
            peer.set_preshared_key(Some(&PresharedKey::from_bytes([9; 32])));
            peer.set_endpoint(([192, 0, 2, 3 - number], 51820).into()).set_path_mtu(Some(1400));
            peer.add_allowed_ip("10.0.0.0/24".parse().expect("a network"));
            peer.add_allowed_ip("fd00::/64".parse().expect("a network"));
            peer.set_persistent_keepalive(25.try_into().ok());
            if number == 1 {
                let mut dead = configuration.add_peer(key(7)).expect("there is room");
                dead.set_endpoint(([192, 0, 2, 7], 51820).into());
            }
        });
        device
    });
    let path = |device: &Device, peer| device.peer(&key(peer)).expect("a peer").path.clone();
    let to = |number: u8| ([192, 0, 2, number], 51820).into();
    a.begin_handshake(now(), path(&a, 2).id());
    let initiation = transmit(&mut a).expect("an initiation");
    b.handle_handshake(now(), std::net::SocketAddr::into(to(1)), &initiation).expect("it is genuine");
    let response = transmit(&mut b).expect("a response");
    a.handle_handshake(now(), std::net::SocketAddr::into(to(2)), &response).expect("it is genuine");
    while transmit(&mut a).is_some() {}
    a.note_transmitted(now());
    let dead = path(&a, 7);
    stage(&mut a, &dead);
    [a, b]
}

fn transmit(device: &mut Device) -> Option<Vec<u8>> {
    device.poll_transmit(now()).map(|transmit| transmit.datagram.to_vec())
}

fn stage(device: &mut Device, path: &PeerPath) {
    let message = [5; 64];
    let staged =
        device.transport().reserve_or_stage(now().monotonic, path, iter::once(&message[..]), message.len());
    let signal = staged.expect_err("there is no session").signal.expect("it is the first packet");
    device.handle_signal(now(), signal);
    device.handle_timeout(now());
    transmit(device).expect("an initiation");
}

fn engine() -> EngineState {
    EngineState {
        interface: InterfaceState { headers: true, joins_tcp: true, ..Default::default() },
        peer_lookup: PeerLookup::Gateway,
        source_check: SourceCheck::Firewall,
        listen_port: 0,
        chosen_port: Some(40_000),
        fwmark: 0x5741,
        up: true,
        mtu: 1420,
        neighbours: vec![(Ipv4Addr::new(10, 0, 0, 2).into(), [2, 0, 0, 0, 0, 2])],
        drops: vec![("no-endpoint".into(), 3)],
    }
}

/// The copy and the changes of one device.
fn state() -> [Record; 2] {
    let [a, _] = devices();
    let before = Snapshot::of(&a, engine());
    let mut after = engine();
    after.mtu = 1380;
    [before.copy(), Snapshot::of(&a, after).changes_since(&before, &a.staged_packets())]
}

fn received([copy, changes]: [&[u8]; 2]) -> Result<Received, StateError> {
    Prepared::new(&[3; 32], copy)?.with_changes(changes)
}

/// Asserts that a device which has taken this over goes on in the session, and that what waits goes along.
fn assert_goes_on(received: Received) {
    assert_eq!(received.shared.engine, EngineState { mtu: 1380, ..engine() });
    let [_, b] = devices();
    let device = received.successor.finish(now(), &received.shared.device, &received.staged);
    assert_eq!(device.peers().map(|peer| *peer.public_key).collect::<Vec<_>>(), [key(2), key(7)]);
    assert_eq!(device.staged_packets().len(), 1);
    let peer = device.peer(&key(2)).expect("a peer");
    let mut room = [0x45; 64];
    let datagram = message::frame(&mut room, 20, 1420);
    peer.path.seal(now().monotonic, iter::once(&mut *datagram)).expect("there is a session");
    open(b.transport(), datagram);
}

fn open(transport: &Transport, datagram: &mut [u8]) {
    let from = std::net::SocketAddr::from(([192, 0, 2, 1], 51820));
    transport.open(now().monotonic, from.into(), datagram).expect("it is a new message of the session");
}

#[test]
fn a_device_goes_on_with_the_state_of_another() {
    let [copy, changes] = state();
    assert_goes_on(received([&copy, &changes]).expect("it was just written"));
}

/// The bytes that a release with this version writes. A change of the format is another version, and the next release
/// still reads this one. The environment variable `WIRELOOM_RECORD` has the test record what it writes.
#[test]
fn the_recorded_state_is_written_and_read() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/handover/state/recorded");
    let names = ["version-1.copy", "version-1.changes"].map(|name| directory.join(name));
    let written = state();
    if std::env::var_os("WIRELOOM_RECORD").is_some() {
        for (name, bytes) in names.iter().zip(&written) {
            fs::write(name, bytes).expect("the directory is there");
        }
    }
    let recorded = names.map(|name| fs::read(name).expect("it is recorded"));
    for (written, recorded) in written.iter().zip(&recorded) {
        assert!(**written == *recorded, "the format has changed: that is another version");
    }
    assert_goes_on(received([&recorded[0], &recorded[1]]).expect("it is a state"));
}

#[test]
fn another_version_is_refused() {
    let [mut copy, _] = state();
    copy[0] = 2;
    assert_eq!(Prepared::new(&[3; 32], &copy).err(), Some(StateError::Version(2)));
}

#[test]
fn what_no_engine_says_of_itself_is_refused() {
    let [a, _] = devices();
    let says = |engine: EngineState| Snapshot::of(&a, engine);
    let [usual, too_long, of_another_mode] = [
        engine(),
        EngineState { mtu: 65_536, ..engine() },
        EngineState { peer_lookup: PeerLookup::Destination, ..engine() },
    ]
    .map(says);
    let outcome = |copy: &Snapshot, changes: &Snapshot| {
        received([&copy.copy(), &changes.changes_since(copy, &[])]).err()
    };
    assert_eq!(outcome(&usual, &usual), None);
    assert_eq!(outcome(&too_long, &too_long), Some(StateError::Damaged));
    assert_eq!(outcome(&usual, &too_long), Some(StateError::Damaged));
    assert_eq!(outcome(&usual, &of_another_mode), Some(StateError::Damaged), "the interface was prepared");
}

proptest! {
    #[test]
    fn damaged_bytes_are_refused_or_read(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let [copy, changes] = state();
        let damage = |bytes: &Record| {
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            bytes
        };
        for bytes in [[damage(&copy), changes.to_vec()], [copy.to_vec(), damage(&changes)]] {
            if let Ok(received) = received([&bytes[0], &bytes[1]]) {
                let _device = received.successor.finish(now(), &received.shared.device, &received.staged);
            }
        }
    }
}
