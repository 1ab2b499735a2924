//! Requests and their answers, on a blocking socket.

use std::{io, marker::PhantomData, time::Duration};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};
use zeroize::Zeroizing;

use crate::{
    Error, Message, Messages, Protocol, Refusal,
    message::{self, RawMessage},
};

/// Requests in one send. All their refusals must fit into the receive buffer, because the kernel answers
/// within our send: a refusal takes less than 1 KiB there.
const BATCH: usize = 1024;

/// Bytes; see [`BATCH`].
const RECEIVE_BUFFER: usize = 4 << 20;

/// Bytes of one read: a dump arrives in pieces of up to 32 KiB (`netlink_dump` in
/// net/netlink/af_netlink.c).
const READ: usize = 64 << 10;

/// How often a dump is started over when the table changed in the middle of it.
const DUMP_ATTEMPTS: usize = 10;

/// The kernel answers at once; a socket that stays silent this long is broken.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A change that the kernel is asked for.
#[derive(Debug, Clone)]
pub struct Request<M> {
    /// What to change.
    pub message: M,
    /// How: `NLM_F_CREATE` and the like. The client adds `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub flags: u16,
}

/// A socket of one protocol. It waits at most 10 seconds for an answer.
pub struct Client<M> {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// Wiped when the client goes: WireGuard's messages contain the private key.
    received: Zeroizing<Vec<u8>>,
    messages: PhantomData<M>,
}

impl<M: Message> Client<M> {
    /// Opens a socket.
    ///
    /// # Errors
    /// The socket cannot be opened or set up: `EPROTONOSUPPORT` when the kernel does not have the protocol.
    pub fn open(protocol: Protocol) -> io::Result<Self> {
        let mut socket = Socket::new(protocol.number())?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Refusals with a reason in words and without a copy of our request.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Lets the kernel filter a dump. Before Linux 4.20 it cannot: callers filter again anyway.
        let _ = socket.set_netlink_get_strict_chk(true);
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        let timeout = TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
        let received = Zeroizing::new(Vec::with_capacity(READ));
        Ok(Self { socket, port, sequence: 0, received, messages: PhantomData })
    }

    /// The socket's port, by which notifications name the originator of a change.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Asks for one object.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such object, with an error number that depends on its kind;
    /// otherwise the request failed.
    pub fn get(&mut self, request: &M) -> Result<M, Error> {
        let sequence = self.send_one(request, NLM_F_REQUEST)?;
        loop {
            for message in self.receive()? {
                let message = message?;
                if message.header.sequence_number == sequence {
                    return answer(&message);
                }
            }
        }
    }

    /// Asks for all objects that match. The dump is consistent: it starts over when the table changes.
    ///
    /// # Errors
    /// The request failed, or the table changed during each of 10 attempts.
    pub fn dump(&mut self, request: &M) -> Result<Vec<M>, Error> {
        self.dump_some(request, Some)
    }

    /// As [`Self::dump`], but keeps only what `keep` makes of each object, which may be little of many. It sees objects
    /// again when the dump starts over.
    ///
    /// # Errors
    /// Those of [`Self::dump`].
    pub fn dump_some<T>(
        &mut self,
        request: &M,
        mut keep: impl FnMut(M) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(objects) = self.dump_once(request, &mut keep)? {
                return Ok(objects);
            }
        }
        Err(Error::DumpInterrupted(DUMP_ATTEMPTS))
    }

    /// Asks for one change and waits for its acknowledgement.
    ///
    /// # Errors
    /// [`Error::Refused`] when the kernel does not make it; otherwise the request failed.
    pub fn change(&mut self, request: &Request<M>) -> Result<(), Error> {
        match self.change_all(std::slice::from_ref(request))?.pop() {
            Some((_, refusal)) => Err(Error::Refused(refusal)),
            None => Ok(()),
        }
    }

    /// Asks for many changes in few system calls. The kernel tries all of them, in their order. Returns
    /// those that it refused, by their position.
    ///
    /// # Errors
    /// The requests failed as such; some of the changes may be made.
    pub fn change_all(&mut self, requests: &[Request<M>]) -> Result<Vec<(usize, Refusal)>, Error> {
        let mut refusals = Vec::new();
        for (number, batch) in requests.chunks(BATCH).enumerate() {
            let found = self.change_batch(batch)?;
            refusals
                .extend(found.into_iter().map(|(position, refusal)| (number * BATCH + position, refusal)));
        }
        Ok(refusals)
    }

    /// Only the last request of a batch asks for an acknowledgement: the kernel reports refusals unasked
    /// (`netlink_rcv_skb` in net/netlink/af_netlink.c).
    fn change_batch(&mut self, batch: &[Request<M>]) -> Result<Vec<(usize, Refusal)>, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Zeroizing::new(Vec::new());
        for (position, request) in batch.iter().enumerate() {
            let last = position + 1 == batch.len();
            let flags = NLM_F_REQUEST | request.flags | if last { NLM_F_ACK } else { 0 };
            self.append(&mut datagram, &request.message, flags);
        }
        self.socket.send(&datagram, 0)?;
        let last = self.sequence;
        let mut refusals = Vec::new();
        loop {
            let mut acknowledged = false;
            for message in self.receive()? {
                let message = message?;
                let position = message.header.sequence_number.wrapping_sub(first) as usize;
                let Ok(NetlinkPayload::Error(error)) = message.parse::<M>() else { continue };
                if position >= batch.len() {
                    continue;
                }
                if let Some(code) = error.code {
                    refusals.push((position, message.refusal(code.get())));
                }
                acknowledged |= message.header.sequence_number == last;
            }
            if acknowledged {
                return Ok(refusals);
            }
        }
    }

    /// `None` when the table changed during the dump.
    fn dump_once<T>(
        &mut self,
        request: &M,
        keep: &mut impl FnMut(M) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let sequence = self.send_one(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut objects = Vec::new();
        let mut consistent = true;
        loop {
            for message in self.receive()? {
                let message = message?;
                if message.header.sequence_number != sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.parse() {
                    Ok(NetlinkPayload::InnerMessage(object)) => objects.extend(keep(object)),
                    Ok(NetlinkPayload::Done(end)) if end.code == 0 => {
                        return Ok(consistent.then_some(objects));
                    }
                    Ok(NetlinkPayload::Done(end)) => {
                        let errno = Errno::from_raw(end.code.saturating_abs());
                        return Err(Error::Refused(Refusal { errno, reason: None }));
                    }
                    Ok(NetlinkPayload::Error(error)) => match error.code {
                        None => return Ok(consistent.then_some(objects)),
                        Some(code) => return Err(Error::Refused(message.refusal(code.get()))),
                    },
                    Ok(_) => {}
                    // Later kernels may have objects of shapes that we do not know.
                    Err(error) => tracing::debug!("an unreadable netlink message is skipped: {error}"),
                }
            }
        }
    }

    fn send_one(&mut self, message: &M, flags: u16) -> Result<u32, Error> {
        let mut datagram = Zeroizing::new(Vec::new());
        self.append(&mut datagram, message, flags);
        self.socket.send(&datagram, 0)?;
        Ok(self.sequence)
    }

    fn append(&mut self, datagram: &mut Vec<u8>, message: &M, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        message::append(datagram, message.clone(), flags, self.sequence);
    }

    /// Reads one datagram.
    fn receive(&mut self) -> Result<Messages<'_>, Error> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut *self.received, 0) {
                Ok(_) => return Ok(Messages::of(&self.received)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::TimedOut(TIMEOUT.as_secs()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The object in an answer to [`Client::get`].
fn answer<M: Message>(message: &RawMessage<'_>) -> Result<M, Error> {
    match message.parse() {
        Ok(NetlinkPayload::InnerMessage(object)) => Ok(object),
        Ok(NetlinkPayload::Error(error)) => match error.code {
            Some(code) => Err(Error::Refused(message.refusal(code.get()))),
            None => Err(Error::Unreadable("an acknowledgement in place of an object".into())),
        },
        Ok(other) => {
            Err(Error::Unreadable(format!("message type {} in place of an object", other.message_type())))
        }
        Err(error) => Err(Error::Unreadable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    };

    use super::*;

    fn client() -> Client<RouteNetlinkMessage> {
        Client::open(Protocol::Route).unwrap()
    }

    fn named(name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        message
    }

    #[test]
    fn one_object_is_read_by_its_name() {
        let answer = client().get(&RouteNetlinkMessage::GetLink(named("lo"))).unwrap();
        let RouteNetlinkMessage::NewLink(link) = answer else { panic!("{answer:?}") };
        assert!(link.attributes.contains(&LinkAttribute::IfName("lo".into())));
    }

    #[test]
    fn an_absent_object_is_a_refusal() {
        let absent = client().get(&RouteNetlinkMessage::GetLink(named("absent"))).unwrap_err();
        assert_eq!(absent.errno(), Some(Errno::ENODEV));
        assert_eq!(io::Error::from(absent).raw_os_error(), Some(Errno::ENODEV as i32));
    }

    #[test]
    fn a_dump_holds_every_object() {
        let links = client().dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
        let is_loopback = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.contains(&LinkAttribute::IfName("lo".into()))
            }
            _ => false,
        };
        assert!(links.iter().any(is_loopback));
    }

    /// Neither root nor an ordinary user can change what does not exist.
    #[test]
    fn every_refused_change_is_reported_by_its_position() {
        let mut message = LinkMessage::default();
        message.header.index = u32::MAX >> 1;
        let request = Request { message: RouteNetlinkMessage::SetLink(message), flags: 0 };
        let mut client = client();
        let count = match client.change(&request).unwrap_err().errno() {
            // Root: more than one batch.
            Some(Errno::ENODEV) => BATCH + 7,
            // An ordinary user, whose receive buffer may be too small for a whole batch of refusals.
            Some(Errno::EPERM) => 100,
            other => panic!("{other:?}"),
        };
        let refusals = client.change_all(&vec![request; count]).unwrap();
        assert!(refusals.iter().map(|(position, _)| *position).eq(0..count));
        assert!(client.change_all(&[]).unwrap().is_empty());
    }
}
