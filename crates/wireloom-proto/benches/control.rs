//! The cost of the control part: of handshakes, with and without a cookie, compared with their arithmetic; and of a
//! device with 10,000 peers, in time and in memory.
//!
//! `cargo bench -p wireloom-proto --bench control`

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use curve25519_dalek::MontgomeryPoint;
use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use wireloom_proto::{Device, DropReason, Endpoint, Instant, Now, Role, Session, SessionKeys, UnixTime};
use wireloom_types::{PrivateKey, PublicKey};

#[global_allocator]
static MEMORY: AllocProfiler = AllocProfiler::system();

const PEERS: u32 = 10_000;
/// Handshake messages within 250 ms that are not yet load.
const LOAD_THRESHOLD: u32 = 256;

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
    let mut device = Device::new(&[number; 32]);
    device.configure(at(0), |configuration| {
        configuration.set_private_key(Some(PrivateKey::from_bytes([number; 32])));
        let key = PrivateKey::from_bytes([peer; 32]).public_key();
        configuration.add_peer(key).expect("not our own key").set_endpoint(address(peer));
    });
    device
}

/// Has a device begin a handshake with its only peer, and returns the initiation.
fn initiation(device: &mut Device, now: Now) -> Vec<u8> {
    let peer = device.peers().next().expect("a peer").id;
    device.send_keepalive(now, peer);
    device.poll_transmit(now).expect("an initiation").datagram.to_vec()
}

#[divan::bench]
fn begin_handshake(bencher: Bencher<'_, '_>) {
    bencher
        .with_inputs(|| device(1, 2))
        .bench_local_refs(|device| divan::black_box(initiation(device, at(1000))));
}

/// A device, Bob, that answers initiations of its only peer, Alice. Each initiation comes 10 seconds after the last.
struct Responder {
    alice: Device,
    bob: Device,
    time: u64,
    /// An initiation that was answered before. Its MAC1 is valid, which is enough for [`Responder::overload`].
    old: Vec<u8>,
}

impl Responder {
    fn new() -> Self {
        let (mut alice, mut bob) = (device(1, 2), device(2, 1));
        let old = initiation(&mut alice, at(1));
        bob.handle_handshake(at(1), Self::from(), &old).expect("a new initiation");
        let mut responder = Self { alice, bob, time: 1, old };
        responder.drain();
        responder
    }

    fn from() -> Endpoint {
        Endpoint::from(address(1))
    }

    fn next(&mut self) -> Vec<u8> {
        self.time += 10_000;
        initiation(&mut self.alice, at(self.time))
    }

    fn handle(&mut self, datagram: &[u8]) -> Result<(), DropReason> {
        self.bob.handle_handshake(at(self.time), Self::from(), datagram)
    }

    /// Puts Bob under load, so that he demands cookies.
    fn overload(&mut self) {
        let old = std::mem::take(&mut self.old);
        for _ in 0..=LOAD_THRESHOLD {
            self.handle(&old).expect_err("it was answered before, or has no cookie");
        }
        self.old = old;
        self.drain();
    }

    /// Gives Alice Bob's cookie reply to this initiation. She signs the next one with the cookie.
    fn give_cookie(&mut self, initiation: &[u8]) {
        assert_eq!(self.handle(initiation), Err(DropReason::CookieRequired));
        let reply = self.bob.poll_transmit(at(self.time)).expect("a cookie reply");
        let from = Endpoint::from(address(2));
        self.alice.handle_handshake(at(self.time), from, reply.datagram).expect("it is authentic");
    }

    /// Discards what Bob has to send.
    fn drain(&mut self) {
        while self.bob.poll_transmit(at(self.time)).is_some() {}
    }
}

#[divan::bench]
fn answer_handshake(bencher: Bencher<'_, '_>) {
    let responder = RefCell::new(Responder::new());
    bencher
        .counter(ItemsCount::new(1_usize))
        .with_inputs(|| responder.borrow_mut().next())
        .bench_local_refs(|initiation| responder.borrow_mut().handle(initiation).expect("a new initiation"));
}

#[divan::bench(sample_count = 30, sample_size = 1)]
fn answer_handshake_with_cookie(bencher: Bencher<'_, '_>) {
    let responder = RefCell::new(Responder::new());
    bencher
        .counter(ItemsCount::new(1_usize))
        .with_inputs(|| {
            let mut responder = responder.borrow_mut();
            let unsigned = responder.next();
            responder.overload();
            if responder.handle(&unsigned) == Err(DropReason::CookieRequired) {
                responder.give_cookie(&unsigned);
            }
            let signed = responder.next();
            responder.overload();
            signed
        })
        .bench_local_refs(|initiation| {
            responder
                .borrow_mut()
                .handle(initiation)
                .expect("its cookie is valid and its source within its rate");
        });
}

#[divan::bench]
fn demand_cookie(bencher: Bencher<'_, '_>) {
    let mut responder = Responder::new();
    let initiation = responder.next();
    responder.overload();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let answer = responder.handle(divan::black_box(&initiation));
        assert_eq!(answer, Err(DropReason::CookieRequired));
        responder.drain();
    });
}

/// What anyone can have us do who has seen an initiation: it is authentic, but old.
#[divan::bench]
fn drop_replayed_initiation(bencher: Bencher<'_, '_>) {
    let mut responder = Responder::new();
    let replayed = std::mem::take(&mut responder.old);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        responder.time += 10_000;
        let answer = responder.handle(divan::black_box(&replayed));
        assert_eq!(answer, Err(DropReason::StaleTimestamp));
    });
}

/// What anyone can have us do who knows our public key.
#[divan::bench]
fn drop_initiation_of_a_stranger(bencher: Bencher<'_, '_>) {
    let mut responder = Responder::new();
    let strange = initiation(&mut device(3, 2), at(1));
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        responder.time += 10_000;
        let answer = responder.handle(divan::black_box(&strange));
        assert_eq!(answer, Err(DropReason::UnknownPeer));
    });
}

/// The arithmetic that answering a handshake needs at least: es, ss, ee and se of the Noise pattern IK (paper, section
/// 5.4). The responder's ephemeral key is a fifth multiplication, of the base point.
#[divan::bench]
fn multiply_four_points(bencher: Bencher<'_, '_>) {
    let point = MontgomeryPoint::mul_base_clamped([7; 32]);
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        for scalar in 1..=4 {
            divan::black_box(divan::black_box(point).mul_clamped([scalar; 32]));
        }
    });
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    PublicKey::from_bytes(bytes)
}

fn add_peers(device: &mut Device) {
    device.configure(at(0), |configuration| {
        for number in 0..PEERS {
            let network = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 | number << 8));
            let mut peer = configuration.add_peer(key(number)).expect("not our own key");
            peer.set_endpoint(address(3)).add_allowed_ip(ipnet::IpNet::new_assert(network, 24));
        }
    });
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
        device.configure(at(0), |configuration| {
            configuration.peer(&key(number)).expect("a peer").add_allowed_ip(network);
        });
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
    bencher.bench_local(|| {
        device.handle_timeout(at(1000));
        let transmit = device.poll_transmit(at(1000)).is_some();
        divan::black_box((transmit, device.poll_timeout()))
    });
}

/// The allocator's columns show the memory of 10,000 idle sessions: their keys and replay windows.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn hold_10_000_sessions(bencher: Bencher<'_, '_>) {
    let keys = || SessionKeys { sending: [1; 32].into(), receiving: [2; 32].into() };
    let session = |index| Session::new(&keys(), Role::Initiator, index, index, at(0).monotonic);
    bencher.bench_local(|| (0..PEERS).map(session).collect::<Vec<_>>());
}
