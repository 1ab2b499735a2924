//! The cost of splitting a super-packet into segments, and of joining them again.
//!
//! `cargo bench -p wireloom-engine`

use divan::{Bencher, counter::BytesCount};
use wireloom_engine::{
    offload::{
        coalesce::{Coalescer, Joinable},
        segment::Segments,
        virtio::{PartialChecksum, Segmentation, SegmentationKind, VirtioHeader},
    },
    packet::checksum::Sum,
};

/// As many datagrams of 1,452 bytes as fit one send of 65,507.
const SEGMENTS: usize = 45;
/// The length of the headers: IPv4, and TCP with timestamps, as Linux sends it.
const HEADERS: usize = 20 + 32;
/// The payload of each segment in bytes, with the usual MTU of a tunnel.
const PAYLOAD: usize = 1420 - HEADERS;

fn main() {
    divan::main();
}

/// A super-packet of TCP over IPv4, as the kernel hands it over. The flow is part of the source port.
fn super_packet(flow: u8) -> (VirtioHeader, Vec<u8>) {
    let len = HEADERS + SEGMENTS * PAYLOAD;
    let mut packet = vec![0x45, 0];
    packet.extend((len as u16).to_be_bytes());
    // Identification, don't fragment, time to live, TCP; no checksum, which is computed for each segment.
    packet.extend([0, 7, 0x40, 0, 64, 6, 0, 0]);
    packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([200, flow, 0x14, 0x51]);
    packet.extend([0, 0, 0, 9, 0, 0, 0, 5]);
    // A header of 8 words, ACK, window; checksum and urgent pointer; padding and timestamps.
    packet.extend([0x80, 0x10, 1, 0xf6, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    packet.extend((0..SEGMENTS * PAYLOAD).map(|at| at as u8));
    let pseudo_header = Sum::of(&packet[12..20]).and_u16(6).and_u16((len - 20) as u16);
    packet[36..38].copy_from_slice(&pseudo_header.fold().to_be_bytes());
    let header = VirtioHeader {
        checksum: Some(PartialChecksum { start: 20, offset: 16 }),
        segmentation: Some(Segmentation {
            kind: SegmentationKind::TcpV4,
            header_len: HEADERS as u16,
            size: PAYLOAD as u16,
        }),
    };
    (header, packet)
}

fn split(flow: u8) -> Vec<Vec<u8>> {
    let (header, packet) = super_packet(flow);
    let mut segments = Segments::new(header, 0, &packet).expect("a super-packet");
    let mut room = vec![0; segments.longest()];
    let next = || segments.write_next(&packet, &mut room).map(|len| room[..len].to_vec());
    let packets: Vec<_> = std::iter::from_fn(next).collect();
    assert_eq!(packets.len(), SEGMENTS);
    packets
}

#[divan::bench]
fn split_a_super_packet(bencher: Bencher<'_, '_>) {
    let (header, packet) = super_packet(1);
    let mut room = vec![0; HEADERS + PAYLOAD];
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        let mut segments = Segments::new(header, 0, divan::black_box(&packet)).expect("a super-packet");
        while segments.write_next(&packet, &mut room).is_some() {
            divan::black_box(&mut room);
        }
    });
}

/// Joins these packets, and returns how many packets and super-packets came out.
fn join<'p>(packets: impl Iterator<Item = &'p Vec<u8>>) -> usize {
    let mut count = 0;
    let mut coalescer = Coalescer::new(Joinable { tcp: true, udp: true });
    for packet in packets {
        coalescer.push(None, divan::black_box(packet), |_, parts| {
            divan::black_box(parts);
            count += 1;
        });
    }
    coalescer.flush(|_, parts| {
        divan::black_box(parts);
        count += 1;
    });
    count
}

#[divan::bench]
fn join_a_super_packet(bencher: Bencher<'_, '_>) {
    let packets = split(1);
    let len: usize = packets.iter().map(Vec::len).sum();
    bencher.counter(BytesCount::new(len)).bench_local(|| assert_eq!(join(packets.iter()), 1));
}

/// Two flows whose packets alternate, so nothing can be joined.
#[divan::bench]
fn join_nothing(bencher: Bencher<'_, '_>) {
    let (one, other) = (split(1), split(2));
    let packets = || one.iter().zip(&other).flat_map(|(one, other)| [one, other]);
    let len: usize = packets().map(Vec::len).sum();
    bencher.counter(BytesCount::new(len)).bench_local(|| assert_eq!(join(packets()), 2 * SEGMENTS));
}
