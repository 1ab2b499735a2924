//! Flows: which packets belong together.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use super::{ip_version, ipv4, ipv6, protocol};

/// Transports whose header begins with the ports.
const WITH_PORTS: [u8; 4] = [protocol::TCP, protocol::UDP, protocol::SCTP, protocol::DCCP];

/// A number that all packets of a flow share and that differs between most flows. It is a hash of the addresses, the
/// protocol and, except for fragments, the ports. `packet` may be truncated; the headers are enough.
pub(crate) fn flow_hash(packet: &[u8]) -> u64 {
    let key = match ip_version(packet) {
        Some(4) => ipv4::Header::read(packet).map(|header| {
            // Later fragments have no ports, so none of a packet's fragments counts them.
            let transport = (!header.is_fragment()).then(|| header.len());
            (ipv4::ADDRESSES, header.protocol(), transport)
        }),
        // Ports behind extension headers are not looked for: most flows have none.
        Some(6) => ipv6::Header::read(packet)
            .map(|header| (ipv6::ADDRESSES, header.next_header(), Some(ipv6::HEADER_LEN))),
        _ => None,
    };
    let Some((addresses, protocol, transport)) = key else { return 0 };
    let transport = transport.filter(|_| WITH_PORTS.contains(&protocol));
    let ports = transport.and_then(|at| packet.get(at..at + 4)).unwrap_or_default();
    BuildHasherDefault::<DefaultHasher>::default().hash_one((&packet[addresses], protocol, ports))
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
    fn packets_of_a_flow_have_the_same_hash() {
        assert_eq!(flow_hash(&udp_v4(1, 0, b"one")), flow_hash(&udp_v4(1, 0x4000, b"another")));
        let mut v6 = vec![0x60; 60];
        v6[6] = 6;
        let first = flow_hash(&v6);
        v6[50..].fill(1);
        // The traffic class and the hop limit may change on the way.
        v6[1] = 3;
        v6[7] = 9;
        assert_eq!(flow_hash(&v6), first);
    }

    #[test]
    fn all_fragments_of_a_packet_have_the_same_hash() {
        assert_eq!(flow_hash(&udp_v4(1, 0x2000, b"")), flow_hash(&udp_v4(77, 0x0042, b"")));
    }

    #[test]
    fn flows_are_spread_over_all_queues() {
        let queues: BTreeSet<_> = (0..64).map(|port| flow_hash(&udp_v4(port, 0, b"")) % 8).collect();
        assert_eq!(queues.len(), 8);
    }

    #[test]
    fn malformed_packets_do_not_panic() {
        for len in 0..60 {
            for first in [0, 0x40, 0x45, 0x4f, 0x60] {
                let mut packet = vec![17; len];
                packet.iter_mut().take(1).for_each(|byte| *byte = first);
                flow_hash(&packet);
            }
        }
    }
}
