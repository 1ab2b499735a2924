//! Link mode: whatever frame the network stack sends, ARP and neighbour discovery are answered here and never reach a
//! peer, redirects go nowhere, and what comes back to the stack is well-formed and from a neighbour.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_engine::{
    fuzzing::{Machine, Wire},
    offload::virtio::VirtioHeader,
};
use wireloom_fuzz::{
    input::Input,
    packets::{ETHERNET, cut, repair, sum},
    tunnel::{Place, Secret, machine, public_key, settle, with},
};
use wireloom_types::{LinkAddress, Mode, PeerLookup, SourceCheck};

struct World {
    wire: Wire,
    a: Machine,
    b: Machine,
    c: Machine,
}

impl World {
    fn new() -> Self {
        let wire = Wire::default();
        let link = Mode::new(PeerLookup::Gateway, SourceCheck::Off).expect("link mode");
        let a = machine(&wire, 1, link, &[(2, "10.0.0.2/32 fd00::2/128"), (3, "10.0.0.0/24 fd00::/64")]);
        let b = machine(&wire, 2, link, &[(1, "10.0.0.1/32")]);
        let c = machine(&wire, 3, Mode::STANDARD, &[(1, "0.0.0.0/0 ::/0")]);
        Self { wire, a, b, c }
    }
}

/// Puts a link address that means something in place of one that may.
fn neighbour(address: &mut [u8]) {
    let known = match address[0] {
        0 => LinkAddress::of(public_key(2)),
        1 => LinkAddress::of(public_key(3)),
        2 => LinkAddress::of(public_key(1)),
        3 => LinkAddress::NOBODY,
        4 => LinkAddress::BROADCAST,
        _ => return,
    };
    address.copy_from_slice(&known.to_bytes());
}

/// Asserts that a packet is none that stays on the link: as far as its ICMP comes right behind the IP header.
fn assert_may_cross(packet: &[u8]) {
    match packet[0] >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            let is_first = packet[6] & 0x1f == 0 && packet[7] == 0;
            assert!(packet[9] != 1 || !is_first || packet[header] != 5, "a redirect");
        }
        _ => {
            let stays = packet.get(40).is_none_or(|kind| (135..=137).contains(kind));
            assert!(packet[6] != 58 || !stays, "neighbour discovery, or cut before its type");
        }
    }
}

/// Asserts that what the stack of A gets is an answer, or an error, of a neighbour.
fn assert_is_answer(frame: &[u8]) {
    let from: [u8; 6] = frame[6..12].try_into().expect("six bytes");
    let known = [2, 3].map(|number| LinkAddress::of(public_key(number)));
    let mut from_known = known.into_iter().chain([LinkAddress::NOBODY]).map(LinkAddress::to_bytes);
    assert!(from_known.any(|known| known == from), "it comes from nobody");
    let packet = &frame[ETHERNET..];
    match frame[12..ETHERNET] {
        [8, 6] => assert_eq!((packet.len(), &packet[..8]), (28, &[0, 1, 8, 0, 6, 4, 0, 2][..]), "a reply"),
        [8, 0] => {
            assert_eq!((sum(&[&packet[..20]]), sum(&[&packet[20..]])), (0xffff, 0xffff), "the checksums");
            assert_eq!((packet[0], packet[9], packet[20]), (0x45, 1, 3), "destination unreachable");
        }
        [0x86, 0xdd] => {
            let len = u16::try_from(packet.len() - 40).expect("a short packet").to_be_bytes();
            assert_eq!((packet[0] >> 4, packet[6], &packet[4..6]), (6, 58, &len[..]));
            assert_eq!(sum(&[&packet[8..40], &[0, 58], &len, &packet[40..]]), 0xffff, "the checksum");
            assert!(matches!(packet[40], 1 | 2 | 136), "an error or an advertisement");
        }
        _ => panic!("a frame of another protocol"),
    }
}

thread_local!(static PLACE: Place<World> = const { Place::new(None) });

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let how = input.byte();
    let Some(header) = VirtioHeader::parse(&input.array()) else { return };
    let mut frame = input.0.to_vec();
    if let Some((addresses, _)) = frame.split_first_chunk_mut::<12>() {
        neighbour(&mut addresses[..6]);
    }
    if how & 1 != 0 && frame.len() > ETHERNET {
        repair(&mut frame[ETHERNET..], false);
    }
    with(&PLACE, World::new, |World { wire, a, b, c }, now| {
        a.send(header, &frame);
        settle(now, &mut [&mut *a, &mut *b, &mut *c]);
        let secret = Secret::of(frame.get(ETHERNET..).unwrap_or_default());
        wire.take_seen().iter().for_each(|(_, _, datagram)| secret.assert_is_sealed(datagram));
        while let Some((header, frame)) = b.receive() {
            for frame in cut(header, ETHERNET, &frame) {
                assert_eq!(frame[6..12], LinkAddress::of(public_key(1)).to_bytes(), "A's address");
                assert_may_cross(&frame[ETHERNET..]);
            }
        }
        while let Some((header, packet)) = c.receive() {
            cut(header, 0, &packet).iter().for_each(|packet| assert_may_cross(packet));
        }
        while let Some((header, frame)) = a.receive() {
            assert_eq!(header, VirtioHeader::default());
            assert_is_answer(&frame);
        }
    });
});
