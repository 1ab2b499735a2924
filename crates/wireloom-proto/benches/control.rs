//! What the control part costs: a handshake, and a device with 10,000 peers.
//!
//! `cargo bench -p wireloom-proto --bench control`

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use divan::Bencher;
use wireloom_proto::{Device, Endpoint, Instant, Now, PrivateKey, PublicKey, UnixTime};

const PEERS: u32 = 10_000;

fn main() {
    divan::main();
}

fn at(millis: u64) -> Now {
    let elapsed = Duration::from_millis(millis);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

fn address(number: u8) -> SocketAddr {
    ([192, 0, 2, number], 51820).into()
}

fn device(number: u8, peer: u8) -> Device {
    let mut device = Device::new([number; 32]);
    let mut configuration = device.configure(at(0));
    configuration.set_private_key(Some(PrivateKey::from_bytes([number; 32])));
    let key = PrivateKey::from_bytes([peer; 32]).public_key();
    configuration.add_peer(key).expect("not our own key").set_endpoint(address(peer));
    drop(configuration);
    device
}

/// Has the device begin a handshake with its only peer.
fn initiation(device: &mut Device, now: Now) -> Vec<u8> {
    let peer = device.peers().next().expect("a peer").id;
    device.handle_outgoing(now, peer, &[], 1420).expect("it has an endpoint");
    let mut buffer = [0; 1500];
    let transmit = device.poll_transmit(now, &mut buffer).expect("an initiation");
    buffer[..transmit.len].to_vec()
}

#[divan::bench]
fn begin_handshake(bencher: Bencher<'_, '_>) {
    bencher
        .with_inputs(|| device(1, 2))
        .bench_local_refs(|device| divan::black_box(initiation(device, at(1000))));
}

#[divan::bench]
fn answer_handshake(bencher: Bencher<'_, '_>) {
    let (mut alice, mut bob) = (device(1, 2), device(2, 1));
    let from = Endpoint::from(address(1));
    let mut time = 0;
    bencher
        .with_inputs(|| {
            // Far enough apart for a new initiation, and no load.
            time += 10_000;
            (time, initiation(&mut alice, at(time)))
        })
        .bench_local_refs(|(time, initiation)| {
            bob.handle_handshake(at(*time), from, initiation).expect("a new initiation");
        });
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

fn add_peers(device: &mut Device) {
    let mut configuration = device.configure(at(0));
    for number in 0..PEERS {
        let network = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | number << 8));
        let mut peer = configuration.add_peer(key(number)).expect("not our own key");
        peer.set_endpoint(address(3)).add_allowed_ip(ipnet::IpNet::new_assert(network, 24));
    }
}

#[divan::bench(sample_count = 10)]
fn add_10_000_peers(bencher: Bencher<'_, '_>) {
    bencher.with_inputs(|| device(1, 2)).bench_local_refs(add_peers);
}

#[divan::bench]
fn change_one_of_10_000_peers(bencher: Bencher<'_, '_>) {
    let mut device = device(1, 2);
    add_peers(&mut device);
    let network = "192.168.0.0/16".parse().expect("a network");
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + 1) % PEERS;
        let mut configuration = device.configure(at(0));
        configuration.peer(&key(number)).expect("a peer").add_allowed_ip(network);
    });
}

#[divan::bench]
fn look_up_one_of_10_000_routes(bencher: Bencher<'_, '_>) {
    let mut device = device(1, 2);
    add_peers(&mut device);
    let routes = device.transport().routes();
    let mut number = 0_u32;
    bencher.bench_local(|| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let address = Ipv4Addr::from_bits(0x0a00_0000 | (number % (PEERS << 8)));
        divan::black_box(routes.lookup(address.into()).is_some())
    });
}

#[divan::bench]
fn poll_10_000_idle_peers(bencher: Bencher<'_, '_>) {
    let mut device = device(1, 2);
    add_peers(&mut device);
    let mut buffer = [0; 1500];
    bencher.bench_local(|| {
        device.handle_timeout(at(1000));
        let transmit = device.poll_transmit(at(1000), &mut buffer);
        divan::black_box((transmit, device.poll_timeout()))
    });
}
