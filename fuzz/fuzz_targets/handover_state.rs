//! The state that a device hands over: whatever the bytes, it is refused, or a device goes on with it. That one keeps
//! no more than came, hands the same over in its turn, and sends what is sealed, at any time.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use wireloom_engine::{
    fuzzing::{Machine, Wire, handover::State},
    offload::virtio::VirtioHeader,
};
use wireloom_fuzz::{
    input::Input,
    tunnel::{Secret, address, key, public_key},
};
use wireloom_proto::{Instant, Now, UnixTime};
use wireloom_types::{LinkAddress, PrivateKey};

const COPY: &[u8] = include_bytes!("../../crates/wireloom-engine/src/handover/state/recorded/version-1.copy");
const CHANGES: &[u8] =
    include_bytes!("../../crates/wireloom-engine/src/handover/state/recorded/version-1.changes");

/// The length in bytes of a version, and of the number before a record.
const NUMBER: usize = 4;
/// How many times as long a state may become when the device takes up its work: a peer's record has at least 50 bytes,
/// and a handshake adds about 200.
const GROWTH: usize = 16;
/// The bytes that are always there: the names of all drop reasons, most of all.
const ALWAYS: usize = 4096;

/// So many milliseconds after the state was recorded.
fn at(millis: u64) -> Now {
    let elapsed = Duration::from_secs(1_790_000_000) + Duration::from_millis(millis);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

fn take_over(now: Now, wire: &Wire, seed: u8, state: &State) -> Option<Machine> {
    Machine::take_over(now, wire, address(seed).ip(), &[seed; 32], state)
}

/// The records of a state.
fn records(state: &[u8]) -> Vec<&[u8]> {
    let mut left = &state[NUMBER..];
    let mut records = Vec::new();
    while let Some((len, rest)) = left.split_first_chunk::<NUMBER>() {
        let (record, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        records.push(record);
        left = rest;
    }
    records
}

/// The state with these records.
fn with_records(records: &[&[u8]]) -> Vec<u8> {
    let version = COPY[..NUMBER].to_vec();
    records
        .iter()
        .fold(version, |state, record| [&state[..], &(record.len() as u32).to_le_bytes(), *record].concat())
}

/// The recorded state, in which the input replaces records, or adds peers.
fn altered(mut input: Input<'_>) -> State {
    let mut parts = [records(COPY), records(CHANGES)];
    while !input.0.is_empty() {
        let place = usize::from(input.byte());
        let Some(record) = input.piece() else { break };
        let records = &mut parts[place % 2];
        match records.get_mut(place / 2) {
            Some(recorded) => *recorded = record,
            None => records.push(record),
        }
    }
    parts.map(|records| with_records(&records))
}

/// An IPv4 packet of UDP to the peer that has a session, and the frame that carries it in link mode.
static PACKETS: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let mut packet = vec![0x45, 0, 0, 92, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 0, 0, 5];
    packet.extend((20..92_u8).map(|byte| byte.wrapping_mul(37)));
    let peer = LinkAddress::of(PrivateKey::from_bytes([2; 32]).public_key());
    let frame = [&peer.to_bytes()[..], &[2, 0, 0, 0, 0, 1, 8, 0], &packet].concat();
    [packet, frame]
});

/// Adds a peer, which takes allowed-IPs from another one.
fn another_peer() -> String {
    let (key, endpoint) = (public_key(4).to_hex(), address(4));
    format!("public_key={key}\nendpoint={endpoint}\nallowed_ip=10.0.0.0/24\npersistent_keepalive_interval=25")
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let state = match input.byte() & 1 {
        0 => [input.piece().unwrap_or_default().to_vec(), input.0.to_vec()],
        _ => altered(input),
    };
    let wire = Wire::default();
    let Some(mut machine) = take_over(at(0), &wire, 1, &state) else { return };

    let given = machine.hand_over(at(0));
    let most = GROWTH * state.concat().len() + ALWAYS;
    assert!(given[0].len() <= most, "{} bytes, of {}", given[0].len(), state.concat().len());
    let mut next = take_over(at(0), &Wire::default(), 2, &given).expect("our own state");
    let is_the_same = machine.hand_over(at(0))[0] == next.hand_over(at(0))[0];
    assert!(is_the_same, "what was handed over changes what is handed over next");

    let secret = Secret::of(&PACKETS[0]);
    for millis in [0, 1_000, 15_000, 120_000, 600_000] {
        PACKETS.iter().for_each(|packet| machine.send(VirtioHeader::default(), packet));
        machine.turn(at(millis));
        wire.take_seen().iter().for_each(|(_, _, datagram)| secret.assert_is_sealed(datagram));
    }
    assert!(machine.set(at(600_000), &another_peer()), "a valid configuration");
    let given = machine.hand_over(at(600_000));
    assert!(take_over(at(600_000), &Wire::default(), 3, &given).is_some(), "our own state is refused");
    assert!(machine.set(at(600_000), &format!("private_key={}\nreplace_peers=true", *key(5).expose_hex())));
    machine.turn(at(600_000));
});
