//! Finds the ways of datagrams that have moved, when routes change.

use std::{
    collections::{HashSet, VecDeque},
    io, mem,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use wireloom_netlink::{Protocol, RawMessage, Received, Subscription};
use wireloom_proto::Endpoint;

use super::{
    routing::{Origin, Routing},
    sources::Sources,
};

/// The groups of rtnetlink(7) whose changes may move a route: `RTNLGRP_LINK` (a link that goes takes its IPv4 routes
/// along without a word), `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV4_RULE`, `RTNLGRP_IPV6_ROUTE`, `RTNLGRP_IPV6_RULE`.
const GROUPS: [u32; 5] = [1, 7, 8, 11, 19];
/// Room for notifications that wait to be read, in bytes. When it is full, anything may have changed.
const RECEIVE_BUFFER: usize = 208 << 10;
/// The most notifications that are read in one turn: about half a millisecond's work.
const READS: usize = 256;
/// The most routes that are looked up in one turn: each takes a few microseconds.
const LOOKUPS: usize = 16;
/// The most networks that are remembered until the endpoints are compared with them. With more changes than these,
/// anything may have changed.
const NETWORKS_MAX: usize = 4096;

/// Follows changes of routing, and finds the ways that have moved.
///
/// In a storm of changes, as when a router gets a whole table of the internet, an endpoint is looked up once for all
/// changes that come until all endpoints before it were: the work of a turn is bounded, and the number of networks does
/// not multiply it.
pub(super) struct RouteWatch {
    notifications: Subscription,
    routing: Routing,
    sources: Sources,
    /// What may have changed since `waiting` was filled.
    changes: Changes,
    /// Endpoints whose routes may have moved.
    waiting: VecDeque<Endpoint>,
}

/// What may have changed.
#[derive(Debug, Default)]
struct Changes {
    everything: bool,
    networks: HashSet<IpNet>,
    interfaces: HashSet<u32>,
}

/// The source addresses of a port that is about to be opened, with what finds those that no longer work.
pub(crate) struct FollowedRoutes {
    pub(super) sources: Sources,
    /// `None` when the system refuses it.
    pub(super) watch: Option<RouteWatch>,
}

impl FollowedRoutes {
    /// Begins to follow. That joins groups of netlink, which may wait for all senders of the machine
    /// (`netlink_table_grab` in net/netlink/af_netlink.c).
    pub(crate) fn open() -> Self {
        let sources = Sources::default();
        let watch = RouteWatch::open(&sources)
            .inspect_err(|error| tracing::warn!("changes of routes are not followed: {error}"))
            .ok();
        Self { sources, watch }
    }
}

impl RouteWatch {
    /// Begins to follow. All endpoints that have a source address are looked up first: routes may have changed while
    /// nobody followed them.
    fn open(sources: &Sources) -> io::Result<Self> {
        let notifications = Subscription::open(Protocol::Route, &GROUPS, RECEIVE_BUFFER)?;
        notifications.set_nonblocking(true)?;
        Ok(Self {
            notifications,
            routing: Routing::open()?,
            sources: sources.clone(),
            changes: Changes { everything: true, ..Changes::default() },
            waiting: VecDeque::new(),
        })
    }

    /// Looks some routes up, if there were changes. `endpoints` are those in use. `origin` is that of our datagrams.
    /// Returns whether there is more to do.
    pub(super) fn follow(&mut self, endpoints: impl FnOnce() -> Vec<Endpoint>, origin: Origin) -> bool {
        let more = self.read_changes();
        if self.waiting.is_empty() && (self.changes.any() || self.sources.has_grown()) {
            let endpoints = endpoints();
            self.sources.prune(&endpoints);
            self.waiting = mem::take(&mut self.changes).concerning(endpoints);
        }
        let mut ways = Vec::with_capacity(LOOKUPS);
        for endpoint in self.waiting.drain(..LOOKUPS.min(self.waiting.len())) {
            let Some(local) = endpoint.local else { continue };
            let interface = self.routing.interface(endpoint.remote, Some(local.address), origin);
            ways.push(((endpoint.remote.ip(), local), interface != Some(local.interface)));
        }
        self.sources.note_ways(&ways);
        more || !self.waiting.is_empty() || self.changes.any()
    }

    /// Reads what has changed. Returns whether more may wait.
    fn read_changes(&mut self) -> bool {
        for _ in 0..READS {
            match self.notifications.receive() {
                Ok(Received::Messages(messages)) => {
                    messages.map_while(Result::ok).for_each(|message| self.changes.add(&message));
                }
                Ok(Received::Overrun) => self.changes.everything = true,
                Err(_) => return false,
            }
        }
        true
    }
}

impl AsFd for RouteWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifications.as_fd()
    }
}

impl Changes {
    fn add(&mut self, message: &RawMessage<'_>) {
        let Ok(NetlinkPayload::InnerMessage(message)) = message.parse::<RouteNetlinkMessage>() else {
            return;
        };
        match message {
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.note_route(&route);
            }
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                self.interfaces.insert(link.header.index);
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => self.everything = true,
            _ => {}
        }
    }

    fn note_route(&mut self, route: &RouteMessage) {
        if !self.everything {
            self.networks.extend(destination(route));
            self.everything = self.networks.len() > NETWORKS_MAX;
        }
    }

    fn any(&self) -> bool {
        self.everything || !self.networks.is_empty() || !self.interfaces.is_empty()
    }

    /// The endpoints whose routes may have moved. A link-local address has no other interface.
    fn concerning(self, endpoints: Vec<Endpoint>) -> VecDeque<Endpoint> {
        let is_link_local =
            |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        // Without any that others contain, so that the last one before an address is the only one that may contain it.
        let mut networks = IpNet::aggregate(&self.networks.into_iter().collect());
        networks.sort_unstable();
        let has_changed = |remote: IpAddr| {
            let behind = networks.partition_point(|network| network.network() <= remote);
            behind > 0 && networks[behind - 1].contains(&remote)
        };
        let mut concerned = VecDeque::new();
        for endpoint in endpoints {
            if let Some(local) = endpoint.local.filter(|local| !is_link_local(local.address))
                && (self.everything
                    || self.interfaces.contains(&local.interface)
                    || has_changed(endpoint.remote.ip()))
            {
                concerned.push_back(endpoint);
            }
        }
        concerned
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use wireloom_proto::LocalAddress;

    use super::*;

    const ORIGIN: Origin = Origin { port: 51820, mark: 0 };

    fn endpoint(remote: &str, local: &str, interface: u32) -> Endpoint {
        let local = LocalAddress { address: local.parse().unwrap(), interface };
        Endpoint { remote: SocketAddr::new(remote.parse().unwrap(), 51820), local: Some(local) }
    }

    #[test]
    fn a_change_concerns_the_endpoints_that_it_may_move() {
        let all = [
            endpoint("192.0.2.1", "198.51.100.1", 2),
            endpoint("192.0.2.200", "203.0.113.1", 3),
            endpoint("2001:db8::1", "2001:db8:1::1", 2),
            endpoint("fe80::1", "fe80::2", 2),
            SocketAddr::from(([192, 0, 2, 1], 1)).into(),
        ];
        let concerned = |changes: Changes| {
            let concerned = changes.concerning(all.to_vec());
            (0..all.len()).filter(|place| concerned.contains(&all[*place])).collect::<Vec<_>>()
        };
        let networks = |texts: &[&str]| Changes {
            networks: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ..Changes::default()
        };
        assert_eq!(concerned(Changes::default()), []);
        assert_eq!(concerned(networks(&["192.0.2.128/25"])), [1]);
        assert_eq!(concerned(networks(&["0.0.0.0/0"])), [0, 1]);
        assert_eq!(concerned(networks(&["::/0"])), [2]);
        assert_eq!(concerned(networks(&["192.0.2.0/24", "192.0.2.64/26", "10.0.0.0/8", "::/0"])), [0, 1, 2]);
        assert_eq!(concerned(Changes { interfaces: [2].into(), ..Changes::default() }), [0, 2]);
        assert_eq!(concerned(Changes { everything: true, ..Changes::default() }), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn whatever_networks_change_the_endpoints_in_them_are_found(
            networks in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            near in any::<prop::sample::Index>(), random: u32, v6: bool,
        ) {
            let network = |(address, len): (u32, u8)| match v6 {
                false => IpNet::new(IpAddr::V4(address.into()), len),
                true => IpNet::new(IpAddr::V6(u128::from(address).into()), 96 + len),
            };
            let networks: HashSet<IpNet> = networks.into_iter().map(|net| network(net).unwrap()).collect();
            // Sometimes inside one of them, which a random address hardly ever is.
            let inside = networks.iter().nth(near.index(networks.len().max(1)));
            let remote = inside.map_or(IpAddr::V4(random.into()), IpNet::broadcast);
            let endpoint = endpoint(&remote.to_string(), "198.51.100.1", 2);
            let expected = networks.iter().any(|network| network.contains(&remote));
            let found = Changes { networks, ..Changes::default() }.concerning(vec![endpoint]);
            prop_assert_eq!(!found.is_empty(), expected);
        }
    }

    #[test]
    fn the_ways_that_are_in_use_are_looked_up_when_the_watch_begins() {
        let sources = Sources::default();
        let mut watch = RouteWatch::open(&sources).unwrap();
        let own = endpoint("127.0.0.1", "127.0.0.1", 1);
        let foreign = endpoint("127.0.0.1", "127.0.0.1", 2);
        let mut all = vec![own; 2 * LOOKUPS];
        all.push(foreign);
        // Other tests change nothing, but other programs may.
        let mut turns = 0;
        while watch.follow(|| all.clone(), ORIGIN) {
            turns += 1;
            assert!(turns < 1000);
        }
        assert!(turns >= 2, "the look-ups of a turn are bounded");
        let allows =
            |endpoint: Endpoint| sources.unusable().allow(endpoint.remote.ip(), endpoint.local.unwrap());
        assert!(allows(own) && !allows(foreign));
    }

    #[test]
    fn a_storm_of_changes_is_remembered_within_bounds() {
        let mut changes = Changes::default();
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.destination_prefix_length = 32;
        for number in 0..2 * NETWORKS_MAX as u32 {
            route.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(number.into()))];
            changes.note_route(&route);
        }
        assert!(changes.everything && changes.networks.len() <= NETWORKS_MAX + 1);
    }
}
