//! Notifications of the kernel, as `ip monitor` shows them: says when something of ours, or something
//! that ours depends on, may have been changed by somebody else.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{RouteNetlinkMessage, address::AddressMessage, link::LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::socket::{setsockopt, sockopt},
};

use super::{address, link, neighbour, netlink::for_each_message, route, rule};

/// `RTNLGRP_…` of include/uapi/linux/rtnetlink.h: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE,
/// IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Bytes; a full buffer is no loss: it means that something changed.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Bytes of one read; a notification is one message of a few hundred bytes.
const READ: usize = 32 << 10;

/// What is worth a look at the kernel.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Our interface.
    pub interface: String,
    /// Our table.
    pub table: u32,
    /// The interfaces that carry this node's own addresses.
    pub underlays: BTreeSet<String>,
    /// This node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// The netlink port of our own doings, which are no news.
    pub own_port: u32,
}

/// Listens in a thread of its own, for as long as the process lives.
#[derive(Debug, Clone)]
pub struct Monitor {
    interest: Arc<Mutex<Interest>>,
}

impl Monitor {
    /// Starts to listen; `changed` is called for each notification of interest.
    ///
    /// # Errors
    /// The socket or the thread cannot be had.
    pub fn start(interest: Interest, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        let monitor = Self { interest: Arc::new(Mutex::new(interest)) };
        let listener = monitor.clone();
        thread::Builder::new().name("monitor".into()).spawn(move || listener.listen(&socket, changed))?;
        Ok(monitor)
    }

    /// Says anew what is of interest.
    pub fn set_interest(&self, interest: Interest) {
        *self.interest.lock().unwrap_or_else(PoisonError::into_inner) = interest;
    }

    fn listen(&self, socket: &Socket, changed: impl Fn()) {
        let mut datagram = Vec::with_capacity(READ);
        loop {
            datagram.clear();
            match socket.recv(&mut datagram, 0) {
                Ok(_) if self.concerns(&datagram) => changed(),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Notifications were lost: they may have been of interest.
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => changed(),
                Err(error) => {
                    tracing::error!(
                        "netlink notifications end here, only the periodic pass remains: {error}"
                    );
                    return;
                }
            }
        }
    }

    fn concerns(&self, datagram: &[u8]) -> bool {
        let interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut any = false;
        let whole = for_each_message(datagram, |header, bytes| {
            if header.port_number != interest.own_port {
                any |= match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(message) => match message.payload {
                        NetlinkPayload::InnerMessage(message) => interest.holds(&message),
                        _ => false,
                    },
                    Err(_) => true,
                };
            }
        });
        any || whole.is_err()
    }
}

impl Interest {
    fn holds(&self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message) => {
                rule::concerns(message, self.table)
            }
            RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
                route::concerns(message, self.table)
                    || self.index().is_some_and(|index| route::concerns_link_routes(message, index))
            }
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
                self.index().is_some_and(|index| neighbour::concerns(message, index))
            }
            RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message) => {
                self.holds_link(message)
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                self.holds_address(message)
            }
            _ => false,
        }
    }

    fn holds_link(&self, message: &LinkMessage) -> bool {
        link::decode(message)
            .is_some_and(|found| found.name == self.interface || self.underlays.contains(&found.name))
    }

    fn holds_address(&self, message: &AddressMessage) -> bool {
        address::decode(message).is_some_and(|found| {
            self.own.contains(&found.address.addr()) || self.index() == Some(found.interface)
        })
    }

    /// Of our interface.
    fn index(&self) -> Option<u32> {
        if_nametoindex(self.interface.as_str()).ok()
    }
}
