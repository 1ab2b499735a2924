//! A capture of the underlay: what an eavesdropper on its cables sees.

use std::{
    mem,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use etherparse::{Icmpv4Type, Icmpv6Type, Ipv6Header, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use super::packet_socket::PacketSocket;
use crate::{Error, Result, Space, mesh};

/// The UDP port of VXLAN (RFC 7348, section 5).
const VXLAN_PORT: u16 = 4789;

/// Bytes of a VXLAN header (RFC 7348, section 5).
const VXLAN_HEADER: usize = 8;

/// The flag of a VXLAN header that says that it has a network identifier: the only one that may be set.
const VXLAN_FLAGS: u8 = 0x08;

/// A packet on the underlay. VXLAN hides nothing, so a VXLAN datagram is shown as the packet inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The source in the IP header.
    pub source: IpAddr,
    /// The destination in the IP header.
    pub destination: IpAddr,
    /// The length of the packet in bytes, IP header included.
    pub length: usize,
    /// The payload of the IP header.
    pub content: Content,
}

/// What a packet on the underlay carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A WireGuard message, recognised by its UDP port ([`mesh::PORT`]) and its first four bytes.
    WireGuard {
        /// The message type: 1 initiation, 2 response, 3 cookie reply, 4 transport data.
        message: u8,
        /// The length of the UDP payload, in bytes.
        length: usize,
    },
    /// An ICMP or ICMPv6 echo request or reply.
    Echo {
        /// The identifier.
        id: u16,
    },
    /// A UDP datagram that is not WireGuard.
    Udp {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
    },
    /// A TCP segment.
    Tcp {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
    },
    /// An ICMP or ICMPv6 error.
    Error {
        /// The packet that it quotes, as much of it as there is.
        about: Box<Packet>,
    },
    /// ICMPv6 that never leaves the link: neighbour and router discovery, multicast listener discovery.
    Link,
    /// Any other IP packet.
    Other,
}

/// An open capture of the underlay.
///
/// A thread empties the socket's buffer continuously, because an ordinary user's buffer is small.
#[derive(Debug)]
pub struct Capture(Arc<Listener>);

#[derive(Debug)]
struct Listener {
    socket: PacketSocket,
    captured: Mutex<Captured>,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Captured {
    packets: Vec<Packet>,
    error: Option<Error>,
}

impl Capture {
    /// Starts to capture in the underlay's namespace ([`Lab::underlay`](crate::Lab::underlay)), on every cable.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses the socket.
    pub fn open(underlay: &Space) -> Result<Self> {
        let socket = PacketSocket::open(underlay)?;
        let listener =
            Arc::new(Listener { socket, captured: Mutex::default(), over: AtomicBool::new(false) });
        let thread = Arc::clone(&listener);
        thread::spawn(move || thread.listen());
        Ok(Self(listener))
    }

    /// Every IP packet since the capture was opened or last drained.
    ///
    /// The kernel captures a packet before it delivers it, so a drain after a reply has arrived returns both the
    /// request and the reply.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket fails; [`Error::Overflow`] when its buffer was too small.
    pub fn drain(&self) -> Result<Vec<Packet>> {
        let mut captured = self.0.captured.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.receive(&mut captured);
        match captured.error.take() {
            Some(error) => Err(error),
            None => Ok(mem::take(&mut captured.packets)),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Listener {
    fn listen(&self) {
        while !self.over.load(Ordering::Relaxed) {
            self.socket.wait();
            let mut captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
            self.receive(&mut captured);
        }
    }

    /// Empties the socket's buffer.
    fn receive(&self, captured: &mut Captured) {
        let Captured { packets, error } = captured;
        let mut frame = vec![0; 1 << 16];
        if let Err(failure) = self.socket.receive(&mut frame, |frame| packets.extend(parse(frame))) {
            *error = Some(failure);
        }
    }
}

/// The IP packet in an Ethernet frame, inside VXLAN if there is any; `None` for ARP and other protocols.
fn parse(frame: &[u8]) -> Option<Packet> {
    read(&LaxSlicedPacket::from_ethernet(frame).ok()?)
}

fn read(packet: &LaxSlicedPacket<'_>) -> Option<Packet> {
    let (source, destination, length): (IpAddr, IpAddr, usize) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.total_len().into())
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let length = Ipv6Header::LEN + usize::from(header.payload_length());
            (header.source_addr().into(), header.destination_addr().into(), length)
        }
        LaxNetSlice::Arp(_) => return None,
    };
    if let Some(TransportSlice::Udp(udp)) = &packet.transport
        && let Some(inner) = vxlan(udp.destination_port(), udp.payload())
    {
        return parse(inner);
    }
    let content = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => wireguard(udp.source_port(), udp.destination_port(), udp.payload())
            .unwrap_or(Content::Udp { source: udp.source_port(), destination: udp.destination_port() }),
        Some(TransportSlice::Tcp(tcp)) => {
            Content::Tcp { source: tcp.source_port(), destination: tcp.destination_port() }
        }
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => Content::Echo { id: echo.id },
            _ if is_error_v4(icmp.type_u8()) => error(icmp.payload()),
            _ => Content::Other,
        },
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => Content::Echo { id: echo.id },
            _ if stays_on_the_link(icmp.type_u8()) => Content::Link,
            _ if is_error_v6(icmp.type_u8()) => error(icmp.payload()),
            _ => Content::Other,
        },
        _ => Content::Other,
    };
    Some(Packet { source, destination, length, content })
}

/// An ICMP error whose payload is this.
fn error(quoted: &[u8]) -> Content {
    let about = LaxSlicedPacket::from_ip(quoted).ok().and_then(|packet| read(&packet));
    about.map_or(Content::Other, |about| Content::Error { about: Box::new(about) })
}

/// Whether it quotes a packet: unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
fn is_error_v4(icmp_type: u8) -> bool {
    matches!(icmp_type, 3..=5 | 11 | 12)
}

/// Whether it quotes a packet (RFC 4443, section 2.1).
fn is_error_v6(icmpv6_type: u8) -> bool {
    icmpv6_type < 128
}

/// The Ethernet frame in a VXLAN datagram.
fn vxlan(destination: u16, payload: &[u8]) -> Option<&[u8]> {
    match payload {
        [VXLAN_FLAGS, ..] if destination == VXLAN_PORT => payload.get(VXLAN_HEADER..),
        _ => None,
    }
}

/// The WireGuard message in a UDP datagram: it starts with its type and three zero bytes.
fn wireguard(source: u16, destination: u16, payload: &[u8]) -> Option<Content> {
    match payload {
        [message @ 1..=4, 0, 0, 0, ..] if source == mesh::PORT || destination == mesh::PORT => {
            Some(Content::WireGuard { message: *message, length: payload.len() })
        }
        _ => None,
    }
}

/// Whether it is multicast listener discovery (RFC 2710, RFC 3810) or neighbour discovery (RFC 4861).
fn stays_on_the_link(icmpv6_type: u8) -> bool {
    matches!(icmpv6_type, 130..=137 | 143)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(port: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 1, 1], [192, 168, 1, 2], 64)
            .udp(40000, port)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    fn content(frame: &[u8]) -> Option<Content> {
        parse(frame).map(|packet| packet.content)
    }

    #[test]
    fn wireguard_is_recognised_by_port_and_first_bytes() {
        let data = [&[4, 0, 0, 0][..], &[9; 60]].concat();
        assert_eq!(content(&frame(51820, &data)), Some(Content::WireGuard { message: 4, length: 64 }));
        let plain = |port| Some(Content::Udp { source: 40000, destination: port });
        assert_eq!(content(&frame(53, &data)), plain(53));
        assert_eq!(content(&frame(51820, b"GET / HTTP/1.1")), plain(51820));
        assert_eq!(content(&frame(51820, &[5, 0, 0, 0, 1])), plain(51820));
    }

    #[test]
    fn echo_and_neighbour_discovery_are_told_apart() {
        let v6 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        let mut echo = Vec::new();
        v6().icmpv6_echo_request(7, 1).write(&mut echo, b"ping").unwrap();
        assert_eq!(content(&echo), Some(Content::Echo { id: 7 }));
        let mut solicitation = Vec::new();
        v6().icmpv6_raw(135, 0, [0; 4]).write(&mut solicitation, &[0; 16]).unwrap();
        assert_eq!(content(&solicitation), Some(Content::Link));
    }

    #[test]
    fn vxlan_is_shown_as_the_packet_inside_it() {
        let mut inner = Vec::new();
        PacketBuilder::ethernet2([6; 6], [8; 6])
            .ipv6([1; 16], [2; 16], 64)
            .tcp(40000, 8080, 0, 1024)
            .write(&mut inner, b"request")
            .unwrap();
        // The I flag, and network identifier 1.
        let header = [0x08, 0, 0, 0, 0, 0, 1, 0];
        let packet = parse(&frame(4789, &[&header[..], &inner].concat())).unwrap();
        assert_eq!(packet.source, IpAddr::from([1; 16]));
        assert_eq!(packet.destination, IpAddr::from([2; 16]));
        assert_eq!(packet.length, 40 + 20 + 7);
        assert_eq!(packet.content, Content::Tcp { source: 40000, destination: 8080 });

        // Another port, and a datagram that is not VXLAN.
        let plain = |port| Some(Content::Udp { source: 40000, destination: port });
        assert_eq!(content(&frame(53, &[&header[..], &inner].concat())), plain(53));
        assert_eq!(content(&frame(4789, b"hello")), plain(4789));
    }

    /// An error from a node about a packet between pods.
    fn error_about(quoted: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 1, 2], [10, 161, 1, 2], 64)
            .icmpv4_raw(3, 4, [0, 0, 5, 20])
            .write(&mut bytes, quoted)
            .unwrap();
        bytes
    }

    #[test]
    fn an_error_shows_the_packet_that_it_quotes() {
        let mut quoted = Vec::new();
        PacketBuilder::ipv4([10, 161, 1, 2], [10, 161, 2, 2], 64)
            .udp(40000, 53)
            .write(&mut quoted, &[7; 1000])
            .unwrap();
        for length in [28, 548, quoted.len()] {
            let packet = parse(&error_about(&quoted[..length])).unwrap();
            let Content::Error { about } = packet.content else { panic!("{packet:?}") };
            assert_eq!(about.source, IpAddr::from([10, 161, 1, 2]));
            assert_eq!(about.destination, IpAddr::from([10, 161, 2, 2]));
            assert_eq!(about.content, Content::Udp { source: 40000, destination: 53 });
        }
        assert_eq!(content(&error_about(&[])), Some(Content::Other));
    }

    #[test]
    fn truncated_frames_do_not_panic() {
        let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &frame(51820, &[4; 100])].concat();
        let error = error_about(&frame(51820, &[4; 100])[14..]);
        for whole in [frame(51820, &[4; 100]), frame(4789, &vxlan), error] {
            for length in 0..whole.len() {
                let _ = parse(&whole[..length]);
            }
        }
    }
}
