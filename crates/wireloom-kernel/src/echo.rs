//! Echo requests through our interface, of any length up to its MTU.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
};

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, Socket, Type};
use wireloom_plan::paths::Echo;
use wireloom_types::path_probe::{DATA, HEADER};

/// Bytes of the IP headers.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// How many messages are read at a time: whoever floods the interface with ICMP gets no more of our time.
const READS: usize = 1000;

/// Sends echo requests out of our interface, and receives the replies.
#[derive(Debug)]
pub struct Echoes {
    interface: String,
    /// The ICMP identifier.
    id: u16,
    /// One for each address of ours.
    sockets: BTreeMap<IpAddr, UdpSocket>,
}

impl Echoes {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(interface: &str, id: u16) -> Self {
        Self { interface: interface.to_owned(), id, sockets: BTreeMap::new() }
    }

    /// Sends requests. One that the kernel refuses, for want of a route for instance, counts as lost.
    ///
    /// # Errors
    /// A socket cannot be opened: it takes CAP_NET_RAW.
    pub fn send(&mut self, echoes: &[Echo]) -> io::Result<()> {
        for echo in echoes {
            if !self.sockets.contains_key(&echo.from) {
                match open(&self.interface, echo.from) {
                    Ok(socket) => drop(self.sockets.insert(echo.from, socket)),
                    // Our interface or our address is gone.
                    Err(error) if error.kind() != ErrorKind::PermissionDenied => continue,
                    Err(error) => return Err(error),
                }
            }
            let socket = &self.sockets[&echo.from];
            // A full queue is a loss like any other.
            let _ = socket.send_to(&request(echo, self.id), SocketAddr::new(echo.to, 0));
        }
        Ok(())
    }

    /// The replies that have arrived: from where, and the length of the whole packet in bytes.
    pub fn replies(&mut self) -> Vec<(IpAddr, u32)> {
        let id = self.id;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let mut replies = Vec::new();
        for socket in self.sockets.values() {
            for _ in 0..READS {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) => replies.extend(reply(&buffer[..length], from.ip(), id)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => {}
                }
            }
        }
        replies
    }

    /// Closes the sockets, until something is sent again: they receive all ICMP messages that come by our interface.
    pub fn close(&mut self) {
        self.sockets.clear();
    }
}

/// A socket on which the MTUs of routes do not count (`IP_PMTUDISC_PROBE` of ip(7)): a packet as long as the
/// interface's MTU leaves in one piece.
fn open(interface: &str, from: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match from {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    match from {
        IpAddr::V4(_) => set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    // Its calls are those that raw sockets have, too.
    Ok(socket.into())
}

/// The ICMP message. The kernel adds the IP header, and with IPv6 the checksum (RFC 3542, section 3.1).
fn request(echo: &Echo, id: u16) -> Vec<u8> {
    let (header, kind) = if echo.to.is_ipv4() { (IPV4_HEADER, 8_u8) } else { (IPV6_HEADER, 128) };
    let length = (echo.length as usize).saturating_sub(header).max(HEADER + DATA.len());
    let mut message = vec![0; length];
    message[0] = kind;
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[HEADER..][..DATA.len()].copy_from_slice(&DATA);
    if echo.to.is_ipv4() {
        // RFC 1071; the rest is zero.
        let words = message[..HEADER + DATA.len()].chunks_exact(2);
        let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        message[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    }
    message
}

/// From where a reply to a request of ours is, and how long. A raw socket delivers IPv4 with the IP header, ICMPv6
/// without it (raw(7), RFC 3542 section 3).
pub(crate) fn reply(received: &[u8], from: IpAddr, id: u16) -> Option<(IpAddr, u32)> {
    let (message, kind, length) = match from {
        IpAddr::V4(_) => {
            let header = usize::from(received.first()? & 0xf) * 4;
            (received.get(header..)?, 0, received.len())
        }
        IpAddr::V6(_) => (received, 129, IPV6_HEADER + received.len()),
    };
    let ours = message.len() >= HEADER && message[0] == kind && message[4..6] == id.to_be_bytes();
    ours.then(|| Some((from, u32::try_from(length).ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(to: &str, length: u32) -> Echo {
        let to: IpAddr = to.parse().unwrap();
        Echo { from: to, to, length }
    }

    #[test]
    fn a_request_has_its_length_and_its_checksum() {
        for id in [0, 0x1234, 0xf7ff, 0xf800, 0xffff] {
            let message = request(&echo("192.0.2.1", 129), id);
            assert_eq!(message.len(), 109);
            let words =
                message.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
            let sum: u32 = words.sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "{id:#x}");
        }
        assert_eq!(request(&echo("2001:db8::1", 1280), 7).len(), 1240);
    }

    #[test]
    fn only_replies_to_our_requests_count() {
        let from: IpAddr = "192.0.2.1".parse().unwrap();
        let mut packet = vec![0; 60];
        packet[0] = 0x46;
        packet[28..30].copy_from_slice(&7_u16.to_be_bytes());
        assert_eq!(reply(&packet, from, 7), Some((from, 60)));
        assert_eq!(reply(&packet, from, 8), None);
        packet[24] = 8;
        assert_eq!(reply(&packet, from, 7), None, "a request");
        for length in 0..32 {
            assert_eq!(reply(&vec![0x46; length], from, 7), None);
        }
        let from: IpAddr = "2001:db8::1".parse().unwrap();
        let message = [129, 0, 0, 0, 0, 7, 0, 0, 0];
        assert_eq!(reply(&message, from, 7), Some((from, 49)));
        assert_eq!(reply(&message[..7], from, 7), None);
    }

    /// Root only: raw sockets.
    #[test]
    fn echoes_of_every_length_come_back_over_the_loopback() {
        let mut echoes = Echoes::new("lo", 0x5717);
        let sent = [echo("127.0.0.1", 128), echo("127.0.0.1", 1420), echo("::1", 1280)];
        match echoes.send(&sent) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
            sent => sent.unwrap(),
        }
        // Over the loopback they are there when the call returns.
        let mut lengths: Vec<u32> = echoes.replies().into_iter().map(|(_, length)| length).collect();
        lengths.sort_unstable();
        assert!(lengths == [128, 1280, 1420] || lengths == [128, 1420], "{lengths:?}");
        echoes.close();
        assert_eq!(echoes.replies(), []);
    }
}
