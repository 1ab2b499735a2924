//! Congestion notification (RFC 6040): what the wire shows of it, and what becomes of the marks of a network.

use std::net::{IpAddr, UdpSocket};

use socket2::SockRef;
use wireloom_lab::{PATIENCE, until};
use wireloom_plan::routing::Family;

use crate::fixtures::{
    device::request,
    frames::Listener,
    transfer::uninterrupted,
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

/// The type of service or traffic class of an IP packet to this UDP port, and the UDP payload.
fn class_of(packet: &[u8], port: u16) -> Option<(u8, &[u8])> {
    let (class, udp) = match packet.first()? >> 4 {
        4 if packet[9] == 17 => (packet[1], packet.get(20..)?),
        6 if packet[6] == 17 => (packet[0] << 4 | packet[1] >> 4, packet.get(40..)?),
        _ => return None,
    };
    (udp[2..4] == port.to_be_bytes()).then(|| (class, &udp[8..]))
}

/// Sends datagrams of these classes through the tunnel, of which so many arrive. Returns the class of each as the
/// network of the second node shows it, and number and class of each that came out of that node's interface. Both are
/// in the order in which they were sent: they may change places where the sender changes processors.
fn cross(tunnel: &Tunnel, to: IpAddr, classes: &[u8], arrive: usize) -> (Vec<u8>, Vec<(u8, u8)>) {
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
    for _ in 0..arrive {
        uninterrupted(|| receiver.recv(&mut [0; LEN])).expect("all of them arrive");
    }
    // The header of the packet inside, padding to 16 bytes, header and tag of the message.
    let sealed = (LEN + 8 + if to.is_ipv4() { 20 } else { 40 }).next_multiple_of(16) + 32;
    // Several that were sent or received in one piece are shown as one.
    let wire = wire.stop();
    let wire = wire.iter().filter_map(|packet| class_of(&packet[14..], PORT));
    // The counter is in the bytes from the ninth on.
    let counter = |message: &[u8]| u64::from_le_bytes(message[8..16].try_into().unwrap());
    let mut wire: Vec<_> = wire
        .flat_map(|(class, payload)| payload.chunks_exact(sealed).map(move |each| (counter(each), class)))
        .collect();
    wire.sort_unstable();
    let wire = wire.into_iter().map(|(_, class)| class).collect();
    let out = out.stop();
    let out = out.iter().filter_map(|packet| class_of(packet, INSIDE));
    let mut out: Vec<_> =
        out.flat_map(|(class, payload)| payload.chunks(LEN).map(move |each| (each[0], class))).collect();
    out.sort_unstable();
    (wire, out)
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
            let (wire, out) = cross(&tunnel, to, &sent, sent.len());
            assert_eq!(wire, sent.iter().map(|class| class & 0b11).collect::<Vec<_>>(), "{to}, {underlay:?}");
            assert_eq!(out, (0..).zip(sent.clone()).collect::<Vec<_>>(), "{to}, {underlay:?}");
        }
        let marks = format!(
            "table inet test {{ chain marks {{\n type filter hook prerouting priority -300\n \
             udp dport {PORT} ip ecn set ce\n udp dport {PORT} ip6 ecn set ce\n }}\n }}\n"
        );
        receiving.feed("nft -f -", &marks).unwrap();
        for to in inner(1) {
            let before = congested(&tunnel);
            let able = (0..).zip(&sent).filter(|(_, class)| **class & 0b11 != 0);
            let able: Vec<(u8, u8)> = able.map(|(number, _)| (number, EF | CE)).collect();
            let (_, out) = cross(&tunnel, to, &sent, able.len());
            assert_eq!(out, able, "{to}, {underlay:?}");
            // Other packets of the machine, such as neighbour discovery, may be dropped as well.
            let counted = || (congested(&tunnel) >= before + 16).then_some(());
            until(PATIENCE, &format!("drops to be counted, {to}, {underlay:?}"), counted).unwrap();
        }
        receiving.run("nft delete table inet test").unwrap();
    }
}
