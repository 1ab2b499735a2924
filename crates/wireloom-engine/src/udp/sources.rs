//! The source addresses of datagrams: the address that the peer sent to, as long as it works.
//!
//! It no longer works when routing sends the datagrams through another interface: an uplink has failed, and nobody
//! forwards packets with its address by way of the other one. Like the kernel's WireGuard (`send4` in
//! drivers/net/wireguard/socket.c), the device then lets routing choose the source. The kernel looks at the route of
//! each packet. Here rtnetlink(7) tells of changes of routes, and only the endpoints that a change may concern are
//! looked up again.

use std::{
    collections::{HashSet, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use nix::libc;
use wireloom_netlink::{Client, Protocol, RawMessage, Received, Subscription};
use wireloom_proto::{Endpoint, LocalAddress};

/// The groups of rtnetlink(7) whose changes may move a route: `RTNLGRP_LINK` (a link that goes takes its IPv4 routes
/// along without a word), `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE`.
const GROUPS: [u32; 5] = [1, 7, 8, 11, 19];
/// Room for notifications that wait to be read, in bytes. When it is full, anything may have changed.
const RECEIVE_BUFFER: usize = 208 << 10;
/// The most notifications that are read in one turn.
const READS: usize = 32;
/// The most routes that are looked up in one turn: each takes a few microseconds.
const LOOKUPS: usize = 16;

/// The ways whose source address is left to routing: a destination, and the address of ours that it was sent to. All
/// queues share them.
pub(super) type Moved = Arc<ArcSwap<HashSet<(IpAddr, LocalAddress)>>>;

/// Follows changes of routing, and finds the ways that have moved.
pub(super) struct RouteWatch {
    notifications: Subscription,
    lookups: Client<RouteNetlinkMessage>,
    moved: Moved,
    /// Endpoints whose routes may have moved.
    waiting: VecDeque<Endpoint>,
}

/// What may have changed.
#[derive(Debug, Default)]
struct Changes {
    everything: bool,
    networks: Vec<IpNet>,
    interfaces: HashSet<u32>,
}

impl RouteWatch {
    pub(super) fn open(moved: &Moved) -> io::Result<Self> {
        let notifications = Subscription::open(Protocol::Route, &GROUPS, RECEIVE_BUFFER)?;
        notifications.set_nonblocking(true)?;
        let lookups = Client::open(Protocol::Route)?;
        Ok(Self { notifications, lookups, moved: Arc::clone(moved), waiting: VecDeque::new() })
    }

    /// Looks some routes up, if there were changes. `endpoints` are those in use. `port` and `mark` are those of our
    /// datagrams. Returns whether more are to be looked up.
    pub(super) fn follow(&mut self, endpoints: impl FnOnce() -> Vec<Endpoint>, port: u16, mark: u32) -> bool {
        let changes = self.changes();
        if changes.any() {
            let concerned = endpoints().into_iter().filter(|endpoint| changes.concern(endpoint));
            let waiting: HashSet<Endpoint> = self.waiting.iter().copied().collect();
            self.waiting.extend(concerned.filter(|endpoint| !waiting.contains(endpoint)));
        }
        for _ in 0..LOOKUPS {
            let Some(endpoint) = self.waiting.pop_front() else { break };
            let Some(local) = endpoint.local else { continue };
            let interface = self.interface_towards(endpoint.remote, local, port, mark);
            note(&self.moved, endpoint.remote.ip(), local, interface != Some(local.interface));
        }
        !self.waiting.is_empty()
    }

    /// Reads what has changed.
    fn changes(&mut self) -> Changes {
        let mut changes = Changes::default();
        for _ in 0..READS {
            match self.notifications.receive() {
                Ok(Received::Messages(messages)) => {
                    messages.map_while(Result::ok).for_each(|message| changes.add(&message));
                }
                Ok(Received::Overrun) => changes.everything = true,
                Err(_) => break,
            }
        }
        changes
    }

    /// The interface that a datagram leaves by. `None` when there is no route for it.
    fn interface_towards(
        &mut self,
        remote: SocketAddr,
        local: LocalAddress,
        port: u16,
        mark: u32,
    ) -> Option<u32> {
        let mut request = RouteMessage::default();
        let is_v4 = remote.is_ipv4();
        request.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let bits = if is_v4 { 32 } else { 128 };
        (request.header.destination_prefix_length, request.header.source_prefix_length) = (bits, bits);
        request.attributes = vec![
            RouteAttribute::Destination(route_address(remote.ip())),
            RouteAttribute::Source(route_address(local.address)),
            RouteAttribute::Mark(mark),
            RouteAttribute::IpProto(libc::IPPROTO_UDP as u8),
            RouteAttribute::Sport(port),
            RouteAttribute::Dport(remote.port()),
        ];
        let Ok(RouteNetlinkMessage::NewRoute(route)) =
            self.lookups.get(&RouteNetlinkMessage::GetRoute(request))
        else {
            return None;
        };
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(*interface),
            _ => None,
        })
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

/// Notes whether a way has moved.
pub(super) fn note(moved: &Moved, remote: IpAddr, local: LocalAddress, has_moved: bool) {
    let way = (remote, local);
    if moved.load().contains(&way) == has_moved {
        return;
    }
    tracing::debug!(
        "the source address for {remote} is {}",
        if has_moved { "routing's choice" } else { "kept" }
    );
    moved.rcu(|ways| {
        let mut ways = HashSet::clone(ways);
        if has_moved {
            ways.insert(way);
        } else {
            ways.remove(&way);
        }
        ways
    });
}

impl Changes {
    fn add(&mut self, message: &RawMessage<'_>) {
        let Ok(NetlinkPayload::InnerMessage(message)) = message.parse::<RouteNetlinkMessage>() else {
            return;
        };
        match message {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.networks.extend(destination(&route));
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                self.interfaces.insert(link.header.index);
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => self.everything = true,
            _ => {}
        }
    }

    fn any(&self) -> bool {
        self.everything || !self.networks.is_empty() || !self.interfaces.is_empty()
    }

    /// Whether the route to an endpoint may have moved. A link-local address has no other interface.
    fn concern(&self, endpoint: &Endpoint) -> bool {
        let is_link_local =
            |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        let Some(local) = endpoint.local.filter(|local| !is_link_local(local.address)) else { return false };
        let remote = endpoint.remote.ip();
        self.everything
            || self.interfaces.contains(&local.interface)
            || self.networks.iter().any(|network| network.contains(&remote))
    }
}

/// The destinations of a route.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    // A default route has no destination.
    let unspecified = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    IpNet::new(address.unwrap_or(unspecified), route.header.destination_prefix_length).ok()
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(remote: &str, local: &str, interface: u32) -> Endpoint {
        let local = LocalAddress { address: local.parse().unwrap(), interface };
        Endpoint { remote: SocketAddr::new(remote.parse().unwrap(), 51820), local: Some(local) }
    }

    #[test]
    fn a_change_concerns_the_endpoints_that_it_may_move() {
        let concerned = |changes: &Changes| {
            let all = [
                endpoint("192.0.2.1", "198.51.100.1", 2),
                endpoint("192.0.2.200", "203.0.113.1", 3),
                endpoint("2001:db8::1", "2001:db8:1::1", 2),
                endpoint("fe80::1", "fe80::2", 2),
                SocketAddr::from(([192, 0, 2, 1], 1)).into(),
            ];
            (0..all.len()).filter(|place| changes.concern(&all[*place])).collect::<Vec<_>>()
        };
        let network = |text: &str| Changes { networks: vec![text.parse().unwrap()], ..Changes::default() };
        assert_eq!(concerned(&Changes::default()), []);
        assert_eq!(concerned(&network("192.0.2.128/25")), [1]);
        assert_eq!(concerned(&network("0.0.0.0/0")), [0, 1]);
        assert_eq!(concerned(&network("::/0")), [2]);
        assert_eq!(concerned(&Changes { interfaces: [2].into(), ..Changes::default() }), [0, 2]);
        assert_eq!(concerned(&Changes { everything: true, ..Changes::default() }), [0, 1, 2]);
    }

    #[test]
    fn the_route_of_an_address_is_looked_up() {
        let moved = Moved::default();
        let mut watch = RouteWatch::open(&moved).unwrap();
        let own = endpoint("127.0.0.1", "127.0.0.1", 1);
        let loopback = watch.interface_towards(own.remote, own.local.unwrap(), 51820, 0);
        assert_eq!(loopback, Some(1));
        let foreign = endpoint("127.0.0.1", "127.0.0.1", 2);
        watch.waiting.extend([own, foreign]);
        assert!(!watch.follow(Vec::new, 51820, 0));
        assert_eq!(
            moved.load().iter().copied().collect::<Vec<_>>(),
            [(foreign.remote.ip(), foreign.local.unwrap())]
        );
        note(&moved, foreign.remote.ip(), foreign.local.unwrap(), false);
        assert!(moved.load().is_empty());
    }
}
