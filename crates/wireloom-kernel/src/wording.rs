//! Operations and kernel objects in words for people, with the syntax of iproute2.

use std::{collections::BTreeSet, net::IpAddr};

use wireloom_plan::{
    firewall::{GuardSet, Guarded},
    op::{DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    routing::{Route, RouteKind, Rule},
};
use wireloom_types::{PeerLookup, SourceCheck};

/// What an operation does, worded to follow "cannot" or to be an entry of a list. `interface` is the name of
/// ours.
#[must_use]
pub fn op(op: &Op, interface: &str) -> String {
    match op {
        Op::Interface(op) => self::interface(op, interface),
        Op::Device(op) => device(op, interface),
        Op::Rtnetlink(op) => rtnetlink(op, interface),
        Op::Firewall(op) => firewall(op),
        Op::Sysctl(op) => sysctl(op),
    }
}

pub(crate) fn interface(op: &InterfaceOp, interface: &str) -> String {
    match op {
        InterfaceOp::Create { mtu, peer_lookup: PeerLookup::Destination, .. } => {
            format!("create {interface}, MTU {mtu}")
        }
        InterfaceOp::Create { mtu, peer_lookup: PeerLookup::Gateway, .. } => {
            format!("create {interface}, MTU {mtu}, in link mode with peers as neighbours")
        }
        InterfaceOp::StartDevice { .. } => format!("start a new device behind {interface}"),
        InterfaceOp::Remove => {
            format!("remove {interface}, with its device's sessions, its addresses and its routes")
        }
    }
}

pub(crate) fn device(op: &DeviceOp, interface: &str) -> String {
    match op {
        DeviceOp::Configure { public_key, listen_port, fwmark, source_check } => {
            let check = match source_check {
                SourceCheck::AllowedIps => "",
                SourceCheck::Firewall => ", sources checked by the firewall",
                SourceCheck::Off => ", sources not checked",
            };
            format!("configure {interface}: key {public_key}, port {listen_port}, fwmark {fwmark:#x}{check}")
        }
        DeviceOp::SetPeer(peer) => {
            let endpoint = peer.endpoint.map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
            let cidrs: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
            let cidrs = if cidrs.is_empty() { "nothing".into() } else { cidrs.join(" ") };
            let key =
                peer.preshared_key.map(|key| format!(", preshared key {key} (hash)")).unwrap_or_default();
            format!("set the peer {}{endpoint} for {cidrs}{key}", peer.public_key)
        }
        DeviceOp::RemovePeer { public_key } => format!("remove the peer {public_key}"),
    }
}

pub(crate) fn rtnetlink(op: &RtnetlinkOp, interface: &str) -> String {
    match op {
        RtnetlinkOp::SetLinkAddress { link_address } => {
            format!("set the link address of {interface} to {link_address}")
        }
        RtnetlinkOp::SetMtu { mtu } => format!("set the MTU of {interface} to {mtu}"),
        RtnetlinkOp::SetUp => format!("bring {interface} up"),
        RtnetlinkOp::AddAddress { address } => format!("add the address {address} to {interface}"),
        RtnetlinkOp::RemoveAddress { address } => format!("remove the address {address} from {interface}"),
        RtnetlinkOp::SetNeighbour { address, link_address } => {
            format!("set the neighbour `{address} dev {interface} lladdr {link_address} nud permanent`")
        }
        RtnetlinkOp::RemoveNeighbour { address } => {
            format!("remove the neighbour {address} from {interface}")
        }
        RtnetlinkOp::AddLinkRoute { address } => {
            format!("add the route `{address} dev {interface}` to the table main")
        }
        RtnetlinkOp::RemoveLinkRoute { address } => {
            format!("remove the route `{address} dev {interface}` from the table main")
        }
        RtnetlinkOp::SetRoute(to) => format!("set the route `{}`", route(to, interface)),
        RtnetlinkOp::RemoveRoute(to) => format!("remove the route `{}`", route(to, interface)),
        RtnetlinkOp::AddRule(the) => format!("add the rule `{}`", rule(the)),
        RtnetlinkOp::RemoveRule(the) => format!("remove the rule `{}`", rule(the)),
    }
}

pub(crate) fn firewall(op: &FirewallOp) -> String {
    match op {
        FirewallOp::Set { anew: true, .. } => "recreate the nftables table `inet wireloom`".into(),
        FirewallOp::Set { anew: false, .. } => "set the chains of the nftables table `inet wireloom`".into(),
        FirewallOp::JudgePeer { peer } => format!("count the packets of {peer} that the firewall refuses"),
        FirewallOp::ForgetPeer { peer } => {
            format!("stop counting the packets of {peer} that the firewall refuses")
        }
        FirewallOp::AdmitSource(source) => format!("let {} send from {}", source.peer, source.addresses),
        FirewallOp::RefuseSource(source) => {
            format!("stop letting {} send from {}", source.peer, source.addresses)
        }
        FirewallOp::ReplaceSources { sources } => {
            let peers: BTreeSet<_> = sources.iter().map(|source| source.peer).collect();
            format!(
                "let {} peers send from {} address ranges, and from no others",
                peers.len(),
                sources.len()
            )
        }
        FirewallOp::Guard(Guarded { set, addresses }) => match set {
            GuardSet::RefusedOut => format!("refuse to send to {addresses} in plaintext"),
            GuardSet::RefusedIn => format!("refuse what comes from {addresses} in plaintext"),
            GuardSet::Own => format!("guard what {addresses} of this node sends and receives"),
            GuardSet::Pools => format!("count {addresses} among the pools"),
            GuardSet::Nodes => format!("let {addresses}, which a node has, send and receive in plaintext"),
            GuardSet::Exempt => format!("keep what has {addresses} at one end out of the tunnel"),
            GuardSet::Tolerated => format!("take what has {addresses} at one end in plaintext too"),
        },
        FirewallOp::Unguard(Guarded { set, addresses }) => match set {
            GuardSet::RefusedOut => format!("stop refusing to send to {addresses} in plaintext"),
            GuardSet::RefusedIn => format!("stop refusing what comes from {addresses} in plaintext"),
            GuardSet::Own => format!("stop guarding {addresses}"),
            GuardSet::Pools => format!("stop counting {addresses} among the pools"),
            GuardSet::Nodes => format!("stop taking {addresses} for those of a node"),
            GuardSet::Exempt => format!("stop keeping {addresses} out of the tunnel"),
            GuardSet::Tolerated => format!("stop taking plaintext because of {addresses}"),
        },
        FirewallOp::Remove => "remove the nftables table `inet wireloom`".into(),
    }
}

fn sysctl(op: &SysctlOp) -> String {
    match op {
        SysctlOp::Set { interface, sysctl, value } => {
            format!("set net.ipv4.conf.{interface}.{} to {value}", sysctl.name())
        }
        SysctlOp::Restore { interface, sysctl } => {
            format!("restore net.ipv4.conf.{interface}.{}", sysctl.name())
        }
        SysctlOp::SetOwnRpFilter { value } => format!("set rp_filter of our interface to {value}"),
    }
}

/// A rule as `ip rule show` prints it, after its family.
#[must_use]
pub fn rule(rule: &Rule) -> String {
    format!("{} {rule}", rule.family)
}

/// A route as `ip route show` prints it. `interface` is the name of ours.
pub(crate) fn route(route: &Route, interface: &str) -> String {
    match &route.kind {
        RouteKind::Device { gateway, source, mtu } => {
            let inet6 = |gateway: &IpAddr| route.destination.addr().is_ipv4() && gateway.is_ipv6();
            let via = gateway
                .map(|gateway| format!(" via {}{gateway}", if inet6(&gateway) { "inet6 " } else { "" }))
                .unwrap_or_default();
            let src = source.map(|source| format!(" src {source}")).unwrap_or_default();
            let mtu = mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
            format!("{}{via} dev {interface}{src}{mtu}", route.destination)
        }
        RouteKind::Throw => format!("throw {}", route.destination),
        RouteKind::Unreachable => format!("unreachable {}", route.destination),
        RouteKind::Other(_) => route.to_string(),
    }
}
