//! Routes of our table, and routes to neighbours in the table `main` (`ip route`).

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
        RouteType, RouteVia,
    },
};
use nix::{errno::Errno, net::if_::if_indextoname};
use wireloom_plan::{
    health::Prefixes,
    routing::{Family, OtherRoute, PROTOCOL, Route, RouteKind},
};

use super::{Request, Rtnetlink, address_family, is_absent_family, unspecified};
use crate::error::Cause;

/// `RT_TABLE_DEFAULT`, `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` of include/uapi/linux/rtnetlink.h.
pub(crate) const DEFAULT: u32 = 253;
pub(crate) const MAIN: u32 = 254;
pub(crate) const LOCAL: u32 = 255;

/// Every route in the table. Those out of our interface (given by its index, if it exists) are
/// [`RouteKind::Device`]; shapes that Wireloom never writes are [`RouteKind::Other`].
pub(crate) fn observe(
    netlink: &mut Rtnetlink,
    table: u32,
    interface: Option<u32>,
) -> Result<BTreeSet<Route>, Cause> {
    let mut routes = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        // With strict checking, the kernel filters by it.
        request.attributes.push(RouteAttribute::Table(table));
        routes.extend(dump(netlink, request)?.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) if table_of(&message) == table => {
                decode(&message, interface)
            }
            _ => None,
        }));
    }
    Ok(routes)
}

/// The destinations of the routes in the table that have an address in common with one of these prefixes, but for
/// `throw` routes, which lead nowhere. A table may have a million routes.
pub(crate) fn observe_destinations(
    netlink: &mut Rtnetlink,
    table: u32,
    overlapping: &Prefixes<'_>,
) -> Result<BTreeSet<IpNet>, Cause> {
    let mut destinations = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.attributes.push(RouteAttribute::Table(table));
        destinations.extend(dump_some(netlink, request, |message| match message {
            RouteNetlinkMessage::NewRoute(message) if table_of(&message) == table => {
                destination(&message).filter(|to| overlapping.any_overlaps(*to, 0))
            }
            _ => None,
        })?);
    }
    Ok(destinations)
}

/// `None` for a `throw` route, and for one of another family.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let unspecified = unspecified(super::family(message.header.address_family)?);
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let leads = message.header.kind != RouteType::Throw;
    let length = message.header.destination_prefix_length;
    IpNet::new(address.unwrap_or(unspecified), length).ok().filter(|_| leads)
}

/// Whether the table has no routes.
pub(crate) fn is_empty(netlink: &mut Rtnetlink, table: u32) -> Result<bool, Cause> {
    Ok(observe(netlink, table, None)?.is_empty())
}

/// The destinations of our host routes out of our interface in the table `main`.
pub(crate) fn observe_link_routes(
    netlink: &mut Rtnetlink,
    interface: u32,
) -> Result<BTreeSet<IpAddr>, Cause> {
    let mut addresses = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        // With strict checking, the kernel filters by all three.
        request.header.protocol = PROTOCOL.into();
        request.attributes.push(RouteAttribute::Table(MAIN));
        request.attributes.push(RouteAttribute::Oif(interface));
        addresses.extend(dump(netlink, request)?.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(message) if table_of(message) == MAIN => {
                let route = decode(message, Some(interface))?;
                let single = route.destination.prefix_len() == route.destination.max_prefix_len();
                let ours = route.is_ours() && matches!(route.kind, RouteKind::Device { .. });
                (ours && single).then_some(route.destination.addr())
            }
            _ => None,
        }));
    }
    Ok(addresses)
}

/// The interfaces (by index) of default routes in these tables.
pub(crate) fn observe_onward(
    netlink: &mut Rtnetlink,
    tables: &BTreeSet<u32>,
) -> Result<BTreeSet<u32>, Cause> {
    let mut interfaces = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for table in tables {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            // With strict checking, the kernel filters by both.
            request.header.kind = RouteType::Unicast;
            request.attributes.push(RouteAttribute::Table(*table));
            // Almost all routes of a large table lead to single networks.
            let found = dump_some(netlink, request, |message| match message {
                RouteNetlinkMessage::NewRoute(message) => {
                    Some(onward(&message)).filter(|interfaces| !interfaces.is_empty())
                }
                _ => None,
            })?;
            interfaces.extend(found.into_iter().flatten());
        }
    }
    Ok(interfaces)
}

/// The interfaces (by index) by which a default route leads to other machines. Another route with a gateway may lead to
/// a pod that is a gateway itself, by the interface of all pods.
pub(crate) fn onward(message: &RouteMessage) -> Vec<u32> {
    if message.header.kind != RouteType::Unicast || message.header.destination_prefix_length != 0 {
        return Vec::new();
    }
    let mut interfaces = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    interfaces
}

/// The routes of the table `main` to destinations that `wanted` admits: unicast, of one interface (given by its index),
/// without a gateway.
pub(crate) fn observe_direct(
    netlink: &mut Rtnetlink,
    wanted: impl Fn(IpNet) -> bool,
) -> Result<Vec<(IpNet, u32)>, Cause> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        // With strict checking, the kernel filters by both.
        request.header.kind = RouteType::Unicast;
        request.attributes.push(RouteAttribute::Table(MAIN));
        routes.extend(dump_some(netlink, request, |message| match message {
            RouteNetlinkMessage::NewRoute(message) => direct(&message).filter(|(to, _)| wanted(*to)),
            _ => None,
        })?);
    }
    Ok(routes)
}

/// The destination and the interface (by index) of a route as [`observe_direct`] looks for.
pub(crate) fn direct(message: &RouteMessage) -> Option<(IpNet, u32)> {
    if message.header.kind != RouteType::Unicast || table_of(message) != MAIN {
        return None;
    }
    let mut interface = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                return None;
            }
            _ => {}
        }
    }
    Some((destination(message)?, interface?))
}

/// Empty when the kernel has no such table or does not support the family.
fn dump(netlink: &mut Rtnetlink, request: RouteMessage) -> Result<Vec<RouteNetlinkMessage>, Cause> {
    dump_some(netlink, request, Some)
}

/// As [`dump`], without what `keep` leaves out.
fn dump_some<T>(
    netlink: &mut Rtnetlink,
    request: RouteMessage,
    keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> Result<Vec<T>, Cause> {
    match netlink.dump_some(&RouteNetlinkMessage::GetRoute(request), keep) {
        // inet_dump_fib: a table without routes need not exist.
        Err(error) if error.errno() == Some(Errno::ENOENT) || is_absent_family(&error) => Ok(Vec::new()),
        dumped => Ok(dumped?),
    }
}

pub(crate) fn add_link_route(address: IpAddr, interface: u32) -> Result<Request, Cause> {
    set(&link_route(address), MAIN, Some(interface))
}

pub(crate) fn remove_link_route(address: IpAddr, interface: u32) -> Result<Request, Cause> {
    remove(&link_route(address), MAIN, Some(interface))
}

fn link_route(address: IpAddr) -> Route {
    Route::ours(address.into(), RouteKind::Device { gateway: None, source: None, mtu: None })
}

/// Whether a notification is about one of our routes to neighbours.
pub(crate) fn concerns_link_routes(message: &RouteMessage, interface: u32) -> bool {
    message.header.protocol == PROTOCOL.into()
        && table_of(message) == MAIN
        && message.attributes.contains(&RouteAttribute::Oif(interface))
}

/// `NLM_F_REPLACE` finds the route with the same destination and metric, whatever its kind.
pub(crate) fn set(route: &Route, table: u32, interface: Option<u32>) -> Result<Request, Cause> {
    let message = RouteNetlinkMessage::NewRoute(encode(route, table, interface)?);
    Ok(Request { message, flags: NLM_F_CREATE | NLM_F_REPLACE })
}

pub(crate) fn remove(route: &Route, table: u32, interface: Option<u32>) -> Result<Request, Cause> {
    Ok(Request { message: RouteNetlinkMessage::DelRoute(encode(route, table, interface)?), flags: 0 })
}

/// Whether a notification is about a route of the table.
pub(crate) fn concerns(message: &RouteMessage, table: u32) -> bool {
    table_of(message) == table
}

fn table_of(message: &RouteMessage) -> u32 {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(message.header.table.into())
}

pub(super) fn encode(route: &Route, table: u32, interface: Option<u32>) -> Result<RouteMessage, Cause> {
    let mut message = RouteMessage::default();
    let mut scope = RouteScope::Universe;
    let mut flags = RouteFlags::empty();
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(table));
    attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let kind = match &route.kind {
        RouteKind::Device { gateway, source, mtu } => {
            let interface = interface.ok_or_else(|| Cause::Transient("our interface is gone".into()))?;
            attributes.push(RouteAttribute::Oif(interface));
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
            attributes.extend(mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
            match gateway {
                Some(gateway) => {
                    attributes.push(next_hop(*gateway, route.destination));
                    // A peer is always a neighbour, whichever route leads to its address.
                    flags = RouteFlags::Onlink;
                }
                // ip-route(8): "for direct unicast routes, link"; IPv6 has no scopes.
                None if route.destination.addr().is_ipv4() => scope = RouteScope::Link,
                None => {}
            }
            RouteType::Unicast
        }
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Unreachable => RouteType::Unreachable,
        RouteKind::Other(_) => {
            return Err(Cause::Permanent("it is of a kind that Wireloom does not write".into()));
        }
    };
    message.header = RouteHeader {
        address_family: address_family(Family::of(route.destination.addr())),
        destination_prefix_length: route.destination.prefix_len(),
        // RT_TABLE_UNSPEC: RTA_TABLE decides, which has room for every table number.
        table: 0,
        protocol: route.protocol.into(),
        scope,
        kind,
        flags,
        ..RouteHeader::default()
    };
    Ok(message)
}

/// A next hop of the other family needs `RTA_VIA` (RFC 5549; `ip route add … via inet6 …`).
fn next_hop(gateway: IpAddr, destination: IpNet) -> RouteAttribute {
    match (gateway, destination) {
        (IpAddr::V6(gateway), IpNet::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        (IpAddr::V4(gateway), IpNet::V6(_)) => RouteAttribute::Via(RouteVia::Inet(gateway)),
        _ => RouteAttribute::Gateway(gateway.into()),
    }
}

/// `None` for a route of another family, and for one that does not parse.
pub(super) fn decode(message: &RouteMessage, interface: Option<u32>) -> Option<Route> {
    let mut destination = unspecified(super::family(message.header.address_family)?);
    let mut metric = 0;
    let (mut gateway, mut source, mut out, mut mtu) = (None, None, None, None);
    let mut plain = message.header.tos == 0 && message.header.source_prefix_length == 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => out = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => match metrics.as_slice() {
                [RouteMetric::Mtu(value)] => mtu = Some(*value),
                _ => plain = false,
            },
            // The table is known; the others are the kernel's own bookkeeping.
            RouteAttribute::Table(_) | RouteAttribute::CacheInfo(_) | RouteAttribute::Preference(_) => {}
            _ => plain = false,
        }
    }
    let kind = match message.header.kind {
        RouteType::Throw if plain && mtu.is_none() => RouteKind::Throw,
        RouteType::Unreachable if plain && mtu.is_none() => RouteKind::Unreachable,
        RouteType::Unicast if plain && out.is_some() && out == interface => {
            RouteKind::Device { gateway, source, mtu }
        }
        kind => RouteKind::Other(OtherRoute {
            kind: name_of(kind),
            gateway,
            interface: out.and_then(|index| if_indextoname(index).ok()?.into_string().ok()),
        }),
    };
    Some(Route {
        destination: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        kind,
        metric,
        protocol: message.header.protocol.into(),
    })
}

/// The type as iproute2 names it (`rtnl_rtntype_n2a`); empty for unicast, which it leaves out.
fn name_of(kind: RouteType) -> &'static str {
    match kind {
        RouteType::Unicast => "",
        RouteType::Local => "local",
        RouteType::Broadcast => "broadcast",
        RouteType::Anycast => "anycast",
        RouteType::Multicast => "multicast",
        RouteType::BlackHole => "blackhole",
        RouteType::Unreachable => "unreachable",
        RouteType::Prohibit => "prohibit",
        RouteType::Throw => "throw",
        RouteType::Nat => "nat",
        _ => "(of another type)",
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    const WG0: u32 = 7;

    fn route(destination: &str, kind: RouteKind) -> Route {
        let destination: IpNet = destination.parse().unwrap();
        let metric = if destination.addr().is_ipv4() { 0 } else { 1024 };
        Route { destination, kind, metric, protocol: 157 }
    }

    fn device(gateway: Option<&str>, source: Option<&str>) -> RouteKind {
        let address = |text: &str| text.parse().unwrap();
        RouteKind::Device { gateway: gateway.map(address), source: source.map(address), mtu: None }
    }

    fn through_bytes(message: &RouteMessage) -> RouteMessage {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        RouteMessage::parse(bytes.as_slice()).unwrap()
    }

    #[test]
    fn every_route_is_read_back_as_written() {
        let routes = [
            route("10.161.2.0/24", device(None, None)),
            route("10.161.2.0/24", device(None, Some("192.0.2.1"))),
            route("10.161.2.0/24", device(Some("100.64.0.2"), None)),
            route("10.161.2.0/24", device(Some("fe80::2"), None)),
            route("10.161.2.0/24", RouteKind::Device { gateway: None, source: None, mtu: Some(1328) }),
            route("fd61:0:0:2::/64", device(None, Some("2001:db8::1"))),
            route("10.161.1.7/32", RouteKind::Throw),
            route("fd61:0:0:1::/64", RouteKind::Throw),
            route("10.161.0.0/16", RouteKind::Unreachable),
            route("0.0.0.0/0", RouteKind::Unreachable),
        ];
        for route in routes {
            let message = through_bytes(&encode(&route, 51820, Some(WG0)).unwrap());
            assert_eq!(table_of(&message), 51820);
            assert_eq!(decode(&message, Some(WG0)), Some(route));
        }
    }

    #[test]
    fn a_throw_route_leads_to_no_destination() {
        for (kind, leads) in
            [(device(None, None), true), (RouteKind::Unreachable, true), (RouteKind::Throw, false)]
        {
            for prefix in ["10.161.2.0/24", "fd61:0:0:2::/64", "0.0.0.0/0", "::/0"] {
                let message = through_bytes(&encode(&route(prefix, kind.clone()), 254, Some(WG0)).unwrap());
                assert_eq!(destination(&message), leads.then(|| prefix.parse().unwrap()));
            }
        }
    }

    #[test]
    fn a_direct_route_leads_to_an_interface_without_a_gateway() {
        let read = |gateway, table| {
            let route = route("10.162.0.2/32", device(gateway, None));
            direct(&through_bytes(&encode(&route, table, Some(WG0)).unwrap()))
        };
        assert_eq!(read(None, MAIN), Some(("10.162.0.2/32".parse().unwrap(), WG0)));
        assert_eq!(read(Some("192.0.2.1"), MAIN), None);
        assert_eq!(read(None, 1), None);
    }

    #[test]
    fn a_route_out_of_another_interface_is_other() {
        let message = encode(&route("10.161.2.0/24", device(None, None)), 1, Some(WG0)).unwrap();
        assert!(matches!(decode(&message, Some(8)).unwrap().kind, RouteKind::Other(_)));
        assert!(matches!(decode(&message, None).unwrap().kind, RouteKind::Other(_)));
    }

    #[test]
    fn a_route_with_a_selector_that_wireloom_never_writes_is_other() {
        let mut message = encode(&route("10.161.2.0/24", RouteKind::Throw), 1, None).unwrap();
        message.header.tos = 4;
        let kind = decode(&message, None).unwrap().kind;
        assert!(matches!(kind, RouteKind::Other(OtherRoute { kind: "throw", .. })), "{kind:?}");
    }

    #[test]
    fn a_route_through_an_absent_interface_is_an_error() {
        assert!(encode(&route("10.161.2.0/24", device(None, None)), 1, None).is_err());
    }
}
