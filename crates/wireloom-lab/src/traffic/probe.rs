//! One exchange between two places, and what the underlay saw of it.
//!
//! An encrypted packet is recognised by its length alone, so every probe has a length that no other packet has at
//! that time. In plaintext a probe is recognised by its ICMP identifier or UDP port.

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

use crate::{Capture, Content, Error, Packet, Place, Result, Space, at_this_pace};

/// The protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// An ICMP echo request and its reply.
    Ping,
    /// A UDP datagram and its echo.
    Udp,
}

/// The outcome of a probe: one cell of the [`Matrix`](crate::Matrix).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Cell {
    /// Whether the reply came back.
    pub reachable: bool,
    /// What the underlay saw.
    pub wire: Wire,
}

/// What the underlay saw of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// WireGuard data messages of the probe's length, and nothing in plaintext.
    Encrypted,
    /// Plaintext only.
    Direct,
    /// No trace of the probe.
    Nothing,
    /// WireGuard data messages of the probe's length and plaintext: one for each way.
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

/// How many requests without a reply make a place unreachable: a reply may take seconds on a busy machine.
const ATTEMPTS: u16 = 6;
/// Bytes of a raw socket's receive buffer. Root of the machine gets all of them, other users what
/// `net.core.rmem_max` allows.
const BUFFER: usize = 8 << 20;
/// How long to wait for the reply to one request.
const REPLY_TIME: Duration = Duration::from_millis(300);

/// Makes one exchange and captures the underlay meanwhile. An unreachable destination is a result, not an error.
///
/// # Errors
/// [`Error::Io`] when a socket cannot be opened; [`Error::Overflow`] when the capture lost packets.
pub fn probe(underlay: &Space, from: &Place, to: &Place, family: Family, exchange: Exchange) -> Result<Cell> {
    let capture = Capture::open(underlay)?;
    let mark = Mark::several(1).next().expect("one was asked for");
    let reachable = attempt(mark, from, to, family, exchange)?;
    Ok(mark.cell(reachable, &capture.drain()?))
}

/// Makes one exchange while the caller captures, and says whether the reply came back.
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
            any_attempt(|n| {
                ping.send(n, mark.payload(family))?;
                Ok(ping.reply(Instant::now() + at_this_pace(REPLY_TIME))?.is_some())
            })
        }
        Exchange::Udp => {
            let bind = |space: &Space, address: IpAddr, port| {
                space.open("bind a UDP socket", || {
                    let socket = UdpSocket::bind((address, port))?;
                    socket.set_read_timeout(Some(at_this_pace(REPLY_TIME)))?;
                    // Sending blocks when an interface whose device has stopped holds as many packets as it can.
                    socket.set_write_timeout(Some(at_this_pace(REPLY_TIME)))?;
                    Ok::<_, std::io::Error>(socket)
                })
            };
            let server = bind(&to.space, target, mark.port())?;
            let client = bind(source, from.addresses.of(family), mark.port())?;
            let payload = vec![mark.id as u8; mark.payload(family)];
            let to = SocketAddr::new(target, mark.port());
            any_attempt(|_| {
                // A send that a route refuses counts as lost.
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

/// Whether one of [`ATTEMPTS`] attempts succeeds; `attempt` gets their numbers, from 0.
fn any_attempt(mut attempt: impl FnMut(u16) -> Result<bool>) -> Result<bool> {
    for n in 0..ATTEMPTS {
        if attempt(n)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many probes can be told apart at a time: as many as there are lengths.
pub(crate) const LENGTHS: usize = 56;

/// What a probe is recognised by on the underlay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// The ICMP identifier; the length and the UDP port derive from it.
    id: u16,
}

impl Mark {
    /// How many identifiers there are before they repeat: a multiple of [`LENGTHS`], so that [`LENGTHS`] identifiers
    /// in a row have different lengths, even where they wrap around.
    const IDENTIFIERS: usize = 357 * LENGTHS;

    /// At most [`LENGTHS`] marks, which can be told apart while all of them are in use.
    pub(crate) fn several(count: usize) -> impl Iterator<Item = Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        debug_assert!(count <= LENGTHS, "more marks than lengths");
        let first = NEXT.fetch_add(count, Ordering::Relaxed);
        (first..first + count).map(|n| Self { id: (n % Self::IDENTIFIERS) as u16 })
    }

    /// The outcome of the probe, from everything that crossed the underlay meanwhile.
    pub(crate) fn cell(self, reachable: bool, packets: &[Packet]) -> Cell {
        let direct = packets.iter().any(|packet| self.is_plaintext_in(&packet.content));
        let encrypted = packets.iter().any(|packet| self.is_encrypted_in(&packet.content));
        let wire = match (encrypted, direct) {
            (true, true) => Wire::Both,
            (true, false) => Wire::Encrypted,
            (false, true) => Wire::Direct,
            (false, false) => Wire::Nothing,
        };
        Cell { reachable, wire }
    }

    /// The length of the inner packet in bytes, from 320 to 1,200: longer than handshakes and keepalives, shorter
    /// than every MTU. It is a multiple of 16, so WireGuard adds no padding.
    fn inner(self) -> usize {
        16 * (20 + usize::from(self.id) % LENGTHS)
    }

    /// The length of the payload in bytes; ICMP echo and UDP headers have the same length.
    fn payload(self, family: Family) -> usize {
        const HEADER: usize = 8;
        self.inner() - HEADER - if family == Family::V4 { 20 } else { 40 }
    }

    fn port(self) -> u16 {
        10_000 + self.id
    }

    /// Whether this content is the probe in plaintext.
    fn is_plaintext_in(self, content: &Content) -> bool {
        match content {
            Content::Echo { id } => *id == self.id,
            Content::Udp { source, destination } => *source == self.port() && *destination == self.port(),
            _ => false,
        }
    }

    /// Whether this content is a WireGuard data message with the probe inside: a header of 16 bytes, the packet, and
    /// a tag of 16 bytes.
    fn is_encrypted_in(self, content: &Content) -> bool {
        *content == Content::WireGuard { message: 4, length: 16 + self.inner() + 16 }
    }
}

/// A raw socket that sends echo requests and receives the replies.
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
        // Sending blocks when an interface whose device has stopped holds as many packets as it can.
        socket.set_write_timeout(Some(at_this_pace(REPLY_TIME))).map_err(Error::io("set a timeout"))?;
        // A raw socket receives the replies to all requests in its network, and after a stall all of them at once.
        // What does not fit into its buffer would count as lost.
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))
            .map_err(Error::io("enlarge a receive buffer"))?;
        Ok(Self { socket, target, id })
    }

    /// Sends a request. When the kernel refuses (for want of a route, say), it counts as a lost packet.
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

    /// The sequence number of the next reply; `None` when none arrives before the deadline.
    pub(crate) fn reply(&self, deadline: Instant) -> Result<Option<u16>> {
        let mut buffer = [0; 2048];
        loop {
            // A timeout of zero would mean none.
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

    /// The echo reply in what was received: a raw socket delivers IPv4 with the IP header, ICMPv6 without it.
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
