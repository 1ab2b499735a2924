//! What crosses the underlay, as an eavesdropper on its cables sees it.

use std::{
    io::{ErrorKind, IoSliceMut},
    mem,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use etherparse::{Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
        setsockopt, socket, sockopt,
    },
};

use super::{Error, Result, Space, mesh};

/// `PACKET_OUTGOING` of `include/uapi/linux/if_packet.h`: a second look at what came in by another cable.
const OUTGOING: u8 = 4;

/// Bytes; root of the machine gets them, others what `net.core.rmem_max` allows.
const BUFFER: usize = 64 << 20;

/// Milliseconds after which a listener looks whether its capture is over.
const POLL_MS: u8 = 100;

/// A packet on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Outermost source.
    pub source: IpAddr,
    /// Outermost destination.
    pub destination: IpAddr,
    /// What it carries.
    pub content: Content,
}

/// What a packet on the underlay carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A WireGuard message (the UDP port and the message's first four bytes say so).
    WireGuard {
        /// 1 initiation, 2 response, 3 cookie reply, 4 transport data.
        message: u8,
        /// Bytes of UDP payload.
        length: usize,
    },
    /// An ICMP or ICMPv6 echo request or reply.
    Echo {
        /// Identifier.
        id: u16,
    },
    /// UDP that is not WireGuard.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMPv6 of the link: neighbour and router discovery, group membership.
    Link,
    /// Anything else.
    Other,
}

/// An open capture: it sees what crosses the underlay from the moment that it is opened.
///
/// A thread empties the kernel's buffer all the while: for an ordinary user it is small.
#[derive(Debug)]
pub struct Capture(Arc<Ear>);

#[derive(Debug)]
struct Ear {
    socket: OwnedFd,
    heard: Mutex<Heard>,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Heard {
    packets: Vec<Packet>,
    trouble: Option<Error>,
}

impl Capture {
    /// Starts to capture in the underlay's namespace, on every cable.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open(underlay: &Space) -> Result<Self> {
        let socket = underlay.open("open a packet socket", || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
                .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
            setsockopt(&socket, sockopt::RxqOvfl, &1)?;
            Ok::<_, Errno>(socket)
        })?;
        let ear = Arc::new(Ear { socket, heard: Mutex::default(), over: AtomicBool::new(false) });
        let listener = Arc::clone(&ear);
        thread::spawn(move || listener.listen());
        Ok(Self(ear))
    }

    /// Every IP packet since the capture was opened or last drained.
    ///
    /// The kernel captures a packet before its receiver gets it: who drains after a reply has arrived
    /// sees the request and the reply.
    ///
    /// # Errors
    /// When the socket fails, or its buffer was too small for what came.
    pub fn drain(&self) -> Result<Vec<Packet>> {
        let mut heard = self.0.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.receive(&mut heard);
        match heard.trouble.take() {
            Some(trouble) => Err(trouble),
            None => Ok(mem::take(&mut heard.packets)),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Ear {
    fn listen(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut sockets, PollTimeout::from(POLL_MS));
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            self.receive(&mut heard);
        }
    }

    /// Takes all that the kernel has by now.
    fn receive(&self, heard: &mut Heard) {
        let mut frame = vec![0; 1 << 16];
        loop {
            match self.receive_one(&mut frame) {
                Ok(packet) => heard.packets.extend(packet),
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => return,
                Err(trouble) => {
                    heard.trouble = Some(trouble);
                    return;
                }
            }
        }
    }

    /// `None` for what is of no interest.
    fn receive_one(&self, frame: &mut [u8]) -> Result<Option<Packet>> {
        let mut notes = cmsg_space!(u32);
        let mut buffer = [IoSliceMut::new(frame)];
        let flags = MsgFlags::empty();
        let message = match recvmsg::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer, Some(&mut notes), flags)
        {
            Ok(message) => message,
            // A cable went: the packets stay.
            Err(Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(Error::io("read the capture")(error)),
        };
        for note in message.cmsgs().map_err(Error::io("read the capture"))? {
            if let ControlMessageOwned::RxqOvfl(packets) = note {
                return Err(Error::Overflow { packets });
            }
        }
        let outgoing = message.address.is_some_and(|from| from.pkttype() == OUTGOING);
        let length = message.bytes;
        Ok(if outgoing { None } else { parse(&frame[..length]) })
    }
}

/// `None` for what is not IP (ARP).
fn parse(frame: &[u8]) -> Option<Packet> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination): (IpAddr, IpAddr) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        LaxNetSlice::Arp(_) => return None,
    };
    let content = match packet.transport {
        Some(TransportSlice::Udp(udp)) => wireguard(udp.source_port(), udp.destination_port(), udp.payload())
            .unwrap_or(Content::Udp { source: udp.source_port(), destination: udp.destination_port() }),
        Some(TransportSlice::Tcp(tcp)) => {
            Content::Tcp { source: tcp.source_port(), destination: tcp.destination_port() }
        }
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => Content::Echo { id: echo.id },
            _ => Content::Other,
        },
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => Content::Echo { id: echo.id },
            _ if is_of_the_link(icmp.type_u8()) => Content::Link,
            _ => Content::Other,
        },
        _ => Content::Other,
    };
    Some(Packet { source, destination, content })
}

/// WireGuard messages start with their type and three zero bytes.
fn wireguard(source: u16, destination: u16, payload: &[u8]) -> Option<Content> {
    match payload {
        [message @ 1..=4, 0, 0, 0, ..] if source == mesh::PORT || destination == mesh::PORT => {
            Some(Content::WireGuard { message: *message, length: payload.len() })
        }
        _ => None,
    }
}

/// Multicast listener discovery (RFC 2710, RFC 3810) and neighbour discovery (RFC 4861).
fn is_of_the_link(icmpv6_type: u8) -> bool {
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
    fn wireguard_is_known_by_port_and_first_bytes() {
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
    fn cut_frames_are_no_trouble() {
        let whole = frame(51820, &[4; 100]);
        for length in 0..whole.len() {
            let _ = parse(&whole[..length]);
        }
    }
}
