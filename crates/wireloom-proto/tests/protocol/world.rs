//! A world of devices and a link between them, in virtual time. The link can lose, delay, duplicate and reorder
//! datagrams, and an eavesdropper keeps a copy of each one.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use wireloom_proto::{
    Device, DropReason, Endpoint, Instant, MessageKind, Now, PeerPath, UnixTime, inner, message,
};
use wireloom_types::{PrivateKey, PublicKey};

/// The MTU of every tunnel.
pub(crate) const MTU: usize = 1420;
/// The wall clock when the monotonic clock was zero: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// The monotonic clock at the start: machines have run for a while before they use a tunnel.
const START: Duration = Duration::from_secs(1000);
/// The time that a datagram takes over the link.
pub(crate) const LATENCY: Duration = Duration::from_millis(10);

/// A device and what surrounds it.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) public_key: PublicKey,
    pub(crate) address: SocketAddr,
    pub(crate) inner: Ipv4Addr,
    /// The inner packets that came out of the tunnel, without padding.
    pub(crate) received: VecDeque<Vec<u8>>,
    pub(crate) drops: Vec<DropReason>,
    /// The number of signals from the data path to the device.
    pub(crate) signals: usize,
}

/// What the link does to datagrams. Probabilities are in thousandths.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    /// The most that is added to the latency at random, which reorders datagrams.
    pub(crate) jitter: Duration,
}

/// The eavesdropper's copy of a datagram.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

impl Seen {
    pub(crate) fn kind(&self) -> MessageKind {
        MessageKind::classify(&self.bytes).expect("devices send well-formed datagrams")
    }

    pub(crate) fn is_keepalive(&self) -> bool {
        self.kind() == MessageKind::Data && self.bytes.len() == message::DATA_OVERHEAD
    }
}

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) link: Link,
    /// The eavesdropper's copies of all datagrams that were sent.
    pub(crate) seen: Vec<Seen>,
    /// Datagrams to these addresses are lost.
    pub(crate) unreachable: Vec<SocketAddr>,
    /// By how much the wall clocks were set back.
    pub(crate) set_back: Duration,
    elapsed: Duration,
    rng: ChaCha20Rng,
    /// When each datagram arrives, with its index in `datagrams`.
    under_way: BinaryHeap<Reverse<(Instant, usize)>>,
    datagrams: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

/// The indices of the two nodes of [`World::pair`].
pub(crate) const ALICE: usize = 0;
pub(crate) const BOB: usize = 1;

pub(crate) fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

impl World {
    pub(crate) fn new(seed: u8) -> Self {
        Self {
            nodes: Vec::new(),
            link: Link::default(),
            seen: Vec::new(),
            unreachable: Vec::new(),
            set_back: Duration::ZERO,
            elapsed: START,
            rng: ChaCha20Rng::from_seed([seed; 32]),
            under_way: BinaryHeap::new(),
            datagrams: Vec::new(),
        }
    }

    /// A world of two nodes that are each other's peers.
    pub(crate) fn pair() -> Self {
        Self::pair_seeded(1)
    }

    pub(crate) fn pair_seeded(seed: u8) -> Self {
        let mut world = Self::new(seed);
        world.add_node();
        world.add_node();
        world.introduce(ALICE, BOB);
        world.introduce(BOB, ALICE);
        world
    }

    /// Adds a node without peers and returns its index. Its inner address is 10.0.0.(index + 1).
    pub(crate) fn add_node(&mut self) -> usize {
        let number = self.nodes.len() as u8 + 1;
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let mut device = Device::new(&seed);
        device
            .configure(self.now(), |configuration| configuration.set_private_key(Some(private_key(number))));
        self.nodes.push(Node {
            device,
            public_key: private_key(number).public_key(),
            address: address(number),
            inner: Ipv4Addr::new(10, 0, 0, number),
            received: VecDeque::new(),
            drops: Vec::new(),
            signals: 0,
        });
        self.nodes.len() - 1
    }

    /// Replaces a node's device by a new one with the same key and without peers, as when its process starts again.
    pub(crate) fn restart(&mut self, node: usize) {
        let now = self.now();
        let device = &mut self.nodes[node].device;
        *device = Device::new(&[42; 32]);
        let key = private_key(node as u8 + 1);
        device.configure(now, |configuration| configuration.set_private_key(Some(key)));
    }

    /// Makes `other` a peer of `node`, with its endpoint and inner address.
    pub(crate) fn introduce(&mut self, node: usize, other: usize) {
        let now = self.now();
        let (key, endpoint, inner) = {
            let other = &self.nodes[other];
            (other.public_key, other.address, other.inner)
        };
        self.nodes[node].device.configure(now, |configuration| {
            let mut peer = configuration.add_peer(key).unwrap();
            peer.set_endpoint(endpoint).add_allowed_ip(IpAddr::V4(inner).into());
        });
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            monotonic: Instant::from_origin(self.elapsed),
            unix: UnixTime::from_epoch(EPOCH + self.elapsed - self.set_back),
        }
    }

    /// The time since the start of the world.
    pub(crate) fn elapsed(&self) -> Duration {
        self.elapsed - START
    }

    pub(crate) fn path(&self, node: usize, to: usize) -> Arc<PeerPath> {
        let transport = self.nodes[node].device.transport();
        let inner = self.nodes[to].inner.into();
        Arc::clone(transport.routes().lookup(inner).expect("a route to the node"))
    }

    /// Sends an inner packet with this payload, as the engine would.
    pub(crate) fn send(&mut self, from: usize, to: usize, payload: &[u8]) {
        let packet = ipv4(self.nodes[from].inner, self.nodes[to].inner, payload);
        self.send_packet(from, &packet);
        self.poll(from);
    }

    pub(crate) fn send_packet(&mut self, from: usize, packet: &[u8]) {
        let now = self.now();
        let parsed = inner::Packet::parse(packet).unwrap();
        let node = &mut self.nodes[from];
        let routes = Arc::clone(&node.device.transport().routes());
        let Some(path) = routes.lookup(parsed.destination) else {
            node.drops.push(DropReason::NoPeerForDestination);
            return;
        };
        let mut buffer = vec![0; message::data_len(packet.len(), MTU)];
        buffer[message::DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        let framed = message::frame(&mut buffer, packet.len(), MTU);
        let len = framed.len();
        match node.device.transport().reserve_or_stage(now.monotonic, path, [&*framed].into_iter(), len) {
            Ok(reserved) => {
                let endpoint = reserved.endpoint;
                if let Some(signal) = reserved.signal {
                    node.signals += 1;
                    node.device.handle_signal(now, signal);
                }
                reserved.seal([framed].into_iter());
                self.post(from, endpoint, buffer);
            }
            Err(staged) => {
                if let Some(signal) = staged.signal {
                    node.device.handle_signal(now, signal);
                }
                node.drops.extend(staged.dropped.map(|(reason, _)| reason));
            }
        }
    }

    /// Sends everything that a device has to send.
    pub(crate) fn poll(&mut self, node: usize) {
        let now = self.now();
        while self.nodes[node].device.poll_timeout().is_some_and(|at| at <= now.monotonic) {
            self.nodes[node].device.handle_timeout(now);
        }
        loop {
            while let Some(transmit) = self.nodes[node].device.poll_transmit(now) {
                let (endpoint, datagram) = (transmit.endpoint, transmit.datagram.to_vec());
                self.post(node, endpoint, datagram);
            }
            if !self.nodes[node].device.note_transmitted(now) {
                break;
            }
        }
    }

    fn post(&mut self, from: usize, to: Endpoint, bytes: Vec<u8>) {
        let from = self.nodes[from].address;
        let at = self.now().monotonic;
        self.inject(from, to.remote, &bytes);
        self.seen.push(Seen { at, from, to: to.remote, bytes });
    }

    /// Puts a datagram on the link.
    fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if self.chance(self.link.loss) {
            return;
        }
        let copies = if self.chance(self.link.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let extra = match self.link.jitter.as_nanos() as u64 {
                0 => 0,
                max => self.rng.next_u64() % max,
            };
            let arrival = self.now().monotonic + LATENCY + Duration::from_nanos(extra);
            let number = self.datagrams.len();
            self.datagrams.push((from, to, bytes.to_vec()));
            self.under_way.push(Reverse((arrival, number)));
        }
    }

    fn chance(&mut self, thousandths: u64) -> bool {
        thousandths > 0 && self.rng.next_u64() % 1000 < thousandths
    }

    /// Gives a datagram to the node at `to`, as the engine would.
    pub(crate) fn deliver(&mut self, from: SocketAddr, to: SocketAddr, mut bytes: Vec<u8>) {
        let now = self.now();
        if self.unreachable.contains(&to) {
            return;
        }
        let Some(place) = self.nodes.iter().position(|node| node.address == to) else {
            return;
        };
        let node = &mut self.nodes[place];
        let outcome = match MessageKind::classify(&bytes) {
            Ok(MessageKind::Data) => receive(node, now, from, &mut bytes),
            Ok(_) => node.device.handle_handshake(now, from.into(), &bytes),
            Err(reason) => Err(reason),
        };
        node.drops.extend(outcome.err());
        self.poll(place);
    }

    /// Advances time by `duration`.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now().monotonic + duration;
        while self.step_before(end) {}
        self.elapsed = Duration::from_nanos(end.as_nanos());
    }

    /// Advances time until no datagram is under way. Timers that are due later do not fire.
    pub(crate) fn settle(&mut self) {
        while let Some(Reverse((at, _))) = self.under_way.peek().copied() {
            self.step_before(at);
        }
    }

    /// Advances time to the next event, if it comes by `end`. Returns whether there was one.
    fn step_before(&mut self, end: Instant) -> bool {
        let timer = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(place, node)| Some((node.device.poll_timeout()?, place)))
            .min();
        let arrival = self.under_way.peek().map(|Reverse((at, _))| *at);
        let next = [timer.map(|(at, _)| at), arrival].into_iter().flatten().min();
        let Some(next) = next.filter(|next| *next <= end) else {
            return false;
        };
        self.elapsed = self.elapsed.max(Duration::from_nanos(next.as_nanos()));
        if arrival == Some(next) {
            let Some(Reverse((_, number))) = self.under_way.pop() else {
                return false;
            };
            let (from, to, bytes) = &mut self.datagrams[number];
            let (from, to, bytes) = (*from, *to, std::mem::take(bytes));
            self.deliver(from, to, bytes);
        } else if let Some((at, place)) = timer {
            let now = self.now();
            self.nodes[place].device.handle_timeout(now);
            assert!(
                self.nodes[place].device.poll_timeout().is_none_or(|next| next > at),
                "a timer that fired is cleared or scheduled for later"
            );
            self.poll(place);
        }
        true
    }

    /// The datagrams of one type that were sent.
    pub(crate) fn seen_of(&self, kind: MessageKind) -> Vec<&Seen> {
        self.seen.iter().filter(|seen| seen.kind() == kind).collect()
    }

    pub(crate) fn count(&self, kind: MessageKind) -> usize {
        self.seen_of(kind).len()
    }

    /// Takes the payloads that came out of a node's tunnel, in order.
    pub(crate) fn take_received(&mut self, node: usize) -> Vec<Vec<u8>> {
        let received = self.nodes[node].received.drain(..);
        received.map(|packet| packet[20..].to_vec()).collect()
    }

    /// Has Alice send an initiation, and returns it undelivered.
    pub(crate) fn capture_initiation(&mut self) -> Vec<u8> {
        let reachable = std::mem::replace(&mut self.unreachable, vec![address(2)]);
        self.send(ALICE, BOB, b"wants a session");
        self.settle();
        self.unreachable = reachable;
        self.seen.last().expect("an initiation").bytes.clone()
    }

    /// Asserts that the tunnel works: that a packet from each node to the other arrives.
    pub(crate) fn assert_connected(&mut self) {
        for (from, to) in [(ALICE, BOB), (BOB, ALICE)] {
            self.nodes[to].received.clear();
            self.send(from, to, b"are you there?");
            self.settle();
            assert_eq!(self.take_received(to), [b"are you there?".to_vec()]);
        }
    }
}

fn receive(node: &mut Node, now: Now, from: SocketAddr, bytes: &mut [u8]) -> Result<(), DropReason> {
    let transport = Arc::clone(node.device.transport());
    let opened = transport.open(now.monotonic, from.into(), bytes)?;
    if let Some(signal) = opened.signal {
        node.signals += 1;
        node.device.handle_signal(now, signal);
    }
    if opened.payload.is_empty() {
        return Ok(());
    }
    let packet = inner::Packet::parse(opened.payload)?;
    if !transport.routes().permits(&opened.path, packet.source) {
        return Err(DropReason::SourceNotAllowed);
    }
    node.received.push_back(opened.payload[..packet.len].to_vec());
    Ok(())
}

/// An IPv4 packet, with as much of a header as routing needs.
pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20 + payload.len()];
    packet[0] = 0x45;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..].copy_from_slice(payload);
    packet
}

/// An IPv6 packet, with as much of a header as routing needs.
pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let start = [0x60, 0, 0, 0, len[0], len[1], 59, 64];
    [&start[..], &from.octets(), &to.octets(), payload].concat()
}

/// Replaces MAC1 at the end of an initiation or a response, as everyone can who knows the receiver's public key.
pub(crate) fn sign_mac1(message: &mut [u8], receiver: &PublicKey) {
    let key = Blake2s256::new().chain(b"mac1----").chain(receiver.as_bytes()).finalize_fixed();
    let mac = Blake2sMac::<U16>::new_from_slice(&key).expect("the key has 32 bytes");
    let (body, macs) = message.split_at_mut(message.len() - 32);
    macs[..16].copy_from_slice(&mac.chain(body).finalize_fixed());
}
