//! IP packets and frames, read and written here without our own code, except for cutting super-packets.

use wireloom_engine::offload::{segment::Segments, virtio::VirtioHeader};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// The packets in what was written to an interface, each with the link header of the whole.
///
/// # Panics
/// When the virtio-net header contradicts the packet.
pub fn cut(header: VirtioHeader, link_len: usize, frame: &[u8]) -> Vec<Vec<u8>> {
    let (link, packet) = frame.split_at(link_len);
    let mut left = Segments::new(header, link_len, packet).expect("a header that fits the packet");
    let mut room = vec![0; left.longest()];
    let mut packets = Vec::new();
    while let Some(len) = left.write_next(packet, &mut room) {
        packets.push([link, &room[..len]].concat());
    }
    packets
}

/// The same packet without what an IPv4 router that may not fragment it need not keep: its identification, which means
/// nothing then (RFC 6864, section 4.1), and the header's checksum with it.
pub fn without_identification(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The one's complement sum of RFC 1071, section 4.1, word by word.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let words = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Makes a packet's lengths and checksums right, as far as it has the fields, so that it is not dropped for them. With
/// `partial`, the transport's checksum covers the pseudo-header only. Returns where the transport header starts, and
/// where the checksum is in it.
pub fn repair(packet: &mut [u8], partial: bool) -> Option<(usize, usize)> {
    let len = u16::try_from(packet.len()).ok()?;
    let (protocol, transport, addresses) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            let transport = usize::from(packet[0] & 15) * 4;
            packet[10..12].fill(0);
            let header = packet.get(..transport).filter(|header| header.len() >= 20)?;
            let checksum = !sum(&[header]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            (packet[9], transport, 12..20)
        }
        6 if packet.len() >= 40 => {
            packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            (packet[6], 40, 8..40)
        }
        _ => return None,
    };
    let field = match protocol {
        6 => 16,
        17 => 6,
        58 => 2,
        _ => return None,
    };
    let transport_len = u16::try_from(packet.len() - transport).ok()?;
    let room = packet.get_mut(transport + field..transport + field + 2)?;
    room.fill(0);
    if protocol == 17 {
        packet.get_mut(transport + 4..transport + 6)?.copy_from_slice(&transport_len.to_be_bytes());
    }
    let pseudo = [&packet[addresses], &[0, protocol], &transport_len.to_be_bytes()].concat();
    let checksum = if partial { sum(&[&pseudo]) } else { !sum(&[&pseudo, &packet[transport..]]) };
    let checksum = if checksum == 0 && protocol == 17 { 0xffff } else { checksum };
    packet[transport + field..transport + field + 2].copy_from_slice(&checksum.to_be_bytes());
    Some((transport, field))
}
