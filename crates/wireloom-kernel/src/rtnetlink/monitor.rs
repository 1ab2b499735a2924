//! The kernel's notifications, as `ip monitor` shows them: tells when somebody else may have changed something
//! of ours, or something that ours depends on.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{RouteNetlinkMessage, address::AddressMessage, link::LinkMessage};
use nix::net::if_::if_nametoindex;
use wireloom_netlink::{Messages, Protocol, Received, Subscription};

use super::{address, interface, neighbour, route, rule};

/// `RTNLGRP_…` of include/uapi/linux/rtnetlink.h: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE,
/// IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE.
const GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];

/// Bytes. A full buffer does no harm: it means that something changed.
const RECEIVE_BUFFER: usize = 1 << 20;

/// The changes that are worth a look at the kernel.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// The name of our interface.
    pub interface: String,
    /// Our table.
    pub table: u32,
    /// The interfaces that carry this node's own addresses.
    pub underlays: BTreeSet<String>,
    /// This node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// The netlink port of our own changes, which are no news.
    pub own_port: u32,
}

/// Listens in a thread of its own, for as long as the process lives.
#[derive(Debug, Clone)]
pub struct Monitor {
    interest: Arc<Mutex<Interest>>,
}

impl Monitor {
    /// Starts to listen. The thread calls `changed` after notifications of interest.
    ///
    /// # Errors
    /// The socket cannot be opened, or the thread not be started.
    pub fn start(interest: Interest, changed: impl Fn() + Send + 'static) -> io::Result<Self> {
        let subscription = Subscription::open(Protocol::Route, &GROUPS, RECEIVE_BUFFER)?;
        let monitor = Self { interest: Arc::new(Mutex::new(interest)) };
        let listener = monitor.clone();
        thread::Builder::new()
            .name("monitor".into())
            .spawn(move || listener.listen(subscription, changed))?;
        Ok(monitor)
    }

    /// Replaces what is of interest.
    pub fn set_interest(&self, interest: Interest) {
        *self.interest.lock().unwrap_or_else(PoisonError::into_inner) = interest;
    }

    fn listen(&self, mut subscription: Subscription, changed: impl Fn()) {
        loop {
            match subscription.receive() {
                Ok(Received::Messages(messages)) => {
                    if self.concerns(messages) {
                        changed();
                    }
                }
                // The lost notifications may have been of interest.
                Ok(Received::Overrun) => changed(),
                Err(error) => {
                    tracing::error!(
                        "cannot receive netlink notifications any more, only the periodic pass remains: {error}"
                    );
                    return;
                }
            }
        }
    }

    fn concerns(&self, mut messages: Messages<'_>) -> bool {
        let interest = self.interest.lock().unwrap_or_else(PoisonError::into_inner);
        messages.any(|message| match message {
            Ok(message) if message.header.port_number == interest.own_port => false,
            Ok(message) => match message.parse::<RouteNetlinkMessage>() {
                Ok(NetlinkPayload::InnerMessage(message)) => interest.holds(&message),
                Ok(_) => false,
                Err(_) => true,
            },
            Err(_) => true,
        })
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
                self.holds_interface(message)
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                self.holds_address(message)
            }
            _ => false,
        }
    }

    fn holds_interface(&self, message: &LinkMessage) -> bool {
        interface::decode(message)
            .is_some_and(|found| found.name == self.interface || self.underlays.contains(&found.name))
    }

    fn holds_address(&self, message: &AddressMessage) -> bool {
        address::decode(message).is_some_and(|found| {
            self.own.contains(&found.address.addr()) || self.index() == Some(found.interface)
        })
    }

    /// The index of our interface.
    fn index(&self) -> Option<u32> {
        if_nametoindex(self.interface.as_str()).ok()
    }
}
