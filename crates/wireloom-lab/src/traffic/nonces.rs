//! The nonces that cross the underlay: WireGuard must never use one twice under a key.
//!
//! A key has a receiver index, and every data message shows it and its counter, which is the nonce. A key that goes
//! over to another process continues its counter there.

use std::{
    collections::HashMap,
    fs, mem,
    num::NonZero,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::packet_socket::PacketSocket;
use crate::{Error, Result, Space, mesh};

/// The bytes that are read of a frame: Ethernet, IPv6, UDP, the header of a data message, and the least that is sealed,
/// a tag; or all headers of an ICMPv6 error and of the datagram that it quotes.
const READ: usize = 14 + 40 + 8 + 40 + 8;

/// The first bytes of a data message.
const DATA: [u8; 4] = [4, 0, 0, 0];

/// Watches the underlay until it is dropped, on a thread of its own.
#[derive(Debug)]
pub struct Nonces(Arc<Watch>);

/// What [`Nonces`] has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NonceReport {
    /// Data messages.
    pub messages: u64,
    /// Receiver indices that they had.
    pub sessions: usize,
    /// Data messages whose receiver index and counter an earlier one had, with another content: there must be none.
    pub twice: u64,
    /// Data messages that crossed once more, as they were. Wireloom sends some again that must not be fragmented, to
    /// find the path MTU.
    pub copies: u64,
    /// Data messages whose counter was less than that of an earlier one of their session.
    pub backwards: u64,
    /// Packets that are neither a WireGuard message, nor an error about one, nor ARP, nor ICMPv6 between neighbours.
    pub plaintext: u64,
}

#[derive(Debug)]
struct Watch {
    socket: PacketSocket,
    seen: Mutex<Seen>,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    /// By the receiver index, and the last bytes of the destination: two machines may choose the same index.
    sessions: HashMap<(u32, u32), Counters>,
    report: NonceReport,
    error: Option<Error>,
}

/// By the counters of a session, the first bytes of what was sealed; `None` where the counter was not there yet.
#[derive(Debug, Default)]
struct Counters(Vec<Option<NonZero<u32>>>);

/// What a message is compared with.
#[derive(Debug, PartialEq, Eq)]
enum Nonce {
    /// Its counter is the greatest so far.
    Next,
    /// A greater one was there, but not this one.
    Late,
    /// The same message was there.
    Copy,
    /// Another message had the counter.
    Twice,
}

impl Nonces {
    /// Starts to watch the underlay ([`Lab::underlay`](crate::Lab::underlay)).
    ///
    /// For root of the machine, it sees messages in the order in which they were sent: one processor carries what
    /// arrives by a cable, or else each processor would carry what a sender on it has sent (`enqueue_to_backlog` in
    /// net/core/dev.c).
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses the socket.
    pub fn watch(underlay: &Space) -> Result<Self> {
        // Files in /sys are those of the network whose `sysfs` it is. It fails where it was mounted before.
        let _ = underlay.run("mount -t sysfs sysfs /sys");
        underlay.inside(|| {
            for cable in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
                let _ = fs::write(cable.path().join("queues/rx-0/rps_cpus"), "1");
            }
        })?;
        let socket = PacketSocket::open(underlay)?;
        let watch = Arc::new(Watch { socket, seen: Mutex::default(), over: AtomicBool::new(false) });
        let thread = Arc::clone(&watch);
        thread::spawn(move || {
            while !thread.over.load(Ordering::Relaxed) {
                thread.socket.wait();
                thread.read();
            }
        });
        Ok(Self(watch))
    }

    /// What was seen so far.
    ///
    /// # Errors
    /// [`Error::Io`] when the socket failed; [`Error::Overflow`] when it lost packets.
    pub fn report(&self) -> Result<NonceReport> {
        self.0.read();
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match mem::take(&mut seen.error) {
            Some(error) => Err(error),
            None => Ok(NonceReport { sessions: seen.sessions.len(), ..seen.report }),
        }
    }
}

impl Drop for Nonces {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Watch {
    fn read(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.socket.receive(&mut [0; READ], |frame| seen.frame(frame)) {
            seen.error.get_or_insert(error);
        }
    }
}

impl Seen {
    fn frame(&mut self, frame: &[u8]) {
        match Kind::of(frame) {
            Kind::Data { session, counter, sealed } => {
                self.report.messages += 1;
                match self.sessions.entry(session).or_default().add(counter, sealed) {
                    Nonce::Next => {}
                    Nonce::Late => self.report.backwards += 1,
                    Nonce::Copy => self.report.copies += 1,
                    Nonce::Twice => self.report.twice += 1,
                }
            }
            Kind::Plaintext => self.report.plaintext += 1,
            Kind::Other => {}
        }
    }
}

impl Counters {
    fn add(&mut self, counter: u64, sealed: u32) -> Nonce {
        // One bit less is enough to tell two messages apart, but for one in 2³¹.
        let sealed = NonZero::new(sealed | 1);
        let counter = counter as usize;
        if counter >= self.0.len() {
            self.0.resize(counter, None);
            self.0.push(sealed);
            return Nonce::Next;
        }
        match self.0[counter] {
            None => {
                self.0[counter] = sealed;
                Nonce::Late
            }
            before if before == sealed => Nonce::Copy,
            Some(_) => Nonce::Twice,
        }
    }
}

/// What a frame carries.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Data {
        session: (u32, u32),
        counter: u64,
        sealed: u32,
    },
    Plaintext,
    /// What every network with WireGuard has beside data messages.
    Other,
}

impl Kind {
    fn of(frame: &[u8]) -> Self {
        Self::read(frame).unwrap_or(Self::Plaintext)
    }

    /// `None` when the frame is too short for what it is.
    fn read(frame: &[u8]) -> Option<Self> {
        const ARP: [u8; 2] = [0x08, 0x06];
        match frame.get(12..14)? {
            kind if kind == ARP => Some(Self::Other),
            _ => Self::packet(frame.get(14..)?),
        }
    }

    /// Reads an IP packet.
    fn packet(ip: &[u8]) -> Option<Self> {
        const ICMP: u8 = 1;
        const UDP: u8 = 17;
        const ICMPV6: u8 = 58;
        /// Before multicast listener reports (RFC 2710).
        const HOP_BY_HOP: u8 = 0;
        let version = ip.first()? >> 4;
        let (protocol, destination, payload) = match version {
            4 => (*ip.get(9)?, ip.get(16..20)?, ip.get(4 * usize::from(ip.first()? & 0xf)..)?),
            6 => (*ip.get(6)?, ip.get(36..40)?, ip.get(40..)?),
            _ => return None,
        };
        match protocol {
            UDP => {
                let ports = [payload.get(0..2)?, payload.get(2..4)?];
                let message = payload.get(8..)?;
                if !ports.contains(&&mesh::PORT.to_be_bytes()[..]) {
                    return None;
                }
                // A quoted one may end here.
                if message.get(..4).is_none_or(|start| start != DATA) {
                    return Some(Self::Other);
                }
                let number = |bytes: &[u8]| Some(u32::from_le_bytes(bytes.try_into().ok()?));
                let counter = u64::from_le_bytes(message.get(8..16)?.try_into().ok()?);
                let session = (number(message.get(4..8)?)?, number(destination)?);
                Some(Self::Data { session, counter, sealed: number(message.get(16..20)?)? })
            }
            // Between neighbours, it goes no further than the link (RFC 4861): echo requests are plaintext.
            HOP_BY_HOP if version == 6 => Some(Self::Other),
            ICMPV6 if version == 6 && matches!(payload.first()?, 130..=137 | 143) => Some(Self::Other),
            // Errors (RFC 792; RFC 4443, section 2.1).
            ICMP if version == 4 && matches!(payload.first()?, 3 | 11 | 12) => Self::quoted(payload),
            ICMPV6 if version == 6 && *payload.first()? < 128 => Self::quoted(payload),
            _ => None,
        }
    }

    /// What an ICMP error is about.
    fn quoted(error: &[u8]) -> Option<Self> {
        match Self::packet(error.get(8..)?)? {
            Self::Plaintext => None,
            Self::Data { .. } | Self::Other => Some(Self::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn data(receiver: u32, counter: u64, sealed: u8) -> Vec<u8> {
        let mut payload = DATA.to_vec();
        payload.extend(receiver.to_le_bytes());
        payload.extend(counter.to_le_bytes());
        payload.extend([sealed; 32]);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 1, 1], [192, 168, 1, 2], 64)
            .udp(mesh::PORT, mesh::PORT)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }

    #[test]
    fn a_nonce_that_comes_again_is_counted() {
        let mut seen = Seen::default();
        let messages = [(1, 0, 7), (1, 1, 8), (2, 1, 9), (1, 70, 1), (1, 69, 2), (1, 70, 3), (1, 1, 8)];
        for (receiver, counter, sealed) in messages {
            seen.frame(&data(receiver, counter, sealed));
        }
        let expected =
            NonceReport { messages: 7, sessions: 0, twice: 1, copies: 1, backwards: 1, plaintext: 0 };
        assert_eq!(seen.report, expected);
        assert_eq!(seen.sessions.len(), 2);
    }

    #[test]
    fn what_everybody_can_read_is_plaintext() {
        let ipv6 = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        let mut echo = Vec::new();
        ipv6().icmpv6_echo_request(7, 1).write(&mut echo, b"ping").unwrap();
        let mut solicitation = Vec::new();
        ipv6().icmpv6_raw(135, 0, [0; 4]).write(&mut solicitation, &[0; 16]).unwrap();
        let mut datagram = Vec::new();
        ipv6().udp(9, 9).write(&mut datagram, &DATA).unwrap();
        assert_eq!(Kind::of(&echo), Kind::Plaintext);
        assert_eq!(Kind::of(&datagram), Kind::Plaintext);
        assert_eq!(Kind::of(&solicitation), Kind::Other);
        let data = data(5, 6, 7);
        let destination = u32::from_le_bytes([192, 168, 1, 2]);
        assert_eq!(
            Kind::of(&data),
            Kind::Data { session: (5, destination), counter: 6, sealed: 0x0707_0707 }
        );
        // It ends in the headers, or before what is sealed.
        for length in (0..42).chain(46..62) {
            assert_eq!(Kind::of(&data[..length]), Kind::Plaintext, "{length}");
        }
    }

    #[test]
    fn an_error_is_like_what_it_quotes() {
        let error = |quoted: &[u8]| {
            let mut bytes = Vec::new();
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4([192, 168, 1, 2], [192, 168, 1, 1], 64)
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut bytes, quoted)
                .unwrap();
            bytes
        };
        let quoted = data(5, 6, 7)[14..].to_vec();
        assert_eq!(Kind::of(&error(&quoted)), Kind::Other);
        assert_eq!(Kind::of(&error(&quoted[..28])), Kind::Other);
        let mut inside = quoted;
        inside[20..24].fill(9);
        assert_eq!(Kind::of(&error(&inside)), Kind::Plaintext);
    }
}
