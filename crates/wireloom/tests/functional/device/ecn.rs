//! Congestion notification (RFC 6040): what the wire shows of it, and what becomes of the marks of a network.

use std::net::{IpAddr, UdpSocket};

use socket2::SockRef;
use wireloom_lab::PATIENCE;
use wireloom_plan::routing::Family;

use crate::fixtures::{
    device::request,
    frames::Listener,
    tunnel::{PORT, Program, Tunnel, inner},
};

/// The port of the receiver inside the tunnel.
const INSIDE: u16 = 9000;
/// The length of each datagram inside, in bytes.
const LEN: usize = 200;
/// Expedited forwarding (RFC 3246), which the wire does not show.
const EF: u8 = 0xb8;
/// Congestion experienced.
const CE: u8 = 0b11;

/// The type of service or traffic class of an IP packet to this UDP port, and the length of the UDP payload.
fn class_of(packet: &[u8], port: u16) -> Option<(u8, usize)> {
    let (class, udp) = match packet.first()? >> 4 {
        4 if packet[9] == 17 => (packet[1], packet.get(20..)?),
        6 if packet[6] == 17 => (packet[0] << 4 | packet[1] >> 4, packet.get(40..)?),
        _ => return None,
    };
    (udp[2..4] == port.to_be_bytes()).then(|| (class, udp.len() - 8))
}

/// Sends datagrams of these classes through the tunnel, the last of which arrives. Returns the class of each as the
/// network of the second node shows it, and as it came out of that node's interface.
fn cross(tunnel: &Tunnel, to: IpAddr, classes: &[u8]) -> [Vec<u8>; 2] {
    let [from_space, to_space] = [0, 1].map(|place| &tunnel.node(place).host.space);
    let receiver = to_space.inside(|| UdpSocket::bind((to, INSIDE)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let [wire, out] = ["eth0", "wg0"].map(|interface| Listener::start(to_space, interface));
    let sender = from_space.inside(|| UdpSocket::bind((inner_of(to.is_ipv4()), 0)).unwrap()).unwrap();
    for (number, class) in classes.iter().enumerate() {
        let socket = SockRef::from(&sender);
        if to.is_ipv4() {
            socket.set_tos_v4(u32::from(*class))
        } else {
            socket.set_tclass_v6(u32::from(*class))
        }
        .unwrap();
        sender.send_to(&[number as u8; LEN], (to, INSIDE)).unwrap();
    }
    let mut datagram = [0; LEN];
    while usize::from(datagram[0]) + 1 < classes.len() {
        receiver.recv(&mut datagram).expect("the last one arrives");
    }
    // Several that were sent or received in one piece are shown as one.
    let each = |packets: Vec<Vec<u8>>, header: usize, port: u16, len: usize| -> Vec<u8> {
        let found = packets.iter().filter_map(|packet| class_of(&packet[header..], port));
        found.flat_map(|(class, payload)| std::iter::repeat_n(class, payload / len)).collect()
    };
    // The header of the packet inside, padding to 16 bytes, header and tag of the message.
    let sealed = (LEN + 8 + if to.is_ipv4() { 20 } else { 40 }).next_multiple_of(16) + 32;
    [each(wire.stop(), 14, PORT, sealed), each(out.stop(), 0, INSIDE, LEN)]
}

fn inner_of(is_v4: bool) -> IpAddr {
    inner(0)[usize::from(!is_v4)]
}

fn congested(tunnel: &Tunnel) -> u64 {
    let answer = request(tunnel.node(1), "get_drops=1\n\n");
    answer.lines().find_map(|line| line.strip_prefix("congested=")).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn congestion_notification_crosses_the_tunnel_and_marks_of_the_network_reach_the_packets() {
    let tunnel = Tunnel::new(&[Program::Wireloom; 2]);
    let receiving = &tunnel.node(1).host.space;
    for underlay in [Family::V4, Family::V6] {
        tunnel.set_endpoint(0, 1, underlay);
        tunnel.set_endpoint(1, 0, underlay);
        tunnel.settle();
        // In runs of two, as the device receives and sends them in one piece.
        let sent: Vec<u8> = (0..64).map(|number| EF | (number / 2 % 4)).collect();
        for to in inner(1) {
            let [wire, out] = cross(&tunnel, to, &sent);
            assert_eq!(wire, sent.iter().map(|class| class & 0b11).collect::<Vec<_>>(), "{to}, {underlay:?}");
            assert_eq!(out, sent, "{to}, {underlay:?}");
        }
        let marks = format!(
            "table inet test {{ chain marks {{\n type filter hook prerouting priority -300\n \
             udp dport {PORT} ip ecn set ce\n udp dport {PORT} ip6 ecn set ce\n }}\n }}\n"
        );
        receiving.feed("nft -f -", &marks).unwrap();
        for to in inner(1) {
            let before = congested(&tunnel);
            let [_, out] = cross(&tunnel, to, &sent);
            let able = sent.iter().filter(|class| **class & 0b11 != 0);
            assert_eq!(out, able.map(|_| EF | CE).collect::<Vec<_>>(), "{to}, {underlay:?}");
            // Other packets of the machine, such as neighbour discovery, may be dropped as well.
            assert!(congested(&tunnel) >= before + 16, "{to}, {underlay:?}");
        }
        receiving.run("nft delete table inet test").unwrap();
    }
}
