//! One exchange between two places, and what the underlay saw of it.
//!
//! Encrypted packets do not tell whose they are, except by their length: every probe has a length that
//! no other packet has at that time, and an identifier (or port) of its own for when it is plaintext.

use std::{
    fmt,
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type, LaxSlicedPacket,
    TransportSlice,
};
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use wireloom_plan::routing::Family;

use super::{Capture, Content, Error, Packet, Place, Result, Space, at_this_pace};

/// What an exchange is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// ICMP echo: request and reply.
    Ping,
    /// A datagram to a port that is listened on, and its return.
    Udp,
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Cell {
    /// The reply came back.
    pub reachable: bool,
    /// What the underlay saw.
    pub wire: Wire,
}

/// What the underlay saw of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// WireGuard data of its length, and nothing in plaintext.
    Encrypted,
    /// Plaintext only.
    Direct,
    /// No trace.
    Nothing,
    /// One way encrypted, the other in plaintext.
    Both,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Encrypted => "encrypted",
            Self::Direct => "direct",
            Self::Nothing => "nothing",
            Self::Both => "half encrypted",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reachable = if self.reachable { "reachable" } else { "unreachable" };
        write!(f, "{reachable}, {}", self.wire)
    }
}

/// Requests until a place counts as unreachable: a busy machine may take seconds for a reply.
const ATTEMPTS: u32 = 6;
/// Bytes; root of the machine gets them, others what `net.core.rmem_max` allows.
const BUFFER: usize = 8 << 20;
/// For the reply to one request.
const REPLY_TIME: Duration = Duration::from_millis(300);

/// Makes one exchange and tells what became of it.
///
/// # Errors
/// When a socket cannot be had; an unreachable destination is a result.
pub fn probe(underlay: &Space, from: &Place, to: &Place, family: Family, exchange: Exchange) -> Result<Cell> {
    let capture = Capture::open(underlay)?;
    let mark = Mark::several(1).next().expect("one was asked for");
    let reachable = attempt(mark, from, to, family, exchange)?;
    Ok(mark.cell(reachable, &capture.drain()?))
}

/// Makes one exchange, while the caller captures: is the destination reachable?
pub(crate) fn attempt(
    mark: Mark,
    from: &Place,
    to: &Place,
    family: Family,
    exchange: Exchange,
) -> Result<bool> {
    let (source, target) = (&from.space, to.addresses.of(family));
    match exchange {
        Exchange::Ping => {
            let ping = Ping::open(source, target, mark.id)?;
            try_often(|n| {
                ping.send(n, mark.payload(family))?;
                Ok(ping.reply(Instant::now() + at_this_pace(REPLY_TIME))?.is_some())
            })
        }
        Exchange::Udp => {
            let bind = |space: &Space, address: IpAddr, port| {
                space.open("bind a UDP socket", || {
                    let socket = UdpSocket::bind((address, port))?;
                    socket.set_read_timeout(Some(at_this_pace(REPLY_TIME)))?;
                    // An interface whose device has stopped holds on to what it was given, until no more fits.
                    socket.set_write_timeout(Some(at_this_pace(REPLY_TIME)))?;
                    Ok::<_, std::io::Error>(socket)
                })
            };
            let server = bind(&to.space, target, mark.port())?;
            let client = bind(source, from.addresses.of(family), mark.port())?;
            let payload = vec![mark.id as u8; mark.payload(family)];
            let to = SocketAddr::new(target, mark.port());
            try_often(|_| {
                // Refused by a route: as good as lost.
                if client.send_to(&payload, to).is_err() {
                    return Ok(false);
                }
                let mut buffer = [0; 2048];
                let Ok((length, from)) = server.recv_from(&mut buffer) else { return Ok(false) };
                Ok(server.send_to(&buffer[..length], from).is_ok() && client.recv(&mut buffer).is_ok())
            })
        }
    }
}

fn try_often(mut attempt: impl FnMut(u16) -> Result<bool>) -> Result<bool> {
    for n in 0..ATTEMPTS {
        if attempt(n as u16)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many probes can be told apart at a time.
pub(crate) const LENGTHS: usize = 56;

/// What a probe is known by on the underlay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// ICMP identifier; also makes the UDP port.
    id: u16,
}

impl Mark {
    /// Identifiers before one comes again; a multiple of [`LENGTHS`], so that neighbours never share one.
    const IDENTIFIERS: usize = 357 * LENGTHS;

    /// Marks that can be told apart while they are all in use: at most [`LENGTHS`].
    pub(crate) fn several(count: usize) -> impl Iterator<Item = Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        debug_assert!(count <= LENGTHS, "more marks than lengths");
        let first = NEXT.fetch_add(count, Ordering::Relaxed);
        (first..first + count).map(|n| Self { id: (n % Self::IDENTIFIERS) as u16 })
    }

    /// What became of the exchange, given all that crossed the underlay meanwhile.
    pub(crate) fn cell(self, reachable: bool, packets: &[Packet]) -> Cell {
        let direct = packets.iter().any(|packet| self.is_on(&packet.content));
        let encrypted = packets.iter().any(|packet| self.is_within(&packet.content));
        let wire = match (encrypted, direct) {
            (true, true) => Wire::Both,
            (true, false) => Wire::Encrypted,
            (false, true) => Wire::Direct,
            (false, false) => Wire::Nothing,
        };
        Cell { reachable, wire }
    }

    /// Bytes of the inner packet: multiples of 16, which WireGuard's padding leaves as they are, from
    /// 320 to 1,200 (longer than handshakes and keepalives, shorter than every MTU).
    fn inner(self) -> usize {
        16 * (20 + usize::from(self.id) % LENGTHS)
    }

    /// ICMP echo and UDP have headers of the same length.
    fn payload(self, family: Family) -> usize {
        const HEADER: usize = 8;
        self.inner() - HEADER - if family == Family::V4 { 20 } else { 40 }
    }

    fn port(self) -> u16 {
        10_000 + self.id
    }

    /// In plaintext?
    fn is_on(self, content: &Content) -> bool {
        match content {
            Content::Echo { id } => *id == self.id,
            Content::Udp { source, destination } => *source == self.port() && *destination == self.port(),
            _ => false,
        }
    }

    /// As the content of a WireGuard data message? Its header has 16 bytes, its tag 16.
    fn is_within(self, content: &Content) -> bool {
        *content == Content::WireGuard { message: 4, length: 16 + self.inner() + 16 }
    }
}

/// A raw socket that sends echo requests and gets their replies.
#[derive(Debug)]
pub(crate) struct Ping {
    socket: Socket,
    target: IpAddr,
    id: u16,
}

impl Ping {
    pub(crate) fn open(from: &Space, target: IpAddr, id: u16) -> Result<Self> {
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = from.open("open an ICMP socket", || Socket::new(domain, Type::RAW, Some(protocol)))?;
        // An interface whose device has stopped holds on to what it was given, until no more fits.
        socket.set_write_timeout(Some(at_this_pace(REPLY_TIME))).map_err(Error::io("set a timeout"))?;
        // A raw socket gets the answers to everybody's requests in its network, and after a stall all of them at
        // once: what does not fit would be lost, and counted nowhere but at the socket.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))
            .map_err(Error::io("enlarge a buffer"))?;
        Ok(Self { socket, target, id })
    }

    /// Sends a request. A refusal (an unreachable route, say) is as good as a lost packet.
    pub(crate) fn send(&self, seq: u16, payload: usize) -> Result<()> {
        let echo = IcmpEchoHeader { id: self.id, seq };
        let payload = vec![0x77; payload];
        let mut message = match self.target {
            IpAddr::V4(_) => {
                Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &payload).to_bytes().to_vec()
            }
            // The kernel computes the checksum of ICMPv6 (RFC 3542, section 3.1).
            IpAddr::V6(_) => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
        };
        message.extend(payload);
        let _ = self.socket.send_to(&message, &SocketAddr::new(self.target, 0).into());
        Ok(())
    }

    /// The next reply's sequence number; `None` when there is none until the deadline.
    pub(crate) fn reply(&self, deadline: Instant) -> Result<Option<u16>> {
        let mut buffer = [0; 2048];
        loop {
            // A timeout of zero would be for ever.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            self.socket.set_read_timeout(Some(left)).map_err(Error::io("set a timeout"))?;
            match (&self.socket).read(&mut buffer) {
                Ok(length) => match self.parse(&buffer[..length]) {
                    Some(IcmpEchoHeader { id, seq }) if id == self.id => return Ok(Some(seq)),
                    _ => {}
                },
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("receive on an ICMP socket")(error)),
            }
        }
    }

    /// A raw socket gives IPv4 with its header, ICMPv6 without.
    fn parse(&self, packet: &[u8]) -> Option<IcmpEchoHeader> {
        match self.target {
            IpAddr::V4(_) => match LaxSlicedPacket::from_ip(packet).ok()?.transport? {
                TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
                    Icmpv4Type::EchoReply(echo) => Some(echo),
                    _ => None,
                },
                _ => None,
            },
            IpAddr::V6(_) => match Icmpv6Slice::from_slice(packet).ok()?.icmp_type() {
                Icmpv6Type::EchoReply(echo) => Some(echo),
                _ => None,
            },
        }
    }
}
