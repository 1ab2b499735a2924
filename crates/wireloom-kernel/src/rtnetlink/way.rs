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
    /// The MTU of the route, if it has one or the kernel has learnt one. Bytes.
    pub(crate) mtu: Option<u32>,
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
        // No route, and routes of the types `unreachable`, `prohibit` and `blackhole`.
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL)
            ) =>
        {
            Ok(None)
        }
        Err(error) if super::is_absent_family(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn decode(message: &RouteMessage) -> Option<Way> {
    // IPv6 answers with a route where IPv4 refuses.
    if matches!(message.header.kind, RouteType::Unreachable | RouteType::Prohibit | RouteType::BlackHole) {
        return None;
    }
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let metrics = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    let mtu = metrics.flatten().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Some(Way { interface: interface?, mtu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_and_a_learnt_mtu_are_read() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        assert_eq!(decode(&message), None, "no interface");
        message.attributes.push(RouteAttribute::Oif(7));
        assert_eq!(decode(&message), Some(Way { interface: 7, mtu: None }));
        message
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(3), RouteMetric::Mtu(1400)]));
        assert_eq!(decode(&message), Some(Way { interface: 7, mtu: Some(1400) }));
        message.header.kind = RouteType::Unreachable;
        assert_eq!(decode(&message), None);
    }
}
