//! The kernel as the shell observes it: everything that a plan depends on and changes.
//!
//! What makes each object ours is in ARCHITECTURE.md, "Kernel ownership".

mod apply;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{
    LinkAddress, PeerLookup, PresharedKeyHash, PublicKey, SourceCheck, interface::AGENT_ALIAS,
};

pub use self::apply::ApplyError;
use crate::{
    bypass::Bypass,
    connections::Connection,
    firewall::{Firewall, Guarded, Source},
    paths::Paths,
    routing::{Route, RouteKind, Rule},
    sysctl::{ALL, UnderlaySysctl},
};

/// Everything of the kernel that a plan depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Observed {
    /// The interface with our name, whoever made it.
    pub interface: Option<Interface>,
    /// The WireGuard device behind the interface. Absent when nothing answers for it, so that a new one must be started
    /// behind the interface, or both be recreated. (A failure that a retry may fix is an error of the shell, not an
    /// absence.)
    pub device: Option<Device>,
    /// The addresses on our interface, except link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// Our permanent neighbours on our interface, and their link addresses.
    pub neighbours: BTreeMap<IpAddr, LinkAddress>,
    /// Our host routes in the table `main`, out of our interface.
    pub link_routes: BTreeSet<IpAddr>,
    /// Every rule that looks up our table, at any priority, in the kernel's order.
    pub rules: Vec<Rule>,
    /// Every route in our table.
    pub routes: BTreeSet<Route>,
    /// Whether Calico's Felix programs this machine: nftables has chains of its name.
    pub felix: bool,
    /// One of [`PROPOSALS`](crate::ownership::PROPOSALS) that no rule and no route uses. Looked for only when our
    /// table is contested.
    pub free_table: Option<u32>,
    /// The interfaces that carry this node's own addresses, by name.
    pub underlays: BTreeMap<String, Underlay>,
    /// `net.ipv4.conf.all.send_redirects`. It or an interface's own sysctl enables redirects.
    pub send_redirects: bool,
    /// The values of underlay sysctls before we changed them, by interface, from the state directory.
    /// Includes interfaces that are no longer underlays.
    pub saved_sysctls: BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>,
    /// The chains of our nftables table `inet wireloom`.
    pub firewall: Option<Firewall>,
    /// The peers for which the table counts refused packets, one counter each.
    pub judged_peers: BTreeSet<LinkAddress>,
    /// The addresses that the table lets each peer send from.
    pub sources: BTreeSet<Source>,
    /// The elements of the guard's sets.
    pub guarded: BTreeSet<Guarded>,
    /// The interfaces other than ours that lead to other machines: those that carry one of this node's addresses
    /// outside its workloads, those of default routes, those that encapsulate, and network cards. By name, with
    /// `net.ipv4.conf.IFACE.rp_filter` of each.
    pub outward: BTreeMap<String, u8>,
    /// The addresses that this machine has, whoever configured them, with the prefix length of each; without those of
    /// our own interface and without link-local ones.
    pub here: BTreeSet<IpNet>,
    /// Those of them on interfaces that lead to other machines by their kind: network cards, and those that
    /// encapsulate.
    pub here_outward: BTreeSet<IpAddr>,
    /// `net.ipv4.conf.all.rp_filter`. The greater one of it and an interface's own applies.
    pub rp_filter_all: u8,
    /// The sysctls that make the kernel pass over the routes of our interface while no device is behind it, such as
    /// `net.ipv4.conf.all.ignore_routes_with_linkdown`. Empty for an interface that does not outlive its device.
    pub linkdown_ignored: BTreeSet<String>,
    /// What may pass by the guard.
    pub bypasses: BTreeSet<Bypass>,
    /// The paths to the endpoints of the device's peers.
    pub paths: Paths,
    /// The established TCP connections by which machines are administered. Looked for in host mode only.
    pub connections: BTreeSet<Connection>,
}

impl Observed {
    /// The value of a sysctl that we may set; `None` for an interface that is no underlay and does not lead outward.
    pub fn sysctl(&self, interface: &str, sysctl: UnderlaySysctl) -> Option<u8> {
        match sysctl {
            UnderlaySysctl::SendRedirects => (interface == ALL).then_some(u8::from(self.send_redirects)),
            UnderlaySysctl::RpFilter => {
                let underlay = self.underlays.get(interface).map(|underlay| underlay.rp_filter);
                underlay.or_else(|| self.outward.get(interface).copied())
            }
            UnderlaySysctl::SrcValidMark => Some(u8::from(self.underlays.get(interface)?.src_valid_mark)),
        }
    }

    /// The routes in our table to exactly this destination.
    pub fn routes_to(&self, destination: IpNet) -> impl Iterator<Item = &Route> {
        // The least of all routes to it: `Route` orders by destination first.
        let least = Route {
            destination,
            kind: RouteKind::Device { gateway: None, source: None, mtu: None },
            metric: 0,
            protocol: 0,
        };
        self.routes.range(least..).take_while(move |route| route.destination == destination)
    }

    /// Whether somebody else's route is in the place of this one, so that setting ours would replace it.
    pub(crate) fn is_blocked(&self, wanted: &Route) -> bool {
        self.routes_to(wanted.destination).any(|route| !route.is_ours() && route.metric == wanted.metric)
    }
}

/// The interface with our name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// `IFLA_IFALIAS`; that of our interface is [`AGENT_ALIAS`].
    pub alias: Option<String>,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The peer lookup that its kind allows: an Ethernet interface (TAP) has neighbours, a point-to-point
    /// interface (TUN, or the kernel's WireGuard) has none.
    pub peer_lookup: PeerLookup,
    /// The hardware address of an Ethernet interface; absent for others, and when it is not known.
    pub link_address: Option<LinkAddress>,
    /// It outlived its device, with its addresses, neighbours and routes, and a new device of the wanted back end can
    /// be started behind it: it is a persistent TUN or TAP that no process holds.
    pub left: bool,
    /// `net.ipv4.conf.IFACE.rp_filter`: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
}

impl Interface {
    /// Made by this agent or by an earlier one.
    pub fn is_ours(&self) -> bool {
        self.alias.as_deref() == Some(AGENT_ALIAS)
    }
}

/// A WireGuard device as its back end describes it, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Derived from the private key; absent when none is set.
    pub public_key: Option<PublicKey>,
    /// UDP port.
    pub listen_port: u16,
    /// The mark on the packets that the device sends; 0 is none.
    pub fwmark: u32,
    /// Who checks the sources of received packets.
    pub source_check: SourceCheck,
    /// All of its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// One peer of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Where the device sends to now: the configured endpoint, or one learnt by roaming.
    pub endpoint: Option<SocketAddr>,
    /// The endpoint that this agent last configured; absent after a restart, because nobody remembers it.
    pub configured_endpoint: Option<SocketAddr>,
    /// The peer's allowed-IPs.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The hash of its preshared key; absent: it has none.
    pub preshared_key: Option<PresharedKeyHash>,
    /// The time since the last handshake, if there was one.
    pub handshake_age: Option<Duration>,
}

/// An interface that carries this node's own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Underlay {
    /// Bytes.
    pub mtu: u32,
    /// Those of its addresses that packets may have as their source. IPv6 addresses in duplicate address
    /// detection are left out, because the kernel refuses a route with such a source.
    pub addresses: BTreeSet<IpAddr>,
    /// `net.ipv4.conf.IFACE.rp_filter`: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// `net.ipv4.conf.IFACE.src_valid_mark`.
    pub src_valid_mark: bool,
}
