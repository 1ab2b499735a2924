//! A blocking netlink socket: many requests in one send, dumps that are whole. Of rtnetlink unless
//! its messages are another family's.

use std::{fmt, io, marker::PhantomData, mem, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};
use zeroize::Zeroizing;

use super::error::Cause;

/// Requests in one send. All their refusals must fit into the receive buffer, for rtnetlink
/// answers while it is still inside our send: an answer takes less than 1 KiB there.
const BATCH: usize = 1024;

/// Bytes; see [`BATCH`].
const RECEIVE_BUFFER: usize = 4 << 20;

/// Bytes of one read: a dump comes in pieces of up to 32 KiB (`netlink_dump` in
/// net/netlink/af_netlink.c).
const READ: usize = 64 << 10;

/// How often a dump is begun anew when the table changed under it.
const DUMP_ATTEMPTS: usize = 10;

/// `NLMSGERR_ATTR_MSG` of include/uapi/linux/netlink.h.
const ERROR_MESSAGE: u16 = 1;

/// rtnetlink answers at once; a socket that stays silent for so long is broken.
const SILENCE: Duration = Duration::from_secs(10);

/// A change that the kernel is asked for.
#[derive(Debug)]
pub(crate) struct Request<M = RouteNetlinkMessage> {
    pub(crate) message: M,
    /// `NLM_F_CREATE` and its like.
    pub(crate) flags: u16,
}

/// What a socket sends and receives.
pub(crate) trait Message: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug {}

impl<M: NetlinkSerializable + NetlinkDeserializable + Clone + fmt::Debug> Message for M {}

/// The socket.
pub(crate) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// WireGuard's messages hold the private key.
    received: Zeroizing<Vec<u8>>,
    messages: PhantomData<M>,
}

/// The raw bytes of one message and what its header says.
struct Reply<'a> {
    header: NetlinkHeader,
    bytes: &'a [u8],
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        Self::open_family(NETLINK_ROUTE)
    }
}

impl<M: Message> Netlink<M> {
    /// `NETLINK_ROUTE` and its like.
    pub(crate) fn open_family(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
        // Refusals in words, without our own request back.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Lets a dump be filtered by the kernel; before Linux 4.20 there is none, and we filter again anyway.
        let _ = socket.set_netlink_get_strict_chk(true);
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        let silence = TimeVal::new(SILENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &silence)?;
        let received = Zeroizing::new(Vec::with_capacity(READ));
        Ok(Self { socket, port, sequence: 0, received, messages: PhantomData })
    }

    /// The port by which notifications name us as the cause.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Everything that matches a dump request.
    pub(crate) fn dump(&mut self, request: &M) -> Result<Vec<M>, Cause> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let whole = self.dump_once(request, |message| found.push(message))?;
            if whole {
                return Ok(found);
            }
        }
        Err(Cause::Passing(format!("the table changed during each of {DUMP_ATTEMPTS} dumps")))
    }

    /// False when the table changed during the dump.
    fn dump_once(&mut self, request: &M, mut found: impl FnMut(M)) -> Result<bool, Cause> {
        let sequence = self.send_one(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut whole = true;
        loop {
            let mut done = None;
            self.receive(|reply| {
                if reply.header.sequence_number != sequence || done.is_some() {
                    return;
                }
                whole &= reply.header.flags & NLM_F_DUMP_INTR == 0;
                match NetlinkMessage::<M>::deserialize(reply.bytes) {
                    Ok(message) => match message.payload {
                        NetlinkPayload::InnerMessage(message) => found(message),
                        NetlinkPayload::Done(end) if end.code == 0 => done = Some(Ok(())),
                        NetlinkPayload::Done(end) => {
                            done = Some(Err(Errno::from_raw(end.code.saturating_abs()).into()));
                        }
                        NetlinkPayload::Error(error) => {
                            done = Some(match error.code {
                                None => Ok(()),
                                Some(code) => Err(refusal(code.get(), &reply)),
                            });
                        }
                        _ => {}
                    },
                    // An object with a shape of later kernels is none that we wrote.
                    Err(error) => tracing::debug!("an unreadable netlink message is left out: {error}"),
                }
            })?;
            match done {
                None => {}
                Some(Ok(())) => return Ok(whole),
                Some(Err(cause)) => return Err(cause),
            }
        }
    }

    /// The one object that a request names; `None` when there is none (`ENODEV`).
    pub(crate) fn get(&mut self, request: &M) -> Result<Option<M>, Cause> {
        let sequence = self.send_one(request, NLM_F_REQUEST)?;
        loop {
            let mut answer = None;
            self.receive(|reply| {
                if reply.header.sequence_number != sequence {
                    return;
                }
                answer = Some(match NetlinkMessage::<M>::deserialize(reply.bytes) {
                    Ok(message) => match message.payload {
                        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
                        NetlinkPayload::Error(error) => match error.code {
                            Some(code) if code.get() == -(Errno::ENODEV as i32) => Ok(None),
                            Some(code) => Err(refusal(code.get(), &reply)),
                            None => Ok(None),
                        },
                        _ => Ok(None),
                    },
                    Err(error) => Err(Cause::Told(format!("the kernel's answer is unreadable: {error}"))),
                });
            })?;
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// Asks for many changes; the kernel tries all of them, in order. Gives the refusals, by
    /// the position of their request.
    ///
    /// Only the last of a batch asks for an acknowledgement: refusals come unasked
    /// (`netlink_rcv_skb` in net/netlink/af_netlink.c).
    pub(crate) fn change(&mut self, requests: &[Request<M>]) -> Result<Vec<(usize, Cause)>, Cause> {
        let mut refusals = Vec::new();
        for (number, batch) in requests.chunks(BATCH).enumerate() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Zeroizing::new(Vec::new());
            for (position, request) in batch.iter().enumerate() {
                let last = position + 1 == batch.len();
                let flags = NLM_F_REQUEST | request.flags | if last { NLM_F_ACK } else { 0 };
                self.append(&mut bytes, request.message.clone(), flags);
            }
            self.send(&bytes)?;
            let last = self.sequence;
            let mut acknowledged = false;
            while !acknowledged {
                self.receive(|reply| {
                    let position = reply.header.sequence_number.wrapping_sub(first) as usize;
                    let parsed = NetlinkMessage::<M>::deserialize(reply.bytes);
                    let Ok(NetlinkPayload::Error(error)) = parsed.map(|message| message.payload) else {
                        return;
                    };
                    if position >= batch.len() {
                        return;
                    }
                    if let Some(code) = error.code {
                        refusals.push((number * BATCH + position, refusal(code.get(), &reply)));
                    }
                    acknowledged |= reply.header.sequence_number == last;
                })?;
            }
        }
        Ok(refusals)
    }

    fn send_one(&mut self, message: &M, flags: u16) -> Result<u32, Cause> {
        let mut bytes = Zeroizing::new(Vec::new());
        self.append(&mut bytes, message.clone(), flags);
        self.send(&bytes)?;
        Ok(self.sequence)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(NLMSG_ALIGNTO as usize), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Cause> {
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    /// One read's worth of messages.
    fn receive(&mut self, mut each: impl FnMut(Reply<'_>)) -> Result<(), Cause> {
        self.received.clear();
        match self.socket.recv(&mut *self.received, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Cause::Passing(format!("netlink gave no answer within {} s", SILENCE.as_secs())));
            }
            Err(error) => return Err(error.into()),
        }
        for_each_message(&self.received, |header, bytes| each(Reply { header, bytes }))
    }
}

/// Splits a datagram into its messages.
pub(crate) fn for_each_message(
    mut datagram: &[u8],
    mut each: impl FnMut(NetlinkHeader, &[u8]),
) -> Result<(), Cause> {
    const HEADER: usize = 16;
    while let Some((head, _)) = datagram.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *head;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]);
        let whole = length as usize;
        if whole < HEADER || whole > datagram.len() {
            return Err(Cause::Told(format!("a netlink message says that it is {length} bytes long")));
        }
        let mut header = NetlinkHeader::default();
        header.length = length;
        header.message_type = u16::from_ne_bytes([t0, t1]);
        header.flags = u16::from_ne_bytes([f0, f1]);
        header.sequence_number = u32::from_ne_bytes([s0, s1, s2, s3]);
        header.port_number = u32::from_ne_bytes([p0, p1, p2, p3]);
        each(header, &datagram[..whole]);
        datagram = &datagram[whole.next_multiple_of(NLMSG_ALIGNTO as usize).min(datagram.len())..];
    }
    Ok(())
}

fn refusal(code: i32, reply: &Reply<'_>) -> Cause {
    Cause::Refused { errno: Errno::from_raw(code.saturating_abs()), reason: reason(reply) }
}

/// The kernel's own words: attributes after the error code and our request's header
/// (`netlink_ack` in net/netlink/af_netlink.c; the request itself is capped).
fn reason(reply: &Reply<'_>) -> Option<String> {
    const HEADERS: usize = 16 + mem::size_of::<i32>() + 16;
    if reply.header.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let mut rest = reply.bytes.get(HEADERS..)?;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = rest.get(4..length)?;
        if u16::from_ne_bytes([head[2], head[3]]) == ERROR_MESSAGE {
            let text = value.strip_suffix(b"\0").unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `ip rule add from 10.0.0.0/8 lookup 1` meets as a stranger: an error with words.
    fn error_with_words() -> Vec<u8> {
        let words = b"ipv4: FIB table does not exist\0";
        let attribute = 4 + words.len();
        let length = 16 + 4 + 16 + attribute;
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(length).unwrap().to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes()); // NLMSG_ERROR
        bytes.extend((0x100 | NLM_F_ACK_TLVS).to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(1234u32.to_ne_bytes());
        bytes.extend((-(Errno::ENOENT as i32)).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(u16::try_from(attribute).unwrap().to_ne_bytes());
        bytes.extend(ERROR_MESSAGE.to_ne_bytes());
        bytes.extend(words);
        bytes
    }

    #[test]
    fn the_kernels_words_are_kept() {
        let bytes = error_with_words();
        let mut seen = 0;
        for_each_message(&bytes, |header, bytes| {
            seen += 1;
            assert_eq!((header.sequence_number, header.port_number), (7, 1234));
            let reply = Reply { header, bytes };
            let cause = refusal(-(Errno::ENOENT as i32), &reply);
            assert_eq!(cause.to_string(), "ipv4: FIB table does not exist (No such file or directory)");
        })
        .unwrap();
        assert_eq!(seen, 1);
    }

    #[test]
    fn a_cut_message_is_an_error_and_not_a_panic() {
        let bytes = error_with_words();
        for cut in 0..bytes.len() {
            let outcome = for_each_message(&bytes[..cut], |_, _| panic!("no whole message is there"));
            assert_eq!(outcome.is_err(), cut >= 16, "{cut}");
        }
        let mut short = bytes;
        short[0] = 3;
        assert!(for_each_message(&short, |_, _| {}).is_err());
    }

    #[test]
    fn attributes_that_lie_about_their_length_are_no_reason() {
        let mut bytes = error_with_words();
        for length in 0..=u16::MAX {
            bytes[36..38].copy_from_slice(&length.to_ne_bytes());
            for_each_message(&bytes, |header, bytes| {
                let _ = reason(&Reply { header, bytes });
            })
            .unwrap();
        }
    }
}
