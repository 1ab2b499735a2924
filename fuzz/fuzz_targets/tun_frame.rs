//! The interface: whatever header and packet the kernel hands over, what leaves is sealed, what comes out at the peer
//! is what was cut here, from an address that the sender may use, and our own errors go to the packet's sender.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use wireloom_engine::{
    fuzzing::{Machine, Wire},
    offload::{segment::Segments, virtio::VirtioHeader},
};
use wireloom_fuzz::{
    input::Input,
    packets::{cut, repair, without_identification},
    tunnel::{Place, Secret, machine, settle, with},
};
use wireloom_proto::inner;
use wireloom_types::Mode;

const OF_A: &str = "10.0.0.1/32 10.1.0.0/16 fd00::1/128";
const OF_B: &str = "10.0.0.2/32 10.2.0.0/16 fd00::2/128 224.0.0.0/4 ff00::/8";

struct World {
    wire: Wire,
    a: Machine,
    b: Machine,
}

impl World {
    fn new() -> Self {
        let wire = Wire::default();
        let a = machine(&wire, 1, Mode::STANDARD, &[(2, OF_B)]);
        let b = machine(&wire, 2, Mode::STANDARD, &[(1, OF_A)]);
        Self { wire, a, b }
    }
}

fn may_be_from_a(source: IpAddr) -> bool {
    OF_A.split(' ').any(|network| network.parse::<ipnet::IpNet>().expect("a network").contains(&source))
}

thread_local!(static PLACE: Place<World> = const { Place::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let how = input.byte();
    let mut header = input.array();
    let mut packet = input.0.to_vec();
    if how & 1 != 0
        && let Some((start, offset)) = repair(&mut packet, true)
    {
        header[0] = 1;
        header[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
        header[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
    }
    // The checksum of no protocol lies in the IP header, where it would change what the packet says of itself.
    let [start, offset] = [6, 8].map(|at| u16::from_ne_bytes([header[at], header[at + 1]]));
    if header[0] & 1 != 0 && usize::from(start) + usize::from(offset) < 20 {
        return;
    }
    // Nothing else is offered, and the queue drops it.
    let Some(header) = VirtioHeader::parse(&header) else { return };
    let expected: Vec<Vec<u8>> = match Segments::new(header, 0, &packet) {
        Some(_) => cut(header, 0, &packet).iter().map(|packet| without_identification(packet)).collect(),
        None => Vec::new(),
    };
    with(&PLACE, World::new, |World { wire, a, b }, now| {
        a.send(header, &packet);
        settle(now, &mut [&mut *a, &mut *b]);
        let secret = Secret::of(&packet);
        wire.take_seen().iter().for_each(|(_, _, datagram)| secret.assert_is_sealed(datagram));
        let mut left = expected.iter();
        while let Some((header, joined)) = b.receive() {
            for packet in cut(header, 0, &joined) {
                let inside = inner::Packet::parse(&packet).expect("an IP packet");
                assert_eq!(inside.len, packet.len(), "padding is removed");
                assert!(may_be_from_a(inside.source), "{} is not A's", inside.source);
                let packet = without_identification(&packet);
                // The peer has removed what was behind the packet that the headers describe.
                let sent = left.any(|sent| sent.starts_with(&packet));
                assert!(sent, "a packet came out that nobody sent, or out of order");
            }
        }
        while let Some((header, error)) = a.receive() {
            let of_error = inner::Packet::parse(&error).expect("an IP packet");
            let about = inner::Packet::parse(&packet).expect("only a packet is reported");
            assert_eq!((header, of_error.len), (VirtioHeader::default(), error.len()));
            assert_eq!((of_error.source, of_error.destination), (about.destination, about.source));
        }
    });
});
