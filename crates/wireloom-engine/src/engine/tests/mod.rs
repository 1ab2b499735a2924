//! Engines that are connected by an in-memory network, under virtual time.

mod control;
mod ecn;
mod fairness;
mod handover;
mod link;
mod path_mtu;
mod requests;
mod workers;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::libc;
use wireloom_proto::{Transmit, UnixTime};
use wireloom_types::{LinkAddress, PrivateKey, PublicKey};

use super::{
    by_hand::{ByHand, MemoryWorker},
    *,
};
use crate::{
    batch::OutboundBatch,
    control::{Errno, Parser, Reply},
    offload::tests::Packet as Stream,
    runtime::turn::Backlog,
    tun::{MemoryQueue, MemoryTun, MemoryTunHost, memory_tap, memory_tun},
    udp::{MemoryNetwork, Patience},
};

/// A machine: an engine, its network stack, and its attachment to the network.
struct Machine {
    engine: Engine<MemoryTun, MemoryNetwork>,
    /// The workers that run, unless they have threads.
    workers: ByHand,
    stack: MemoryTunHost,
    network: MemoryNetwork,
    key: PrivateKey,
    inner: Ipv4Addr,
}

/// An interface, its queues, and the network stack behind it.
type Interface = (MemoryTun, Vec<MemoryQueue>, MemoryTunHost);

const PORT: u16 = 51_820;
const MTU: usize = 1420;

impl Machine {
    /// Machine `number` on a network. It has no configuration, and its interface is down.
    fn on(network: &MemoryNetwork, number: u8) -> Self {
        Self::with(network, number, Mode::STANDARD, memory_tun())
    }

    /// The same as [`Self::on`], in this mode and with this interface.
    fn with(network: &MemoryNetwork, number: u8, mode: Mode, interface: Interface) -> Self {
        let workers = ByHand::default();
        let runner = workers.clone();
        Self { workers, ..Self::with_runner(network, number, mode, interface, runner) }
    }

    /// The same as [`Self::with`], with threads or whatever else runs the workers.
    fn with_runner(
        network: &MemoryNetwork,
        number: u8,
        mode: Mode,
        (tun, queues, stack): Interface,
        runner: impl Runner<MemoryWorker> + 'static,
    ) -> Self {
        let network = network.host(Ipv4Addr::new(192, 0, 2, number).into());
        let count = queues.len();
        let pool = (count > 1).then(|| CryptoPool::start(count % 3, count).expect("threads"));
        let seed = [number; 32];
        let engine =
            Engine::new(&seed, mode, (tun, queues), network.clone(), Box::new(runner), pool.as_ref());
        Self {
            engine: engine.expect("an event"),
            workers: ByHand::default(),
            stack,
            network,
            key: PrivateKey::from_bytes([number + 100; 32]),
            inner: Ipv4Addr::new(10, 0, 0, number),
        }
    }

    fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.engine_address(), PORT)
    }

    fn engine_address(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, self.inner.octets()[3]).into()
    }

    /// Configures the key, the port and these peers, as `wg setconf` would.
    fn configure(&mut self, now: Now, peers: &[&Self]) {
        let mut lines = format!(
            "private_key={}\nlisten_port={PORT}\nreplace_peers=true\n",
            self.key.expose_hex().as_str()
        );
        for peer in peers {
            let (key, endpoint, inner) = (peer.public_key().to_hex(), peer.endpoint(), peer.inner);
            lines += &format!("public_key={key}\nendpoint={endpoint}\nallowed_ip={inner}/32\n");
        }
        assert_eq!(self.set(now, &lines), Reply::Done);
    }

    fn set(&mut self, now: Now, lines: &str) -> Reply {
        self.request(now, &format!("set=1\n{lines}"))
    }

    fn get(&mut self, now: Now) -> String {
        match self.request(now, "get=1") {
            Reply::Lines(lines) => lines.to_string(),
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, now: Now, lines: &str) -> Reply {
        let mut parser = Parser::default();
        for line in lines.lines().chain([""]) {
            if let Some(request) = parser.line(line.as_bytes(), &|_| None).expect("well-formed") {
                return self.engine.handle(now, request).into_lines();
            }
        }
        panic!("no request: {lines}");
    }

    fn up(&self) {
        self.stack.tell(TunEvent::State(TunState { up: true, mtu: MTU }));
    }

    fn down(&self) {
        self.stack.tell(TunEvent::State(TunState { up: false, mtu: MTU }));
    }

    /// Gives a turn to the control thread, to each worker, and to the control thread again, which has what they have
    /// punted. Returns whether one of them has more to do, or when the control thread has.
    fn turn(&mut self, now: Now) -> NextTurn {
        if self.control(now) == NextTurn::Never {
            return NextTurn::Never;
        }
        let rest: Vec<_> = (0..).map_while(|queue| self.carry(now, queue)).collect();
        let last = self.control(now);
        if rest.contains(&Backlog::More) { NextTurn::Now } else { last }
    }

    /// Gives a turn to the control thread alone.
    fn control(&mut self, now: Now) -> NextTurn {
        self.engine.turn(now, true).expect("memory does not fail")
    }

    /// Gives a turn to the worker of a queue, if there is such a one.
    fn carry(&self, now: Now, queue: usize) -> Option<Backlog> {
        self.workers.turn(now, queue)
    }

    fn dropped(&self, name: &str) -> u64 {
        self.engine.drops().iter().find(|(reason, _)| *reason == name).expect(name).1
    }

    /// All packets dropped, but for the copies of datagrams that probe the path MTU.
    fn all_dropped(&self) -> u64 {
        let all: u64 = self.engine.drops().iter().map(|(_, count)| count).sum();
        all - self.network.probes_to(PORT)
    }
}

fn at(seconds: u64) -> Now {
    let elapsed = Duration::from_secs(1_000_000 + seconds);
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

/// An IPv4 packet with this payload. Nothing here looks at its checksum.
fn packet(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20 + payload.len()];
    packet[0] = 0x45;
    let len = packet.len() as u16;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    packet[20..].copy_from_slice(payload);
    packet
}

/// Gives turns to all machines until none has anything left to do.
fn settle(now: Now, machines: &mut [&mut Machine]) {
    for _ in 0..20 {
        for machine in &mut *machines {
            while machine.turn(now) == NextTurn::Now {}
        }
    }
}

fn network() -> MemoryNetwork {
    MemoryNetwork::new(Ipv4Addr::UNSPECIFIED.into())
}

/// Two machines that are peers of each other, both up.
fn pair() -> (Machine, Machine) {
    let network = network();
    let (mut a, mut b) = (Machine::on(&network, 1), Machine::on(&network, 2));
    a.configure(at(0), &[&b]);
    b.configure(at(0), &[&a]);
    a.up();
    b.up();
    settle(at(0), &mut [&mut a, &mut b]);
    (a, b)
}

/// Injects a datagram that appears to come from this address.
fn inject(network: &MemoryNetwork, from: IpAddr, to: SocketAddr, datagram: &[u8]) {
    let mut udp = network.host(from).bind(0, 0).expect("a free port");
    let mut batch = OutboundBatch::default();
    batch.push_transmit(&Transmit { endpoint: to.into(), datagram, ecn: 0 });
    udp.send(batch.seal(), &mut Patience::default());
}

#[test]
fn a_packet_crosses_the_tunnel_and_its_answer_comes_back() {
    let (mut a, mut b) = pair();
    let there = packet(a.inner, b.inner, b"secret words");
    let back = packet(b.inner, a.inner, b"more secret words");
    a.stack.send(&there);
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(b.stack.receive(), Some(there));
    b.stack.send(&back);
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(a.stack.receive(), Some(back));
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
    for (_, _, datagram) in a.network.seen() {
        assert!(!datagram.windows(6).any(|window| window == b"secret"), "plaintext on the wire");
    }
}

/// A packet with one of our own datagrams, as it comes back when its destination is routed into the interface.
fn looping(from: SocketAddr, to: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else { panic!("IPv4 only") };
    let udp = [from.port(), to.port(), 8 + datagram.len() as u16, 0].map(u16::to_be_bytes).concat();
    let mut looping = packet(*from.ip(), *to.ip(), &[&udp, datagram].concat());
    looping[9] = 17;
    looping
}

#[test]
fn a_datagram_that_is_routed_into_its_own_interface_is_dropped_and_one_in_another_tunnel_is_not() {
    let network = network();
    let (mut a, mut b, mut c) =
        (Machine::on(&network, 1), Machine::on(&network, 2), Machine::on(&network, 3));
    a.configure(at(0), &[&b, &c]);
    b.configure(at(0), &[&a]);
    c.configure(at(0), &[&a]);
    // Whatever has no other way goes to b, the endpoints among it.
    let all = format!("public_key={}\nallowed_ip=0.0.0.0/0", b.public_key().to_hex());
    assert_eq!(a.set(at(0), &all), Reply::Done);
    for machine in [&a, &b, &c] {
        machine.up();
    }
    settle(at(0), &mut [&mut a, &mut b, &mut c]);
    for to in [b.inner, c.inner] {
        a.stack.send(&packet(a.inner, to, b"first"));
    }
    settle(at(1), &mut [&mut a, &mut b, &mut c]);
    let last_to = |network: &MemoryNetwork, to: SocketAddr| {
        let mut seen = network.seen().into_iter().rev();
        seen.find(|(_, other, datagram)| *other == to && datagram[0] == 4).expect("a data message").2
    };
    let sent = network.seen().len();
    let to_b = last_to(&network, b.endpoint());
    for _ in 0..3 {
        a.stack.send(&looping(a.endpoint(), b.endpoint(), &to_b));
    }
    settle(at(2), &mut [&mut a, &mut b, &mut c]);
    assert_eq!((a.dropped("routing-loop"), network.seen().len()), (3, sent));
    // A datagram to c, in the tunnel to b; somebody else's session with b; b itself, by another port.
    let to_c = last_to(&network, c.endpoint());
    let mut foreign = to_b.clone();
    foreign[4] ^= 1;
    for others in [
        looping(a.endpoint(), c.endpoint(), &to_c),
        looping(a.endpoint(), b.endpoint(), &foreign),
        looping(SocketAddr::new(a.engine_address(), 99), b.endpoint(), &to_b),
    ] {
        a.stack.send(&others);
    }
    settle(at(3), &mut [&mut a, &mut b, &mut c]);
    assert_eq!((a.dropped("routing-loop"), network.seen().len()), (3, sent + 3));
}

#[test]
fn nothing_is_sent_while_the_interface_is_down() {
    let network = network();
    let (mut a, b) = (Machine::on(&network, 1), Machine::on(&network, 2));
    a.configure(at(0), &[&b]);
    let keepalive = format!("public_key={}\npersistent_keepalive_interval=5", b.public_key().to_hex());
    assert_eq!(a.set(at(0), &keepalive), Reply::Done);
    assert_eq!(a.turn(at(60)), NextTurn::Wait(None));
    assert!(network.seen().is_empty());
    a.up();
    a.turn(at(60));
    assert_eq!(network.seen().len(), 1, "the handshake for the keepalive begins at once");
    a.down();
    assert_eq!(a.turn(at(61)), NextTurn::Wait(None));
    assert!(a.engine.udp().is_none(), "the port is closed");
    assert!(a.turn(at(120)) == NextTurn::Wait(None) && network.seen().len() == 1);
}

#[test]
fn a_burst_larger_than_a_batch_keeps_its_order() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    let _ = b.stack.receive();
    for number in 0..2000_u16 {
        let mut payload = vec![0; usize::from(number % 1400)];
        payload.extend(number.to_be_bytes());
        a.stack.send(&packet(a.inner, b.inner, &payload));
    }
    settle(at(2), &mut [&mut a, &mut b]);
    for number in 0..2000_u16 {
        let packet = b.stack.receive().expect("a packet");
        assert_eq!(packet.len(), 20 + usize::from(number % 1400) + 2);
        assert!(packet.ends_with(&number.to_be_bytes()));
    }
    assert_eq!(b.stack.receive(), None);
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn a_super_packet_crosses_as_segments_and_arrives_joined() {
    let (mut a, mut b) = pair();
    for size in [1368, 500] {
        let stream = Stream::between(a.inner, b.inner, 30 * size);
        // The segments of the first one wait for the handshake. Only the latest are kept.
        a.stack.send_super(stream.super_header(size, 0), &stream.bytes(true));
        settle(at(1), &mut [&mut a, &mut b]);
        while b.stack.receive().is_some() {}
        let before = a.network.seen().len();
        a.stack.send_super(stream.super_header(size, 0), &stream.bytes(true));
        a.stack.send(&packet(a.inner, b.inner, b"another"));
        settle(at(2), &mut [&mut a, &mut b]);
        let (header, whole) = b.stack.receive_super().expect("a super-packet");
        assert_eq!(header, stream.super_header(size, 0));
        assert!(whole == stream.bytes(true), "{size}");
        assert!(b.stack.receive().is_some_and(|packet| packet.ends_with(b"another")));
        let lengths: Vec<_> =
            a.network.seen()[before..].iter().map(|(_, _, datagram)| datagram.len()).collect();
        // Messages are padded to a multiple of 16 bytes, but not beyond the MTU.
        assert_eq!(lengths[..30], [((52 + size).next_multiple_of(16)).min(MTU) + 32; 30]);
    }
}

#[test]
fn a_super_packet_of_many_small_segments_fills_more_than_one_batch() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"first"));
    settle(at(1), &mut [&mut a, &mut b]);
    let _ = b.stack.receive();
    let stream = Stream::between(a.inner, b.inner, 60_000);
    a.stack.send_super(stream.super_header(50, 0), &stream.bytes(true));
    settle(at(2), &mut [&mut a, &mut b]);
    for piece in stream.segments(50) {
        assert!(b.stack.receive() == Some(piece.bytes(false)));
    }
    assert_eq!(b.stack.receive(), None);
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn a_super_packet_that_contradicts_its_virtio_header_is_dropped() {
    let (mut a, b) = pair();
    let stream = Stream::between(a.inner, b.inner, 3000);
    let mut header = stream.super_header(1000, 0);
    header.checksum = None;
    a.stack.send_super(header, &stream.bytes(true));
    a.turn(at(1));
    assert_eq!(a.dropped("bad-inner-packet"), 1);
}

#[test]
fn interleaved_packets_reach_peers_with_and_without_sessions_in_order() {
    let network = network();
    let mut hub = Machine::on(&network, 1);
    let mut spokes = [Machine::on(&network, 2), Machine::on(&network, 3), Machine::on(&network, 4)];
    hub.configure(at(0), &spokes.each_ref());
    for spoke in &mut spokes {
        spoke.configure(at(0), &[&hub]);
        spoke.up();
        spoke.turn(at(0));
    }
    hub.up();
    hub.turn(at(0));
    let [ref mut x, ref mut y, ref mut z] = spokes;
    // Only the first peer has a session.
    hub.stack.send(&packet(hub.inner, x.inner, b"hello"));
    settle(at(1), &mut [&mut hub, x, y, z]);
    assert!(x.stack.receive().is_some());
    let mut expected = [const { Vec::new() }; 3];
    for number in 0..60_usize {
        // Runs of different lengths, with every combination of successive peers.
        let which = (number / 2 + number / 7) % 3;
        let spoke = [&*x, &*y, &*z][which];
        let packet = packet(hub.inner, spoke.inner, &vec![number as u8; number * 9]);
        hub.stack.send(&packet);
        expected[which].push(packet);
    }
    settle(at(2), &mut [&mut hub, x, y, z]);
    for (spoke, expected) in [x, y, z].into_iter().zip(expected) {
        let received: Vec<_> = std::iter::from_fn(|| spoke.stack.receive()).collect();
        assert_eq!(received, expected);
    }
    assert_eq!(hub.all_dropped(), 0);
}

#[test]
fn packets_of_the_largest_mtu_cross_the_tunnel() {
    let (mut a, mut b) = pair();
    let jumbo = TunEvent::State(TunState { up: true, mtu: 65_475 });
    a.stack.tell(jumbo);
    b.stack.tell(jumbo);
    let large = packet(a.inner, b.inner, &vec![7; 65_475 - 20]);
    a.stack.send(&large);
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(b.stack.receive(), Some(large));
    let longest = a.network.seen().iter().map(|(_, _, datagram)| datagram.len()).max();
    assert_eq!(longest, Some(65_507), "padding does not exceed the MTU, so a message fits one datagram");
}

#[test]
fn a_packet_to_no_peer_and_to_a_peer_without_an_endpoint_comes_back_as_unreachable() {
    let (mut a, b) = pair();
    let wanderer = PrivateKey::from_bytes([77; 32]).public_key().to_hex();
    assert_eq!(a.set(at(1), &format!("public_key={wanderer}\nallowed_ip=10.0.0.77/32")), Reply::Done);
    for (last, reason) in [(66, "no-peer-for-destination"), (77, "no-endpoint")] {
        let lost = packet(a.inner, Ipv4Addr::new(10, 0, 0, last), b"lost");
        a.stack.send(&lost);
        a.stack.send(&packet(a.inner, b.inner, b"between them"));
        a.stack.send(&lost);
        a.turn(at(1));
        assert_eq!(a.dropped(reason), 2);
        for _ in 0..2 {
            let error = a.stack.receive().expect("an error");
            assert_eq!((error[9], &error[20..22]), (1, &[3, 1][..]), "host unreachable");
            assert!(error.ends_with(&lost));
        }
    }
    // A flood of such packets causes no flood of errors.
    for _ in 0..1000 {
        a.stack.send(&packet(a.inner, Ipv4Addr::new(10, 0, 0, 66), b"lost"));
    }
    while a.turn(at(9)) == NextTurn::Now {}
    assert_eq!(std::iter::from_fn(|| a.stack.receive()).count(), 250);
}

#[test]
fn super_packets_that_the_network_stack_refuses_are_written_singly() {
    let (mut a, mut b) = pair();
    b.stack.refuse_super_packets();
    let stream = Stream::between(a.inner, b.inner, 10_000);
    for round in 1..3 {
        a.stack.send_super(stream.super_header(1000, 0), &stream.bytes(true));
        settle(at(round), &mut [&mut a, &mut b]);
        let arrived: Vec<_> = std::iter::from_fn(|| b.stack.receive_super()).collect();
        assert!(arrived.iter().all(|(header, _)| header.segmentation.is_none()));
        let segments: Vec<_> = stream.segments(1000).iter().map(|segment| segment.bytes(false)).collect();
        assert!(arrived.into_iter().map(|(_, packet)| packet).eq(segments), "{round}");
    }
    assert_eq!(b.all_dropped(), 0);
}

#[test]
fn dropped_packets_are_counted_by_reason() {
    let (mut a, mut b) = pair();
    let stranger = Ipv4Addr::new(10, 9, 9, 9);
    a.stack.send(&packet(a.inner, stranger, b""));
    a.stack.send(b"\x00 no IP packet");
    a.stack.send(b"");
    a.stack.send(&packet(stranger, b.inner, b"a source that is not ours"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(a.dropped("no-peer-for-destination"), 1);
    assert_eq!(a.dropped("bad-inner-packet"), 2);
    assert_eq!(b.dropped("source-not-allowed"), 1);
    assert_eq!(b.stack.receive(), None);
    let Reply::Lines(lines) = b.request(at(1), "get_drops=1") else { panic!("no lines") };
    assert!(lines.contains("source-not-allowed=1\n"), "{}", lines.as_str());
}

#[test]
fn truncated_forged_and_replayed_datagrams_of_every_type_are_dropped() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"hello"));
    settle(at(1), &mut [&mut a, &mut b]);
    let _ = b.stack.receive();
    let genuine: Vec<_> = a.network.seen();
    let (before, mut injected) = (b.all_dropped(), 0);
    for (_, to, datagram) in genuine.iter().filter(|(_, to, _)| *to == b.endpoint()) {
        for len in 0..datagram.len() {
            inject(&b.network, a.engine_address(), *to, &datagram[..len]);
            injected += 1;
        }
        for place in 0..datagram.len() {
            let mut flipped = datagram.clone();
            flipped[place] ^= 1;
            inject(&b.network, a.engine_address(), *to, &flipped);
            injected += 1;
        }
        // The same datagram again is a replay, here even from another address.
        inject(&b.network, Ipv4Addr::new(198, 51, 100, 1).into(), *to, datagram);
        injected += 1;
    }
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(b.all_dropped() - before, injected);
    let there = packet(a.inner, b.inner, b"still here");
    a.stack.send(&there);
    settle(at(2), &mut [&mut a, &mut b]);
    assert_eq!(b.stack.receive(), Some(there));
    assert!(b.get(at(2)).contains(&format!("endpoint={}\n", a.endpoint())));
}

#[test]
fn replies_follow_a_peer_to_its_new_port() {
    let (mut a, mut b) = pair();
    a.stack.send(&packet(a.inner, b.inner, b"hello"));
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(b.set(at(2), "listen_port=2000"), Reply::Done);
    b.stack.send(&packet(b.inner, a.inner, b"from the new port"));
    settle(at(2), &mut [&mut a, &mut b]);
    assert!(a.get(at(2)).contains("endpoint=192.0.2.2:2000\n"));
    let _ = b.stack.receive();
    a.stack.send(&packet(a.inner, b.inner, b"to the new port"));
    settle(at(2), &mut [&mut a, &mut b]);
    assert!(b.stack.receive().is_some());
}

#[test]
fn the_engine_ends_when_its_interface_is_deleted() {
    let (mut a, _b) = pair();
    a.stack.tell(TunEvent::Gone);
    assert_eq!(a.turn(at(1)), NextTurn::Never);
}

#[test]
fn sessions_are_renewed_under_traffic() {
    let (mut a, mut b) = pair();
    for second in 1..400 {
        a.stack.send(&packet(a.inner, b.inner, &[0; 100]));
        settle(at(second), &mut [&mut a, &mut b]);
        assert!(b.stack.receive().is_some(), "lost at {second} s");
    }
    let initiations = a.network.seen().iter().filter(|(_, _, datagram)| datagram[0] == 1).count();
    assert_eq!(initiations, 4, "the first after 1 s, then one every 120 s");
    assert_eq!((a.all_dropped(), b.all_dropped()), (0, 0));
}

#[test]
fn without_a_source_check_a_tun_interface_accepts_any_source_address() {
    let network = network();
    let mode = Mode::new(PeerLookup::Destination, SourceCheck::Off).unwrap();
    let (mut a, mut b) = (Machine::on(&network, 1), Machine::with(&network, 2, mode, memory_tun()));
    a.configure(at(0), &[&b]);
    b.configure(at(0), &[&a]);
    a.up();
    b.up();
    settle(at(0), &mut [&mut a, &mut b]);
    let spoofed = packet(Ipv4Addr::new(10, 9, 9, 9), b.inner, b"from elsewhere");
    a.stack.send(&spoofed);
    settle(at(1), &mut [&mut a, &mut b]);
    assert_eq!(b.stack.receive(), Some(spoofed.clone()));
    assert_eq!(b.set(at(1), "source_check=firewall"), Reply::Refused(Errno::EINVAL));
    assert_eq!(b.set(at(1), "source_check=allowed-ips"), Reply::Done);
    a.stack.send(&spoofed);
    settle(at(2), &mut [&mut a, &mut b]);
    assert_eq!(b.stack.receive(), None);
    assert_eq!(b.dropped("source-not-allowed"), 1);
}
