//! Which packets are longer than the path to their peer carries.

use std::net::SocketAddr;

use wireloom_proto::{
    Instant, PeerPath,
    message::{DATA_OVERHEAD, PADDING},
};
use wireloom_types::path_probe;

use crate::packet::{ip_version, ipv4, ipv6, udp};

/// The length in bytes of the longest packet that the path to a peer carries, if this packet exceeds it and must not be
/// fragmented. The packet's segments are up to `longest` bytes long; `mtu` is the interface's, in bytes.
#[inline]
pub(crate) fn room_exceeded(
    path: &PeerPath,
    now: Instant,
    packet: &[u8],
    longest: usize,
    mtu: usize,
) -> Option<usize> {
    // For most peers there is nothing more to do.
    let path_mtu = path.path_mtu(now)?;
    let is_v6 = ip_version(packet)? == 6;
    let may_be_fragmented = !is_v6 && !ipv4::Header::read(packet)?.dont_fragment();
    let payload = path_mtu.saturating_sub(outer_headers(path.endpoint()?.remote) + DATA_OVERHEAD);
    // A packet as long as the interface's MTU is not padded.
    let room = if payload >= mtu { mtu } else { payload - payload % PADDING };
    // Every IPv6 link carries packets of the minimum MTU, so a "packet too big" may not name less.
    let room = if is_v6 { room.max(ipv6::MTU_MIN) } else { room };
    (longest > room && !may_be_fragmented).then_some(room)
}

/// Whether a packet is an echo request of an agent that probes the path. It means something only unfragmented.
#[inline]
pub(crate) fn is_path_probe(packet: &[u8]) -> bool {
    let (protocol, request, header) = match packet.first() {
        // Agents send no options.
        Some(0x45) => ((9, 1), 8, ipv4::HEADER_LEN),
        Some(first) if first >> 4 == 6 => ((6, 58), 128, ipv6::HEADER_LEN),
        _ => return false,
    };
    packet.get(protocol.0) == Some(&protocol.1)
        && packet.get(header) == Some(&request)
        && packet.get(header + path_probe::HEADER..).is_some_and(|data| data.starts_with(&path_probe::DATA))
}

/// The length of the outer headers of a datagram to this endpoint, in bytes.
pub(crate) fn outer_headers(remote: SocketAddr) -> usize {
    udp::HEADER_LEN + if remote.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agents_echo_request_is_a_probe() {
        let mut v4 = vec![0; 28];
        (v4[0], v4[9], v4[20]) = (0x45, 1, 8);
        v4.extend(path_probe::DATA);
        let mut v6 = vec![0; 48];
        (v6[0], v6[6], v6[40]) = (0x60, 58, 128);
        v6.extend(path_probe::DATA);
        for (probe, request) in [(v4, 20), (v6, 40)] {
            assert!(is_path_probe(&probe));
            (0..probe.len()).for_each(|len| assert!(!is_path_probe(&probe[..len])));
            let mut reply = probe;
            reply[request] = 0;
            assert!(!is_path_probe(&reply));
        }
    }
}
