//! Notifications of multicast groups.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::{Socket, SocketAddr};
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt},
};

use crate::{Message, Messages, Protocol, message};

/// Bytes of one read. A notification is one message of a few hundred bytes, or a batch of at most two pages
/// (`NLMSG_GOODSIZE`).
const READ: usize = 64 << 10;

/// A socket that is a member of multicast groups. It blocks by default.
pub struct Subscription {
    socket: Socket,
    datagram: Vec<u8>,
}

/// What a read brought.
#[derive(Debug)]
pub enum Received<'a> {
    /// Notifications, and answers to [`Subscription::request`].
    Messages(Messages<'a>),
    /// The receive buffer was full, so that notifications were dropped: anything may have changed.
    Overrun,
}

impl Subscription {
    /// Joins the groups (`RTNLGRP_…`, `NFNLGRP_…`). `receive_buffer` is in bytes; `net.core.rmem_max` bounds it
    /// unless the process has CAP_NET_ADMIN.
    ///
    /// # Errors
    /// The socket cannot be opened or set up: `EPROTONOSUPPORT` when the kernel does not have the protocol.
    pub fn open(protocol: Protocol, groups: &[u32], receive_buffer: usize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol.number())?;
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &receive_buffer)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        let mut subscription = Self { socket, datagram: vec![0; READ] };
        for group in groups {
            subscription.join(*group)?;
        }
        Ok(subscription)
    }

    /// Joins one more group.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn join(&mut self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    /// Lets the groups' notifications come from all network namespaces that ours has numbers for (ip-netns(8), "nsid"),
    /// too: [`Messages::namespace`] says from which one. Also after the process has given up its capabilities.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_BROADCAST, or another error of the operating system.
    pub fn listen_to_all_namespaces(&mut self) -> io::Result<()> {
        self.socket.set_listen_all_namespaces(true)
    }

    /// Sets whether [`receive`](Self::receive) returns `WouldBlock` when nothing is queued.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_non_blocking(nonblocking)
    }

    /// Sends a request whose answer arrives among the notifications, in the order of the changes.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn request<M: Message>(&self, message: M) -> io::Result<()> {
        let mut datagram = Vec::new();
        message::append(&mut datagram, message, NLM_F_REQUEST, 0);
        self.socket.send_to(&datagram, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// Reads one datagram.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn receive(&mut self) -> io::Result<Received<'_>> {
        loop {
            match self.receive_datagram() {
                Ok((len, namespace)) => {
                    let messages = Messages::of(&self.datagram[..len]);
                    return Ok(Received::Messages(messages.of_namespace(namespace)));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(Received::Overrun),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads one datagram. Returns its length, and the number of the namespace that it came from.
    fn receive_datagram(&mut self) -> nix::Result<(usize, Option<i32>)> {
        let mut datagram = [IoSliceMut::new(&mut self.datagram)];
        let mut control = cmsg_space!(libc::c_int);
        let socket = self.socket.as_raw_fd();
        let message = recvmsg::<NetlinkAddr>(socket, &mut datagram, Some(&mut control), MsgFlags::empty())?;
        let namespace = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(other)
                if other.cmsg_header.cmsg_level == libc::SOL_NETLINK
                    && other.cmsg_header.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID =>
            {
                other.data_bytes.first_chunk().map(|number| i32::from_ne_bytes(*number))
            }
            _ => None,
        });
        Ok((message.bytes, namespace))
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkPayload;
    use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};

    use super::*;

    /// `RTNLGRP_LINK` of include/uapi/linux/rtnetlink.h.
    const LINK: u32 = 1;

    #[test]
    fn the_answer_to_a_request_arrives_among_the_notifications() {
        let mut subscription = Subscription::open(Protocol::Route, &[LINK], 64 << 10).unwrap();
        subscription.set_nonblocking(true).unwrap();
        let mut loopback = LinkMessage::default();
        loopback.header.index = 1;
        subscription.request(RouteNetlinkMessage::GetLink(loopback)).unwrap();
        // The kernel answers within the send; somebody else's changes may come before.
        loop {
            let Received::Messages(messages) = subscription.receive().unwrap() else { continue };
            for message in messages {
                let payload = message.unwrap().parse::<RouteNetlinkMessage>().unwrap();
                match payload {
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))
                        if link.header.index == 1 =>
                    {
                        return;
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn nothing_queued_would_block() {
        let mut subscription = Subscription::open(Protocol::Route, &[], 64 << 10).unwrap();
        subscription.set_nonblocking(true).unwrap();
        assert_eq!(subscription.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
