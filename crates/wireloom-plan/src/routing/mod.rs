//! Routes and policy rules of the kernel.

mod iproute2;
mod rule;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub(crate) use self::iproute2::Protocol;
pub use self::rule::{OtherSelectors, Rule};
pub(crate) use self::rule::{find_rule, insert_rule};

/// `rtm_protocol` of our routes and `FRA_PROTOCOL` of our rules (unassigned in
/// `/etc/iproute2/rt_protos`; below 255).
pub const PROTOCOL: u8 = 157;

/// An address family; each is routed separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A route in our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// What the kernel does with a packet.
    pub kind: RouteKind,
    /// Metric; ours have 0 for IPv4 and the kernel's default 1024 for IPv6.
    pub metric: u32,
    /// `rtm_protocol`; ours have [`PROTOCOL`].
    pub protocol: u8,
}

impl Route {
    /// A route as Wireloom writes it.
    pub fn ours(destination: IpNet, kind: RouteKind) -> Self {
        // IP6_RT_PRIO_USER (include/uapi/linux/ipv6_route.h): the kernel turns an IPv6 metric of 0 into it.
        let metric = if destination.addr().is_ipv4() { 0 } else { 1024 };
        Self { destination, kind, metric, protocol: PROTOCOL }
    }

    /// Made by this agent or by an earlier one.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }
}

/// What a route does with a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Sends it out of our interface.
    Device {
        /// Next hop, in link mode.
        gateway: Option<IpAddr>,
        /// Preferred source address of the host's own packets.
        source: Option<IpAddr>,
        /// The longest packet, where that is less than the interface's MTU. Bytes.
        #[serde(skip_serializing_if = "Option::is_none")]
        mtu: Option<u32>,
    },
    /// Ends the lookup in this table: the next rule decides.
    Throw,
    /// Refuses it with an ICMP error.
    Unreachable,
    /// Anything else; only foreign routes do.
    Other(OtherRoute),
}

/// What a route does that Wireloom never writes, as far as a message names it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct OtherRoute {
    /// The route's type as iproute2 names it (`blackhole`); empty for `unicast`.
    pub kind: &'static str,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// The name of the interface that it leads out of.
    pub interface: Option<String>,
}
