//! Which flow a packet belongs to.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    ops::Range,
};

/// IP protocol numbers of transports with ports at the start of their header: TCP, UDP, SCTP and DCCP.
const WITH_PORTS: [u8; 4] = [6, 17, 132, 33];

/// A number that all packets of a flow share, and that differs between most flows: of the addresses,
/// the protocol and, unless it is a fragment, the ports. `packet` is as much of it as there is in one
/// piece, its headers at best.
pub(super) fn flow_hash(packet: &[u8]) -> u64 {
    let (addresses, protocol, transport) = match packet.first().map(|first| first >> 4) {
        Some(4) => (12..20, packet.get(9), v4_transport(packet)),
        // What stands behind extension headers is not looked for: most flows have none.
        Some(6) => (8..40, packet.get(6), Some(40)),
        _ => return 0,
    };
    let ports = protocol.filter(|protocol| WITH_PORTS.contains(protocol)).and(transport);
    let ports = ports.map_or(0..0, |at| at..at + 4);
    let part = |range: Range<usize>| packet.get(range).unwrap_or_default();
    BuildHasherDefault::<DefaultHasher>::default().hash_one((part(addresses), protocol, part(ports)))
}

/// Where the transport header starts; fragments but the first have none, so that none of them counts.
fn v4_transport(packet: &[u8]) -> Option<usize> {
    let fragment = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?) & 0x3fff != 0;
    (!fragment).then(|| usize::from(packet[0] & 15) * 4)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn udp_v4(source_port: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = 17;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..22].copy_from_slice(&source_port.to_be_bytes());
        packet.extend(payload);
        packet
    }

    #[test]
    fn packets_of_a_flow_share_it() {
        assert_eq!(flow_hash(&udp_v4(1, 0, b"one")), flow_hash(&udp_v4(1, 0x4000, b"another")));
        let mut v6 = vec![0x60; 60];
        v6[6] = 6;
        let first = flow_hash(&v6);
        v6[50..].fill(1);
        // The class and the hop limit may change on the way.
        v6[1] = 3;
        v6[7] = 9;
        assert_eq!(flow_hash(&v6), first);
    }

    #[test]
    fn all_fragments_of_a_packet_share_it() {
        assert_eq!(flow_hash(&udp_v4(1, 0x2000, b"")), flow_hash(&udp_v4(77, 0x0042, b"")));
    }

    #[test]
    fn flows_spread() {
        let queues: BTreeSet<_> = (0..64).map(|port| flow_hash(&udp_v4(port, 0, b"")) % 8).collect();
        assert_eq!(queues.len(), 8);
    }

    #[test]
    fn whatever_comes_has_one() {
        for len in 0..60 {
            for first in [0, 0x40, 0x45, 0x4f, 0x60] {
                let mut packet = vec![17; len];
                packet.iter_mut().take(1).for_each(|byte| *byte = first);
                flow_hash(&packet);
            }
        }
    }
}
