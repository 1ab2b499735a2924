//! The objects of rtnetlink: each to and from its netlink messages, and the notifications of changes.

use std::net::IpAddr;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use wireloom_plan::routing::Family;

pub(crate) mod address;
pub(crate) mod classifier;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod interface;
pub(crate) mod link;
pub(crate) mod monitor;
pub(crate) mod neighbour;
mod netconf;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod way;

pub(crate) type Rtnetlink = wireloom_netlink::Client<RouteNetlinkMessage>;
pub(crate) type Request = wireloom_netlink::Request<RouteNetlinkMessage>;

/// Whether the kernel does not support the family that was asked for (IPv6 may be off).
fn is_absent_family(error: &wireloom_netlink::Error) -> bool {
    matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP))
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// `None` for a family that Wireloom does not route.
fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([0; 4]),
        Family::V6 => IpAddr::from([0; 16]),
    }
}
