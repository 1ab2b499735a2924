//! Cutting and joining: what a super-packet is cut into is joined, and cut again into the same packets; and packets
//! that are joined come out as they were.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wireloom_engine::offload::{
    coalesce::{Coalescer, Joinable},
    segment::Segments,
    virtio::VirtioHeader,
};
use wireloom_fuzz::{
    input::Input,
    packets::{ETHERNET, cut, repair, without_identification},
};
use wireloom_proto::inner;

/// Joins packets, and cuts what comes of it.
fn through(packets: &[Vec<u8>], link: Option<[u8; ETHERNET]>) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new(Joinable { tcp: true, udp: true });
    let (mut out, mut counted) = (Vec::new(), 0);
    let mut sink = |count: u64, parts: &[std::io::IoSlice<'_>]| {
        let header = parts[0].first_chunk().and_then(VirtioHeader::parse).expect("a header");
        let frame: Vec<u8> = parts[1..].iter().flat_map(|part| part.iter().copied()).collect();
        assert!(frame.len() <= ETHERNET + 65_535);
        let packets = cut(header, link.map_or(0, |link| link.len()), &frame);
        assert_eq!(packets.len() as u64, count);
        counted += count;
        out.extend(packets);
    };
    packets.iter().for_each(|packet| coalescer.push(link, packet, &mut sink));
    coalescer.flush(&mut sink);
    assert_eq!(counted, packets.len() as u64);
    out
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let how = input.byte();
    let link: Option<[u8; ETHERNET]> = (how & 1 != 0).then(|| input.array());
    let mut packets: Vec<Vec<u8>> = Vec::new();
    if how & 2 != 0 {
        // A super-packet.
        let mut header = input.array();
        let mut packet = input.0.to_vec();
        let found = repair(&mut packet, true).filter(|_| how & 4 != 0);
        if let Some((start, offset)) = found {
            header[0] = 1;
            let start = start + link.map_or(0, |link| link.len());
            header[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
            header[8..10].copy_from_slice(&(offset as u16).to_ne_bytes());
        }
        let Some(header) = VirtioHeader::parse(&header) else { return };
        assert_eq!(VirtioHeader::parse(&header.to_bytes()), Some(header));
        let Some(segments) = Segments::new(header, link.map_or(0, |link| link.len()), &packet) else {
            return;
        };
        assert!(segments.longest() <= packet.len());
        let frame = [link.as_ref().map_or(&[][..], |link| link), &packet].concat();
        packets = cut(header, frame.len() - packet.len(), &frame);
        packets.iter_mut().for_each(|frame| drop(frame.drain(..link.map_or(0, |link| link.len()))));
    } else {
        while packets.len() < 80 && !input.0.is_empty() {
            let repaired = input.byte() & 1 != 0;
            let mut packet = input.piece().unwrap_or_default().to_vec();
            if repaired {
                repair(&mut packet, false);
            }
            packets.push(packet);
        }
    }
    // As admission has them: of the length that they claim.
    packets.retain_mut(|packet| {
        let len = inner::Packet::parse(packet).map(|inside| inside.len);
        len.map(|len| packet.truncate(len)).is_ok()
    });
    let out = through(&packets, link);
    for (before, after) in packets.iter().zip(&out) {
        let (link_after, after) = after.split_at(link.map_or(0, |link| link.len()));
        assert_eq!(link_after, link.as_ref().map_or(&[][..], |link| link));
        assert_eq!(without_identification(before), without_identification(after));
    }
});
