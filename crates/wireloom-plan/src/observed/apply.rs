//! The in-memory twin of the kernel: what each operation does, and what the kernel refuses.
//!
//! Tests run plans against it, and the reconcile loop keeps its mirror of the kernel up to date with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PeerLookup, PublicKey, interface::AGENT_ALIAS};

use super::{Device, Interface, Observed, Peer};
use crate::{
    firewall::{Guarded, Source},
    op::{self, DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SetPeer, Step, SysctlOp},
    routing::{Route, RouteKind, find_rule, insert_rule},
    sysctl::{ALL, UnderlaySysctl},
};

/// A refusal of the kernel. A plan that was made for the kernel's current state never meets one; the fix is to
/// observe again and make a new plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// `EEXIST`
    #[error("the interface exists already")]
    InterfaceExists,
    /// `ENODEV`
    #[error("there is no interface with our name")]
    NoInterface,
    /// `ENETDOWN`
    #[error("route {0}: the interface is down")]
    InterfaceDown(IpNet),
    /// Nothing answers for the device.
    #[error("there is no WireGuard device")]
    NoDevice,
    /// `EINVAL`: a preferred source must be an address of this machine.
    #[error("route {0}: its preferred source is not an address of this machine")]
    NoSuchSource(IpNet),
    /// `EEXIST`
    #[error("address {0} exists already")]
    AddressExists(IpNet),
    /// `ENOENT`
    #[error("there is no neighbour {0}")]
    NoSuchNeighbour(IpAddr),
    /// `EADDRNOTAVAIL`
    #[error("address {0} does not exist")]
    NoSuchAddress(IpNet),
    /// `ESRCH`
    #[error("route {0} does not exist")]
    NoSuchRoute(IpNet),
    /// `ENOENT`
    #[error("no rule at priority {0} matches")]
    NoSuchRule(u32),
    /// `ENOENT`
    #[error("table `inet wireloom`, or the chain or set that is needed of it, does not exist")]
    NoFirewall,
    /// `ENOENT`
    #[error("no counter exists for the refused packets of {0}")]
    NoSuchPeer(LinkAddress),
    /// `ENOENT`
    #[error("source `{0}` is not admitted")]
    NoSuchSourceOfPeer(Source),
    /// `EEXIST` or `ENOTEMPTY`
    #[error("source `{0}` overlaps another source of its peer")]
    OverlappingSource(Source),
    /// `ENOENT`
    #[error("the set {:?} of the guard does not hold {}", .0.set, .0.addresses)]
    NotGuarded(Guarded),
    /// `EEXIST` or `ENOTEMPTY`
    #[error("{} overlaps another element of the set {:?} of the guard", .0.addresses, .0.set)]
    OverlappingGuarded(Guarded),
    /// `ENOENT`
    #[error("{0} is not an underlay interface")]
    NoSuchUnderlay(String),
    /// There is nothing to restore.
    #[error("no earlier value of this sysctl of {0} is recorded")]
    NotRecorded(String),
}

impl Observed {
    /// Does to this picture of the kernel what the operation does to the kernel.
    ///
    /// # Errors
    /// The kernel would refuse the operation; the picture is then unchanged.
    pub fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        self.apply_all(std::slice::from_ref(op))
    }

    /// [`apply`](Self::apply) for a list. Consecutive [`DeviceOp::SetPeer`] are one transaction and cost one
    /// pass over the device's peers.
    ///
    /// # Errors
    /// The first operation that the kernel would refuse; those before it are done.
    pub fn apply_all(&mut self, ops: &[Op]) -> Result<(), ApplyError> {
        for step in op::steps(ops) {
            match step {
                Step::Interface(op) => self.change_interface(op)?,
                Step::Device(ops) => self.change_device(&ops)?,
                Step::Rtnetlink(ops) => ops.into_iter().try_for_each(|op| self.change_rtnetlink(op))?,
                Step::Firewall(ops) => ops.into_iter().try_for_each(|op| self.change_firewall(op))?,
                Step::Sysctl(op) => self.change_sysctl(op)?,
            }
        }
        Ok(())
    }

    fn change_interface(&mut self, op: &InterfaceOp) -> Result<(), ApplyError> {
        match op {
            InterfaceOp::Create { mtu, peer_lookup, source_check } => {
                if self.interface.is_some() {
                    return Err(ApplyError::InterfaceExists);
                }
                let alias = Some(AGENT_ALIAS.to_owned());
                self.interface = Some(Interface {
                    alias,
                    mtu: *mtu,
                    up: false,
                    peer_lookup: *peer_lookup,
                    // A random one, which the key replaces.
                    link_address: None,
                    left: false,
                    rp_filter: 0,
                });
                self.device = Some(Device { source_check: *source_check, ..Device::default() });
            }
            InterfaceOp::StartDevice { source_check } => {
                self.interface.as_mut().ok_or(ApplyError::NoInterface)?.left = false;
                self.device = Some(Device { source_check: *source_check, ..Device::default() });
            }
            InterfaceOp::Remove => {
                self.interface.as_ref().ok_or(ApplyError::NoInterface)?;
                self.forget_interface();
            }
        }
        Ok(())
    }

    fn change_device(&mut self, ops: &[&DeviceOp]) -> Result<(), ApplyError> {
        let device = self.device.as_mut().ok_or(ApplyError::NoDevice)?;
        for run in
            ops.chunk_by(|one, next| matches!((one, next), (DeviceOp::SetPeer(_), DeviceOp::SetPeer(_))))
        {
            match run[0] {
                DeviceOp::Configure { public_key, listen_port, fwmark, source_check } => {
                    if device.public_key != Some(*public_key) {
                        // The hardware address changes with the key (neigh_changeaddr, net/core/neighbour.c).
                        self.neighbours.clear();
                        if let Some(interface) = self
                            .interface
                            .as_mut()
                            .filter(|interface| interface.peer_lookup == PeerLookup::Gateway)
                        {
                            interface.link_address = Some(LinkAddress::of(*public_key));
                        }
                    }
                    device.source_check = *source_check;
                    device.public_key = Some(*public_key);
                    device.listen_port = *listen_port;
                    device.fwmark = *fwmark;
                    // A device is never its own peer (wg_set_device, drivers/net/wireguard/netlink.c).
                    device.peers.remove(public_key);
                }
                DeviceOp::SetPeer(_) => device.set_peers(run.iter().filter_map(|op| match op {
                    DeviceOp::SetPeer(peer) => Some(peer),
                    _ => None,
                })),
                DeviceOp::RemovePeer { public_key } => {
                    device.peers.remove(public_key);
                }
            }
        }
        Ok(())
    }

    fn change_rtnetlink(&mut self, op: &RtnetlinkOp) -> Result<(), ApplyError> {
        match op {
            RtnetlinkOp::SetMtu { mtu } => self.interface.as_mut().ok_or(ApplyError::NoInterface)?.mtu = *mtu,
            RtnetlinkOp::SetLinkAddress { link_address } => {
                let interface = self.interface.as_mut().ok_or(ApplyError::NoInterface)?;
                interface.link_address = Some(*link_address);
                self.neighbours.clear();
            }
            RtnetlinkOp::SetUp => self.interface.as_mut().ok_or(ApplyError::NoInterface)?.up = true,
            RtnetlinkOp::AddAddress { address } => {
                self.interface.as_ref().ok_or(ApplyError::NoInterface)?;
                if !self.addresses.insert(*address) {
                    return Err(ApplyError::AddressExists(*address));
                }
            }
            RtnetlinkOp::RemoveAddress { address } => {
                if !self.addresses.remove(address) {
                    return Err(ApplyError::NoSuchAddress(*address));
                }
            }
            RtnetlinkOp::SetNeighbour { address, link_address } => {
                self.interface_that_is_up(IpNet::from(*address))?;
                self.neighbours.insert(*address, *link_address);
            }
            RtnetlinkOp::RemoveNeighbour { address } => {
                self.neighbours.remove(address).ok_or(ApplyError::NoSuchNeighbour(*address))?;
            }
            RtnetlinkOp::AddLinkRoute { address } => {
                self.interface_that_is_up(IpNet::from(*address))?;
                self.link_routes.insert(*address);
            }
            RtnetlinkOp::RemoveLinkRoute { address } => {
                if !self.link_routes.remove(address) {
                    return Err(ApplyError::NoSuchRoute(IpNet::from(*address)));
                }
            }
            RtnetlinkOp::SetRoute(route) => self.set_route(route)?,
            RtnetlinkOp::RemoveRoute(route) => {
                if !self.routes.remove(route) {
                    return Err(ApplyError::NoSuchRoute(route.destination));
                }
            }
            RtnetlinkOp::AddRule(rule) => insert_rule(&mut self.rules, rule.clone()),
            RtnetlinkOp::RemoveRule(rule) => {
                let place = find_rule(&self.rules, rule).ok_or(ApplyError::NoSuchRule(rule.priority))?;
                self.rules.remove(place);
            }
        }
        Ok(())
    }

    fn change_firewall(&mut self, op: &FirewallOp) -> Result<(), ApplyError> {
        match op {
            FirewallOp::Set { firewall, anew } => {
                if *anew {
                    self.forget_firewall();
                }
                if !firewall.judge_sources {
                    self.judged_peers.clear();
                    self.sources.clear();
                }
                if firewall.guard.is_none() {
                    self.guarded.clear();
                }
                self.firewall = Some(firewall.clone());
            }
            FirewallOp::JudgePeer { peer } => {
                self.firewall_that_judges()?;
                self.judged_peers.insert(*peer);
            }
            FirewallOp::ForgetPeer { peer } => {
                if !self.judged_peers.remove(peer) {
                    return Err(ApplyError::NoSuchPeer(*peer));
                }
            }
            FirewallOp::AdmitSource(source) => {
                self.firewall_that_judges()?;
                admit(&mut self.sources, *source)?;
            }
            FirewallOp::RefuseSource(source) => {
                if !self.sources.remove(source) {
                    return Err(ApplyError::NoSuchSourceOfPeer(*source));
                }
            }
            FirewallOp::ReplaceSources { sources } => {
                self.firewall_that_judges()?;
                let mut admitted = BTreeSet::new();
                sources.iter().try_for_each(|source| admit(&mut admitted, *source))?;
                self.sources = admitted;
            }
            FirewallOp::Guard(guarded) => {
                let guards = self.firewall.as_ref().is_some_and(|firewall| firewall.guard.is_some());
                if !guards {
                    return Err(ApplyError::NoFirewall);
                }
                let neighbours =
                    [self.guarded.range(..guarded).next_back(), self.guarded.range(guarded..).next()];
                let overlaps = |other: &Guarded| {
                    other.set == guarded.set && other.addresses.overlaps(&guarded.addresses)
                };
                if neighbours.into_iter().flatten().any(overlaps) {
                    return Err(ApplyError::OverlappingGuarded(*guarded));
                }
                self.guarded.insert(*guarded);
            }
            FirewallOp::Unguard(guarded) => {
                if !self.guarded.remove(guarded) {
                    return Err(ApplyError::NotGuarded(*guarded));
                }
            }
            FirewallOp::Remove => {
                self.firewall.take().ok_or(ApplyError::NoFirewall)?;
                self.forget_firewall();
            }
        }
        Ok(())
    }

    fn change_sysctl(&mut self, op: &SysctlOp) -> Result<(), ApplyError> {
        match op {
            SysctlOp::Set { interface, sysctl, value } => {
                let before = self.write_sysctl(interface, *sysctl, *value)?;
                self.saved_sysctls.entry(interface.clone()).or_default().entry(*sysctl).or_insert(before);
                Ok(())
            }
            SysctlOp::Restore { interface, sysctl } => self.restore_sysctl(interface, *sysctl),
            SysctlOp::SetOwnRpFilter { value } => {
                self.interface.as_mut().ok_or(ApplyError::NoInterface)?.rp_filter = *value;
                Ok(())
            }
        }
    }

    /// Removes the interface and, as the kernel does, its addresses, its neighbours, the routes through it and
    /// the device behind it.
    pub(crate) fn forget_interface(&mut self) {
        self.interface = None;
        self.device = None;
        self.addresses.clear();
        self.neighbours.clear();
        self.link_routes.clear();
        self.routes.retain(|route| !matches!(route.kind, RouteKind::Device { .. }));
    }

    fn forget_firewall(&mut self) {
        self.firewall = None;
        self.judged_peers.clear();
        self.sources.clear();
        self.guarded.clear();
    }

    fn firewall_that_judges(&self) -> Result<(), ApplyError> {
        let judges = self.firewall.as_ref().is_some_and(|firewall| firewall.judge_sources);
        if judges { Ok(()) } else { Err(ApplyError::NoFirewall) }
    }

    fn interface_that_is_up(&self, destination: IpNet) -> Result<(), ApplyError> {
        let interface = self.interface.as_ref().ok_or(ApplyError::NoInterface)?;
        if interface.up { Ok(()) } else { Err(ApplyError::InterfaceDown(destination)) }
    }

    /// `NLM_F_REPLACE` replaces the first route with the same destination and metric, whatever its kind and
    /// protocol: `fib_table_insert` (net/ipv4/fib_trie.c) and `fib6_add_rt2node` (net/ipv6/ip6_fib.c). The
    /// latter prefers a route that has a gateway if the new one has one, or has none if the new one has
    /// none, but falls back to the first with that metric.
    fn set_route(&mut self, route: &Route) -> Result<(), ApplyError> {
        if let RouteKind::Device { source, .. } = &route.kind {
            self.interface_that_is_up(route.destination)?;
            if let Some(source) = source {
                let local = self.underlays.values().any(|underlay| underlay.addresses.contains(source))
                    || self.addresses.iter().any(|address| address.addr() == *source);
                if !local {
                    return Err(ApplyError::NoSuchSource(route.destination));
                }
            }
        }
        let replaced = self.routes_to(route.destination).find(|other| other.metric == route.metric).cloned();
        if let Some(replaced) = replaced {
            self.routes.remove(&replaced);
        }
        self.routes.insert(route.clone());
        Ok(())
    }

    fn write_sysctl(&mut self, interface: &str, sysctl: UnderlaySysctl, value: u8) -> Result<u8, ApplyError> {
        if sysctl == UnderlaySysctl::SendRedirects && interface == ALL {
            return Ok(u8::from(std::mem::replace(&mut self.send_redirects, value != 0)));
        }
        let underlay = self.underlays.get_mut(interface);
        let before = match sysctl {
            UnderlaySysctl::RpFilter => {
                let outward = self.outward.get_mut(interface);
                let both = underlay.map(|underlay| &mut underlay.rp_filter).into_iter().chain(outward);
                both.map(|it| std::mem::replace(it, value)).reduce(|first, _| first)
            }
            UnderlaySysctl::SrcValidMark => {
                underlay.map(|it| u8::from(std::mem::replace(&mut it.src_valid_mark, value != 0)))
            }
            UnderlaySysctl::SendRedirects => None,
        };
        before.ok_or_else(|| ApplyError::NoSuchUnderlay(interface.to_owned()))
    }

    fn restore_sysctl(&mut self, interface: &str, sysctl: UnderlaySysctl) -> Result<(), ApplyError> {
        let not_recorded = || ApplyError::NotRecorded(interface.to_owned());
        let saved = self.saved_sysctls.get_mut(interface).ok_or_else(not_recorded)?;
        let value = saved.remove(&sysctl).ok_or_else(not_recorded)?;
        if saved.is_empty() {
            self.saved_sysctls.remove(interface);
        }
        // The interface may be gone, or no longer an underlay.
        let _ = self.write_sysctl(interface, sysctl, value);
        Ok(())
    }
}

/// The sources of a peer do not overlap, so only the new one's neighbours in the set can overlap it.
fn admit(sources: &mut BTreeSet<Source>, source: Source) -> Result<(), ApplyError> {
    let before = sources.range(..=source).next_back();
    let after = sources.range(source..).next();
    if before.into_iter().chain(after).any(|other| other.overlaps(&source)) {
        return Err(ApplyError::OverlappingSource(source));
    }
    sources.insert(source);
    Ok(())
}

impl Device {
    /// One transaction: each peer gets its allowed-IPs, and a previous owner loses them.
    fn set_peers<'a>(&mut self, changes: impl Iterator<Item = &'a SetPeer>) {
        // The last peer to take each prefix. Previous owners keep theirs until the end of the pass.
        let mut taken: BTreeMap<IpNet, PublicKey> = BTreeMap::new();
        for change in changes {
            let SetPeer { public_key, endpoint, allowed_ips, persistent_keepalive, preshared_key } = change;
            if self.public_key == Some(*public_key) {
                continue; // A device is never its own peer.
            }
            let peer = self.peers.entry(*public_key).or_default();
            peer.persistent_keepalive = *persistent_keepalive;
            peer.preshared_key = *preshared_key;
            if endpoint.is_some() {
                peer.endpoint = *endpoint;
                peer.configured_endpoint = *endpoint;
            }
            for prefix in allowed_ips {
                let held = peer.allowed_ips.contains(prefix);
                if !held || taken.get(prefix).is_some_and(|by| by != public_key) {
                    taken.insert(*prefix, *public_key);
                }
            }
            peer.allowed_ips.clone_from(allowed_ips);
        }
        if taken.is_empty() {
            return;
        }
        for (key, peer) in &mut self.peers {
            let Peer { allowed_ips, .. } = peer;
            if taken.len() < allowed_ips.len() {
                for (prefix, _) in taken.iter().filter(|(_, by)| *by != key) {
                    allowed_ips.remove(prefix);
                }
            } else {
                allowed_ips.retain(|prefix| taken.get(prefix).is_none_or(|by| by == key));
            }
        }
    }
}
