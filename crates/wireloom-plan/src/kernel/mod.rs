//! The kernel as the shell observes it: the objects that the plan reads and changes.
//!
//! What makes each object ours is in ARCHITECTURE.md, "Kernel ownership".

mod apply;
mod rules;
mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wireloom_types::interface::AGENT_ALIAS;

pub use apply::ApplyError;
pub(crate) use rules::{find_rule, insert_rule};
pub use source::Source;

use wireloom_types::{LinkAddress, PeerLookup, PublicKey, SourceCheck};

/// `rtm_protocol` of our routes and `FRA_PROTOCOL` of our rules (unassigned in
/// `/etc/iproute2/rt_protos`; below 255).
pub const PROTOCOL: u8 = 157;

/// An address family that is routed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Of an address.
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

/// Everything of the kernel that a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The interface of our name, whoever made it.
    pub link: Option<Link>,
    /// The WireGuard device behind it; absent when nothing answers for it, so that it must
    /// be made anew (a failure that a retry may mend is the shell's error, not an absence).
    pub device: Option<Device>,
    /// Addresses on our interface, link-local ones left out.
    pub addresses: BTreeSet<IpNet>,
    /// The permanent neighbours on our interface that are ours.
    pub neighbours: BTreeMap<IpAddr, LinkAddress>,
    /// Our routes out of our interface in the table `main`, each to one address.
    pub link_routes: BTreeSet<IpAddr>,
    /// Every rule that looks up our table, at whatever priority, in the kernel's order.
    pub rules: Vec<Rule>,
    /// Every route in our table.
    pub routes: BTreeSet<Route>,
    /// The interfaces that carry this node's own addresses.
    pub underlays: BTreeMap<String, Underlay>,
    /// `net.ipv4.conf.all.send_redirects`, which holds for every interface beside its own.
    pub send_redirects: bool,
    /// What sysctls of underlay interfaces were before we changed them, from the state
    /// directory; also of interfaces that are underlays no longer.
    pub saved_sysctls: BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>,
    /// Our nftables table `inet wireloom`.
    pub firewall: Option<Firewall>,
    /// The peers whose refused packets it counts, each for itself.
    pub judged_peers: BTreeSet<LinkAddress>,
    /// Who may send from where.
    pub sources: BTreeSet<Source>,
}

/// The interface of our name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// `IFLA_IFALIAS`: ours says [`AGENT_ALIAS`].
    pub alias: Option<String>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// What its kind is good for: an Ethernet interface (TAP) is a link with neighbours, any
    /// other (TUN) is not.
    pub peer_lookup: PeerLookup,
}

/// A WireGuard device as read back from its back end; secrets stay in the shell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Derived from its private key; absent when none is set.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: u16,
    /// Mark on the packets that it sends; 0 is none.
    pub fwmark: u32,
    /// Who judges the sources of what it receives.
    pub source_check: SourceCheck,
    /// All of its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// One peer of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Where it sends to now: as configured, or as learnt by roaming.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint that this agent last configured; absent after a restart, when nobody remembers.
    pub configured_endpoint: Option<SocketAddr>,
    /// Its allowed-IPs.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Time since the last handshake, if there was one.
    pub handshake_age: Option<Duration>,
}

/// A policy rule that looks up our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rule {
    /// Which family's packets it matches.
    pub family: Family,
    /// `FRA_PRIORITY`.
    pub priority: u32,
    /// `FIB_RULE_INVERT`: inverts the *whole* match.
    pub invert: bool,
    /// Source prefix; absent is all.
    pub from: Option<IpNet>,
    /// Compared under the mask.
    pub mark: u32,
    /// 0: the mark is not looked at.
    pub mask: u32,
    /// The table that it looks up.
    pub table: u32,
    /// `FRA_PROTOCOL`; ours carry [`PROTOCOL`].
    pub protocol: u8,
    /// Selectors that Wireloom never writes, kept so that the rule can be deleted exactly.
    pub other: OtherSelectors,
}

/// Selectors of a rule that Wireloom never writes; empty in every rule that it does write.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct OtherSelectors {
    /// Destination prefix; absent is all.
    pub to: Option<IpNet>,
    /// The header's `tos`; 0 is any.
    pub tos: u8,
    /// Every further netlink attribute that selects (`FRA_IIFNAME`, `FRA_UID_RANGE`, …), type
    /// and payload. One that says "not set" (`FRA_SUPPRESS_PREFIXLEN` of all ones) is left out.
    pub attributes: BTreeMap<u16, Vec<u8>>,
}

/// A route in our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// What becomes of a packet.
    pub kind: RouteKind,
    /// Metric; ours have 0 for IPv4 and the kernel's default 1024 for IPv6.
    pub metric: u32,
    /// `rtm_protocol`; ours carry [`PROTOCOL`].
    pub protocol: u8,
}

impl Route {
    /// A route as Wireloom writes it.
    pub fn ours(destination: IpNet, kind: RouteKind) -> Self {
        // IP6_RT_PRIO_USER (include/uapi/linux/ipv6_route.h): what the kernel makes of an IPv6 metric of 0.
        let metric = if destination.addr().is_ipv4() { 0 } else { 1024 };
        Self { destination, kind, metric, protocol: PROTOCOL }
    }

    /// Made by this agent or one before it.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }
}

impl Observed {
    /// The value of one of the sysctls that we may set; none of an interface that is no underlay.
    pub fn sysctl(&self, interface: &str, sysctl: UnderlaySysctl) -> Option<u8> {
        match sysctl {
            UnderlaySysctl::SendRedirects => (interface == ALL).then_some(u8::from(self.send_redirects)),
            UnderlaySysctl::RpFilter => Some(self.underlays.get(interface)?.rp_filter),
            UnderlaySysctl::SrcValidMark => Some(u8::from(self.underlays.get(interface)?.src_valid_mark)),
        }
    }

    /// The routes in our table to exactly this destination.
    pub fn routes_to(&self, destination: IpNet) -> impl Iterator<Item = &Route> {
        // The least of all routes to it: `Route` orders by destination first.
        let least = Route {
            destination,
            kind: RouteKind::Device { gateway: None, source: None },
            metric: 0,
            protocol: 0,
        };
        self.routes.range(least..).take_while(move |route| route.destination == destination)
    }
}

impl Link {
    /// Made by this agent or one before it.
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(AGENT_ALIAS)
    }
}

/// What a route does with a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Out of our interface.
    Device {
        /// Next hop, in link mode.
        gateway: Option<IpAddr>,
        /// Preferred source address of the host's own packets.
        source: Option<IpAddr>,
    },
    /// Ends the lookup in this table: the next rule decides.
    Throw,
    /// Refused with an ICMP error.
    Unreachable,
    /// A shape that Wireloom never writes (only foreign routes have it).
    Other,
}

/// An interface that carries this node's own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// Bytes.
    pub mtu: u32,
    /// The addresses on it that packets may have as source: IPv6 ones whose duplicate address
    /// detection still runs are left out, since the kernel refuses a route with such a source.
    pub addresses: BTreeSet<IpAddr>,
    /// `net.ipv4.conf.IFACE.rp_filter`: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// `net.ipv4.conf.IFACE.src_valid_mark`.
    pub src_valid_mark: bool,
}

/// The name under which a sysctl holds for every interface.
pub const ALL: &str = "all";

/// The sysctls outside our interface that we may set (`net.ipv4.conf.IFACE.…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnderlaySysctl {
    /// Loose (2), because ARP requests go through source validation and carry no mark.
    RpFilter,
    /// 1, so that source validation uses the packet's mark.
    SrcValidMark,
    /// 0 on [`ALL`] (either of it and the interface's own suffices for redirects): on a link, the
    /// way from one peer to another leads back out of the interface that it came in by.
    SendRedirects,
}

/// The chains of `inet wireloom`. What is in its sets is [`Observed::judged_peers`] and
/// [`Observed::sources`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Incoming WireGuard packets to this port are marked before routing, so that
    /// source validation sees the same mark as the reply will carry (host mode).
    pub mark_incoming: Option<IncomingMark>,
    /// What comes out of our interface, a link, is refused and counted unless its source is among
    /// the sources of the peer whose link address it bears.
    pub judge_sources: bool,
    /// Somebody changed the table: something is in it, or missing from it, that no operation of
    /// ours leaves so. Never desired.
    pub altered: bool,
}

/// Marking of incoming WireGuard UDP, in prerouting at raw priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncomingMark {
    /// UDP destination port.
    pub port: u16,
    /// Or-ed into the packet's mark.
    pub mark: u32,
}
