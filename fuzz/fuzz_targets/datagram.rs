//! The UDP port: Alice and Bob exchange packets while the input damages, truncates, duplicates and forges their
//! datagrams. A device may drop whatever arrives, but it must not panic, and only packets that were sent come out.
#![no_main]

use std::net::SocketAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use wireloom_proto::{Device, Endpoint, Instant, MessageKind, Now, UnixTime, inner};
use wireloom_types::PrivateKey;

const MTU: usize = 1420;
const PACKET_LEN: usize = 48;

struct Node {
    device: Device,
    address: SocketAddr,
}

fn now(tick: u32) -> Now {
    let elapsed = Duration::from_secs(1000) + Duration::from_millis(700) * tick;
    Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
}

fn node(number: u8, peer: u8) -> Node {
    let mut device = Device::new(&[number; 32]);
    let key = |number| PrivateKey::from_bytes([number; 32]);
    let address = |number| SocketAddr::from(([192, 0, 2, number], 51820));
    device.configure(now(0), |configuration| {
        configuration.set_private_key(Some(key(number)));
        let mut them = configuration.add_peer(key(peer).public_key()).expect("not our own key");
        them.set_endpoint(address(peer)).add_allowed_ip("10.0.0.0/8".parse().expect("a network"));
    });
    device.handle_up();
    Node { device, address: address(number) }
}

/// An IPv4 packet whose payload repeats one byte.
fn packet(fill: u8) -> [u8; PACKET_LEN] {
    let mut packet = [fill; PACKET_LEN];
    packet[..20].copy_from_slice(&[
        0x45, 0, 0, PACKET_LEN as u8, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet
}

fn receive(node: &mut Node, tick: u32, from: SocketAddr, mut datagram: Vec<u8>) {
    let from = Endpoint::from(from);
    match MessageKind::classify(&datagram) {
        Ok(MessageKind::Data) => {
            let transport = node.device.transport().clone();
            if let Ok(opened) = transport.open(now(tick).monotonic, from, &mut datagram) {
                if let Ok(inside) = inner::Packet::parse(opened.payload) {
                    let bytes = &opened.payload[..inside.len];
                    assert_eq!(bytes, packet(bytes[PACKET_LEN - 1]), "a packet came out that nobody sent");
                }
                if let Some(signal) = opened.signal {
                    node.device.handle_signal(now(tick), signal);
                }
            }
        }
        Ok(_) => {
            let _ = node.device.handle_handshake(now(tick), from, &datagram);
        }
        Err(_) => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let [mut alice, mut bob] = [node(1, 2), node(2, 1)];
    for (tick, step) in (1..).zip(input.chunks(8)) {
        let path = alice.device.transport().routes().lookup([10, 0, 0, 2].into()).cloned();
        let peer = path.expect("the one peer has every address").id();
        let _ = alice.device.handle_outgoing(now(tick), peer, &packet(step[0]), MTU);
        for forward in [true, false] {
            let (sender, receiver) = if forward { (&mut alice, &mut bob) } else { (&mut bob, &mut alice) };
            sender.device.handle_timeout(now(tick));
            while let Some(transmit) = sender.device.poll_transmit(now(tick)) {
                let mut datagram = transmit.datagram.to_vec();
                // The first byte of the step says what happens to the datagram, and the next two where and how.
                if let [kind, place, damage, ..] = *step {
                    let place = usize::from(place) % datagram.len();
                    match kind % 8 {
                        0 => datagram[place] ^= damage,
                        1 => datagram.truncate(place),
                        2 => datagram.extend_from_slice(step),
                        3 => receive(receiver, tick, sender.address, datagram.clone()),
                        4 => datagram = step.to_vec(),
                        _ => {}
                    }
                }
                receive(receiver, tick, sender.address, datagram);
            }
        }
    }
});
