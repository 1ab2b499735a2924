//! The kernel's notifications, as `ip monitor` shows them: tells when somebody else may have changed something
//! of ours, or something that ours depends on.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressMessage, link::LinkMessage, route::RouteMessage,
};
use nix::net::if_::{if_indextoname, if_nametoindex};
use wireloom_netlink::{Messages, Protocol, Received, Subscription};
use wireloom_plan::borrowed::Borrowable;

use super::{
    address, link, neighbour,
    netconf::{self, Place},
    route, rule,
};

/// `RTNLGRP_…` of include/uapi/linux/rtnetlink.h: LINK, NEIGH, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE,
/// IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE, IPV4_NETCONF.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 24];

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
    /// The interfaces that lead to other machines, as far as is known.
    pub outward: BTreeSet<String>,
    /// The addresses that are borrowed when a pod here has them.
    pub borrowable: Borrowable,
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

    fn concerns(&self, messages: Messages<'_>) -> bool {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner).holds_any(messages)
    }
}

impl Interest {
    pub(super) fn holds_any(&self, mut messages: Messages<'_>) -> bool {
        messages.any(|message| match message {
            Ok(message) if message.header.port_number == self.own_port => false,
            // netlink-packet-route does not know these.
            Ok(message) if message.header.message_type == netconf::NEW => {
                netconf::decode(message.payload()).is_some_and(|place| self.holds_settings_of(&place))
            }
            Ok(message) => match message.parse::<RouteNetlinkMessage>() {
                Ok(NetlinkPayload::InnerMessage(message)) => self.holds(&message),
                Ok(_) => false,
                Err(_) => true,
            },
            Err(_) => true,
        })
    }

    fn holds(&self, message: &RouteNetlinkMessage) -> bool {
        match message {
            RouteNetlinkMessage::NewRule(message) | RouteNetlinkMessage::DelRule(message) => {
                rule::concerns(message, self.table)
            }
            RouteNetlinkMessage::NewRoute(message) => {
                self.holds_route(message) || self.leads_elsewhere(message)
            }
            // A gateway's route that goes is no hurry: an interface too many leads out until the next pass.
            RouteNetlinkMessage::DelRoute(message) => self.holds_route(message),
            RouteNetlinkMessage::NewNeighbour(message) | RouteNetlinkMessage::DelNeighbour(message) => {
                self.index().is_some_and(|index| neighbour::concerns(message, index))
            }
            RouteNetlinkMessage::NewLink(message) => self.holds_interface(message),
            RouteNetlinkMessage::DelLink(message) => {
                link::decode(message).is_some_and(|link| self.is_known(&link.name))
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                concerns_address(message)
            }
            _ => false,
        }
    }

    fn holds_route(&self, message: &RouteMessage) -> bool {
        route::concerns(message, self.table)
            || route::direct(message).is_some_and(|(destination, _)| self.borrowable.may_hold(destination))
            || self.index().is_some_and(|index| route::concerns_link_routes(message, index))
    }

    /// Whether a route leads to other machines by an interface that was not known to.
    fn leads_elsewhere(&self, message: &RouteMessage) -> bool {
        route::onward(message).into_iter().any(|index| {
            let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
            name.is_none_or(|name| name != self.interface && !self.outward.contains(&name))
        })
    }

    /// Something of an interface that matters changed, or an interface is new that leads to other machines.
    fn holds_interface(&self, message: &LinkMessage) -> bool {
        link::decode(message).is_some_and(|link| self.is_known(&link.name) || link.leads_out)
    }

    /// The settings of an interface that matters, or of all, changed.
    fn holds_settings_of(&self, place: &Place) -> bool {
        match place {
            Place::All => true,
            Place::Interface(index) => {
                let name = if_indextoname(*index).ok().and_then(|name| name.into_string().ok());
                name.is_some_and(|name| self.is_known(&name))
            }
        }
    }

    fn is_known(&self, interface: &str) -> bool {
        interface == self.interface || self.underlays.contains(interface) || self.outward.contains(interface)
    }

    /// The index of our interface.
    fn index(&self) -> Option<u32> {
        if_nametoindex(self.interface.as_str()).ok()
    }
}

/// Link-local addresses come and go with every container.
fn concerns_address(message: &AddressMessage) -> bool {
    address::decode(message).is_some_and(|found| !address::is_link_local(found.address.addr()))
}
