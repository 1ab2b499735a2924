//! The packets of a peer that has a session and means ill: only those from its own addresses come out, as it sent them
//! and in their order, whether they were joined on the way or not. In link mode, they come from its link address, and
//! no neighbour discovery is among them.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use wireloom_engine::fuzzing::{Machine, Wire};
use wireloom_fuzz::{
    input::Input,
    packets::{ETHERNET, cut, repair, without_identification},
    tunnel::{Place, address, at, key, machine, public_key, with},
};
use wireloom_kernel::fuzzing::echo_reply;
use wireloom_proto::{
    Device, Endpoint, MessageKind, Now, inner,
    message::{DATA_HEADER_LEN, DATA_OVERHEAD},
};
use wireloom_types::{LinkAddress, Mode, PeerLookup, SourceCheck};

/// The hostile peer's number; the victims are 1 and 2.
const MALLORY: u8 = 3;
/// What the victims allow it. An honest peer has the part of it that is more precise.
const ALLOWED: &str = "10.66.0.0/16 fd66::/16";
const OF_ANOTHER: &str = "10.66.7.0/24 fd66:7::/32";

struct World {
    wire: Wire,
    mallory: Device,
    /// One by allowed-IPs, one in link mode.
    victims: [Machine; 2],
}

impl World {
    fn new() -> Self {
        let wire = Wire::default();
        let link = Mode::new(PeerLookup::Gateway, SourceCheck::Off).expect("link mode");
        let peers = [(MALLORY, ALLOWED), (4, OF_ANOTHER)];
        let victims = [machine(&wire, 1, Mode::STANDARD, &peers), machine(&wire, 2, link, &peers)];
        let mut mallory = Device::new(&[MALLORY; 32]);
        mallory.configure(at(0), |configuration| {
            configuration.set_private_key(Some(key(MALLORY)));
            for victim in [1, 2] {
                let victim_key = public_key(victim);
                configuration.add_peer(victim_key).expect("another key").set_endpoint(address(victim));
            }
        });
        mallory.handle_up();
        let mut world = Self { wire, mallory, victims };
        // They open their ports.
        world.victims.iter_mut().for_each(|victim| victim.turn(at(0)));
        world.greet(at(0));
        world
    }

    /// Makes the sessions.
    fn greet(&mut self, now: Now) {
        let ids: Vec<_> = self.mallory.peers().map(|peer| peer.id).collect();
        for peer in ids {
            self.mallory.send_keepalive(now, peer);
        }
        for _ in 0..3 {
            while let Some(transmit) = self.mallory.poll_transmit(now) {
                self.wire.send(address(MALLORY), transmit.endpoint.remote, transmit.datagram);
            }
            self.victims.iter_mut().for_each(|victim| victim.turn(now));
            for (from, to, datagram) in self.wire.take_seen() {
                if to == address(MALLORY) && MessageKind::classify(&datagram) == Ok(MessageKind::Response) {
                    let answered = self.mallory.handle_handshake(now, Endpoint::from(from), &datagram);
                    answered.expect("a genuine response");
                }
            }
        }
    }

    /// Seals payloads for a victim, and has them arrive together.
    fn send(&mut self, now: Now, victim: u8, payloads: &[Vec<u8>]) {
        let framed = payloads.iter().map(|payload| {
            let mut message = vec![0; DATA_OVERHEAD + payload.len()];
            message[DATA_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
            message
        });
        let mut messages: Vec<Vec<u8>> = framed.collect();
        let peer = self.mallory.peer(&public_key(victim)).expect("it was added");
        peer.path.seal(now.monotonic, messages.iter_mut().map(Vec::as_mut_slice)).expect("a session");
        messages.iter().for_each(|message| self.wire.send(address(MALLORY), address(victim), message));
    }
}

fn is_allowed(source: IpAddr) -> bool {
    let within = |networks: &str| {
        let mut networks =
            networks.split(' ').map(|network| network.parse::<ipnet::IpNet>().expect("a network"));
        networks.any(|network| network.contains(&source))
    };
    within(ALLOWED) && !within(OF_ANOTHER)
}

/// What the agent takes for a reply to an echo request of its own is a whole one, and as long as the packet. Its raw
/// socket gets an IPv4 packet whole, and of an IPv6 packet what follows the header.
fn check_echo(packet: &[u8]) {
    let inside = inner::Packet::parse(packet).expect("an IP packet");
    let header = if inside.source.is_ipv4() { 0 } else { 40 };
    if let Some((from, len)) = echo_reply(&packet[header..], inside.source, 7) {
        assert_eq!((from, len as usize), (inside.source, packet.len()));
        assert!(packet.len() >= header + 8);
    }
}

/// The payloads that an input describes.
fn payloads(input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    while payloads.len() < 48 && !input.0.is_empty() {
        let how = input.byte();
        let given = input.piece().unwrap_or_default();
        let mut payload = match payloads.last() {
            // The same packet again, except for its first bytes, as the next one of its stream.
            Some(last) if how & 1 != 0 => continued(last, given),
            _ => given.to_vec(),
        };
        if how & 2 != 0 {
            repair(&mut payload, false);
        }
        payloads.push(payload);
    }
    payloads
}

/// The packet that follows another one in a TCP stream over IPv4 or IPv6, with these bytes at the end.
fn continued(last: &[u8], end: &[u8]) -> Vec<u8> {
    let mut next = last.to_vec();
    let ip = if last.first().is_some_and(|first| first >> 4 == 6) { 40 } else { 20 };
    let sequence = ip + 4;
    if let Some(field) = next.get(sequence..sequence + 4) {
        let header = ip + usize::from(last.get(ip + 12).copied().unwrap_or(0) >> 4) * 4;
        let payload = last.len().saturating_sub(header) as u32;
        let number = u32::from_be_bytes(field.try_into().expect("four bytes")).wrapping_add(payload);
        next[sequence..sequence + 4].copy_from_slice(&number.to_be_bytes());
        let identification = u16::from_be_bytes([last[4], last[5]]).wrapping_add(1);
        if ip == 20 {
            next[4..6].copy_from_slice(&identification.to_be_bytes());
        }
    }
    let kept = next.len().saturating_sub(end.len());
    next[kept..].copy_from_slice(&end[..last.len() - kept]);
    next
}

thread_local!(static PLACE: Place<World> = const { Place::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let victim = 1 + input.byte() % 2;
    let payloads = payloads(&mut input);
    with(&PLACE, World::new, |world, now| {
        world.send(now, victim, &payloads);
        let machine = &mut world.victims[usize::from(victim - 1)];
        machine.turn(now);
        let link_len = if victim == 2 { ETHERNET } else { 0 };
        let mut received = Vec::new();
        while let Some((header, frame)) = machine.receive() {
            received.extend(cut(header, link_len, &frame));
        }
        let _ = world.wire.take_seen();
        let sent = payloads.iter().filter_map(|payload| {
            let packet = inner::Packet::parse(payload).ok()?;
            (victim == 2 || is_allowed(packet.source)).then(|| without_identification(&payload[..packet.len]))
        });
        let mut sent = sent.collect::<Vec<_>>().into_iter();
        for frame in received {
            let (link, packet) = frame.split_at(link_len);
            check_echo(packet);
            let packet = without_identification(packet);
            if victim == 2 {
                assert_eq!(link[6..12], LinkAddress::of(public_key(MALLORY)).to_bytes());
                let is_v6_icmp = packet[0] >> 4 == 6 && packet[6] == 58;
                assert!(!is_v6_icmp || !(135..=137).contains(&packet[40]), "neighbour discovery");
                assert!(sent.any(|sent| sent == packet), "a packet came out that nobody sent");
            } else {
                assert_eq!(sent.next(), Some(packet), "the packets that are allowed, in their order");
            }
        }
        assert!(victim == 2 || sent.next().is_none(), "an allowed packet is lost");
    });
});
