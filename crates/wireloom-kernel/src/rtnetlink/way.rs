//! The kernel's own choice of a route (`ip route get`).

use std::net::IpAddr;

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use nix::errno::Errno;
use wireloom_plan::routing::Family;

use super::{Rtnetlink, address_family};
use crate::error::Cause;

/// Where packets to an address leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    /// The index of the interface.
    pub(crate) interface: u32,
    /// The MTU that the route has, or that the kernel learnt from an ICMP error. Bytes.
    pub(crate) mtu: Option<u32>,
    /// Whether it was learnt. Such an entry expires.
    pub(crate) reported: bool,
    /// Whether it leads to another machine. That to an address of this one does not.
    pub(crate) leads_out: bool,
}

/// The way of this machine's own packets with this mark; `None` when they have none.
pub(crate) fn to(netlink: &mut Rtnetlink, destination: IpAddr, mark: u32) -> Result<Option<Way>, Cause> {
    let mut request = RouteMessage::default();
    request.header.address_family = address_family(Family::of(destination));
    // Strict checking (`inet_rtm_valid_getroute_req` in net/ipv4/route.c) takes single addresses only.
    request.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
    request.attributes.push(RouteAttribute::Destination(destination.into()));
    request.attributes.push(RouteAttribute::Mark(mark));
    match netlink.get(&RouteNetlinkMessage::GetRoute(request)) {
        Ok(RouteNetlinkMessage::NewRoute(message)) => Ok(decode(&message)),
        Ok(_) => Ok(None),
        Err(error) if error.errno().is_some_and(is_no_way) || super::is_absent_family(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// No route, or one of the types `unreachable`, `prohibit` and `blackhole`; EINVAL for addresses that nobody can have,
/// too. Anything else says nothing about the way.
fn is_no_way(errno: Errno) -> bool {
    matches!(errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
}

pub(super) fn decode(message: &RouteMessage) -> Option<Way> {
    let (mut interface, mut mtu, mut reported) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(value) => Some(*value).filter(|value| *value != 0),
                    _ => None,
                });
            }
            RouteAttribute::CacheInfo(info) => reported = info.expires != 0,
            _ => {}
        }
    }
    let kind = message.header.kind;
    // IPv6 answers with a route where IPv4 refuses.
    if matches!(kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole) {
        return None;
    }
    let leads_out = kind == RouteType::Unicast;
    Some(Way { interface: interface?, mtu, reported: reported && mtu.is_some(), leads_out })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteCacheInfo;

    use super::*;

    #[test]
    fn the_way_to_an_address_is_read() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        assert_eq!(decode(&message), None, "no interface");
        message.attributes.push(RouteAttribute::Oif(2));
        let way = Way { interface: 2, mtu: None, reported: false, leads_out: true };
        assert_eq!(decode(&message), Some(way));
        let metrics = vec![RouteMetric::Hoplimit(64), RouteMetric::Mtu(1400)];
        message.attributes.push(RouteAttribute::Metrics(metrics));
        assert_eq!(decode(&message), Some(Way { mtu: Some(1400), ..way }));
        message.attributes.push(RouteAttribute::CacheInfo(RouteCacheInfo::parse(&[9; 32]).unwrap()));
        assert_eq!(decode(&message), Some(Way { mtu: Some(1400), reported: true, ..way }));
        message.header.kind = RouteType::Local;
        assert!(!decode(&message).unwrap().leads_out, "this machine itself");
        message.header.kind = RouteType::Unreachable;
        assert_eq!(decode(&message), None);
    }

    #[test]
    fn a_failure_is_no_missing_way() {
        assert!(is_no_way(Errno::ENETUNREACH) && is_no_way(Errno::EHOSTUNREACH));
        assert!(!is_no_way(Errno::EPERM) && !is_no_way(Errno::ENOMEM) && !is_no_way(Errno::ENOBUFS));
    }
}
