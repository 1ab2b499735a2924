//! The lookup of one of 10,000 peers for a packet: by its destination in the allowed-IPs, and by the next hop's link
//! address.
//!
//! `cargo bench -p wireloom-engine`

use std::time::Duration;

use divan::{Bencher, counter::ItemsCount};
use wireloom_engine::{
    answer::Answer,
    forwarding::Decision,
    link::{Link, NeighbourTable},
    packet::ethernet::HEADER_LEN,
};
use wireloom_proto::{Device, Instant, Now, UnixTime};
use wireloom_types::{LinkAddress, PrivateKey, PublicKey};

const PEERS: u32 = 10_000;
const MTU: usize = 1420;

fn main() {
    divan::main();
}

fn now() -> Now {
    let elapsed = Duration::from_secs(1);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

/// A device whose peer `number` has 10.x.y.0/24.
fn device() -> Device {
    let mut device = Device::new(&[1; 32]);
    device.configure(now(), |configuration| {
        configuration.set_private_key(Some(PrivateKey::from_bytes([1; 32])));
        for number in 0..PEERS {
            let network = ipnet::Ipv4Net::new_assert((0x0a00_0000 | number << 8).into(), 24);
            let mut peer = configuration.add_peer(key(number)).expect("not our own key");
            peer.set_endpoint(([192, 0, 2, 1], 51820).into()).add_allowed_ip(network.into());
        }
    });
    device
}

/// A frame to each peer, in an order that caches cannot predict.
fn frames() -> Vec<Vec<u8>> {
    // The step and the number of peers have no common divisor, so each peer occurs once.
    (0..PEERS).map(|step| step * 7_919 % PEERS).map(frame).collect()
}

/// An empty datagram from 10.255.0.1 to a host behind this peer.
fn frame(number: u32) -> Vec<u8> {
    let mut frame = LinkAddress::of(key(number)).to_bytes().to_vec();
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 255, 0, 1]);
    frame.extend((0x0a00_0001 | number << 8).to_be_bytes());
    frame.extend([0, 9, 0, 9, 0, 8, 0, 0]);
    frame
}

#[divan::bench]
fn by_allowed_ips(bencher: Bencher<'_, '_>) {
    let device = device();
    let routes = device.transport().routes();
    let frames = frames();
    bencher.counter(ItemsCount::new(frames.len())).bench_local(|| {
        for frame in divan::black_box(&frames) {
            let decision = Decision::by_allowed_ips(&frame[HEADER_LEN..], &routes);
            assert!(matches!(divan::black_box(decision), Decision::Peer(_)));
        }
    });
}

fn link(device: &Device) -> Link {
    let link = Link::new(LinkAddress::from_bytes([2, 0, 0, 0, 0, 1]), device.transport());
    link.change(|table| device.peers().for_each(|peer| table.insert(peer.path)));
    link
}

#[divan::bench]
fn by_next_hop(bencher: Bencher<'_, '_>) {
    let device = device();
    let link = link(&device);
    let table = link.table();
    let frames = frames();
    let mut answer = Answer::default();
    bencher.counter(ItemsCount::new(frames.len())).bench_local(|| {
        for frame in divan::black_box(&frames) {
            let longest = frame.len() - HEADER_LEN;
            let decision = link.decide(&table, now().monotonic, frame, longest, MTU, &mut answer);
            assert!(matches!(divan::black_box(decision), Decision::Peer(_)));
        }
    });
}

/// The cost of a change of peers.
#[divan::bench]
fn copy_of_the_neighbour_table(bencher: Bencher<'_, '_>) {
    let device = device();
    let link = link(&device);
    bencher.bench_local(|| NeighbourTable::clone(divan::black_box(&link.table())));
}
