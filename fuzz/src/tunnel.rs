//! Engines in memory, with genuine sessions between them. A session takes a millisecond to make, a packet through it
//! microseconds, so engines serve many inputs.

use std::{
    array,
    cell::RefCell,
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
    thread::LocalKey,
    time::Duration,
};

use wireloom_engine::fuzzing::{Machine, Wire};
use wireloom_proto::{Instant, MessageKind, Now, UnixTime, message::DATA_HEADER_LEN};
use wireloom_types::{Mode, PrivateKey, PublicKey};

/// The port of every machine.
pub const PORT: u16 = 51_820;
/// The MTU of every interface, in bytes.
pub const MTU: usize = 1420;
/// How many inputs a world serves. Few, because an input that fails must do so in a new one.
const INPUTS: u32 = 512;

/// A time, in milliseconds.
pub fn at(millis: u64) -> Now {
    let elapsed = Duration::from_secs(1_000_000) + Duration::from_millis(millis);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

/// The key of machine `number`.
pub fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number + 100; 32])
}

/// The public half of that. It takes as long to compute as everything else about an input.
pub fn public_key(number: u8) -> PublicKey {
    static KEYS: LazyLock<[PublicKey; 8]> =
        LazyLock::new(|| array::from_fn(|number| key(number as u8).public_key()));
    KEYS[usize::from(number)]
}

/// The address of machine `number` on the network.
pub fn address(number: u8) -> SocketAddr {
    (IpAddr::from([192, 0, 2, number]), PORT).into()
}

/// A machine whose interface is up, with its own key and these peers: numbers and allowed-IPs.
pub fn machine(wire: &Wire, number: u8, mode: Mode, peers: &[(u8, &str)]) -> Machine {
    let mut machine = Machine::new(wire, address(number).ip(), &[number; 32], mode);
    let mut lines = format!("private_key={}\nlisten_port={PORT}\n", *key(number).expose_hex());
    for (peer, allowed_ips) in peers {
        lines += &format!("public_key={}\nendpoint={}\n", public_key(*peer).to_hex(), address(*peer));
        allowed_ips.split(' ').for_each(|ip| lines += &format!("allowed_ip={ip}\n"));
    }
    assert!(machine.set(at(0), &lines), "a valid configuration");
    machine.up(MTU);
    machine
}

/// Gives turns to all machines until nothing is left to do.
pub fn settle(now: Now, machines: &mut [&mut Machine]) {
    for _ in 0..4 {
        machines.iter_mut().for_each(|machine| machine.turn(now));
    }
}

/// What must not be readable on the wire.
pub struct Secret<'p>(HashSet<&'p [u8]>);

impl<'p> Secret<'p> {
    const PART: usize = 16;

    /// A packet.
    pub fn of(packet: &'p [u8]) -> Self {
        Self(packet.chunks_exact(Self::PART).collect())
    }

    /// Asserts that a datagram is a WireGuard message in which no part of the packet is readable.
    pub fn assert_is_sealed(&self, datagram: &[u8]) {
        match MessageKind::classify(datagram) {
            Ok(MessageKind::Data) => {
                let mut windows = datagram[DATA_HEADER_LEN..].windows(Self::PART);
                assert!(!windows.any(|window| self.0.contains(window)), "plaintext on the wire");
            }
            // Without packets.
            Ok(_) => {}
            Err(reason) => panic!("no WireGuard message leaves: {reason}"),
        }
    }
}

/// A world that serves several inputs: how many it has served, and the time in milliseconds.
pub struct Kept<W> {
    world: W,
    inputs: u32,
}

/// A place for a [`Kept`] world.
pub type Place<W> = RefCell<Option<Kept<W>>>;

/// Lets a world serve an input: `serve` gets it with the time. It is made when there is none, and given up when it has
/// served many inputs.
pub fn with<W>(place: &'static LocalKey<Place<W>>, make: fn() -> W, serve: impl FnOnce(&mut W, Now)) {
    place.with_borrow_mut(|place| {
        let kept = place.get_or_insert_with(|| Kept { world: make(), inputs: 0 });
        kept.inputs += 1;
        serve(&mut kept.world, at(1000 + u64::from(kept.inputs)));
        if kept.inputs == INPUTS {
            *place = None;
        }
    });
}
