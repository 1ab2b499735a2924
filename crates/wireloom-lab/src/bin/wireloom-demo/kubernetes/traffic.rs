//! What crosses the network between the nodes while a table is measured.

use std::fmt;

use ipnet::IpNet;
use wireloom_lab::{Content, Packet};

/// WireGuard's message type for encrypted packets (WireGuard paper, section 5.4.6).
const TRANSPORT_DATA: u8 = 4;

/// Counts of packets on the network between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traffic {
    all: usize,
    encrypted: usize,
    /// From a pod to a pod, for everyone to read.
    pub(super) plaintext: usize,
}

impl Traffic {
    /// Counts these packets. `pods` holds all pods' addresses.
    pub(super) fn of(packets: &[Packet], pods: &[IpNet]) -> Self {
        let is_pod = |address| pods.iter().any(|block| block.contains(&address));
        let count = |is: &dyn Fn(&Packet) -> bool| packets.iter().filter(|packet| is(packet)).count();
        Self {
            all: packets.len(),
            encrypted: count(&|packet| {
                matches!(packet.content, Content::WireGuard { message: TRANSPORT_DATA, .. })
            }),
            // WireGuard's own packets are between nodes.
            plaintext: count(&|packet| is_pod(packet.source) && is_pod(packet.destination)),
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { all, encrypted, plaintext } = self;
        write!(
            f,
            "between the nodes: {all} packets, {encrypted} of them encrypted, {plaintext} from pod to pod in plaintext"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_between_pods_are_plaintext_and_handshakes_are_not_encrypted_packets() {
        let packet = |source: &str, destination: &str, content| Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            length: 100,
            content,
        };
        let wireguard = |message| Content::WireGuard { message, length: 72 };
        let packets = [
            packet("192.168.1.1", "192.168.1.2", wireguard(1)),
            packet("192.168.1.1", "192.168.1.2", wireguard(4)),
            packet("192.168.1.1", "10.161.2.2", Content::Tcp { source: 1, destination: 2 }),
            packet("10.161.1.2", "10.161.2.2", Content::Other),
        ];
        let pods = ["10.161.0.0/16".parse().unwrap(), "fd00:10:161::/48".parse().unwrap()];
        assert_eq!(Traffic::of(&packets, &pods), Traffic { all: 4, encrypted: 1, plaintext: 1 });
    }
}
