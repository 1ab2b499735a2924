//! Carries out the planner's operations.

use ipnet::IpNet;
use nix::errno::Errno;
use wireloom_plan::{
    kernel::{ALL, Route, RouteKind, UnderlaySysctl},
    op::{self, DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, Step, SysctlOp},
};
use wireloom_types::{PeerLookup, PrivateKey, SourceCheck};

use super::{
    Linux, address,
    error::{Attempt, Cause, Error},
    link, neighbour,
    netlink::Request,
    route, rule, sysctl,
    wireguard::{Change, Implementation},
};
use crate::wording;

impl Linux {
    /// Stops at the first step that fails, for the next pass to try again; except for a route that the
    /// kernel refuses for good (an IPv6 route on a machine without IPv6, say), which must not keep the
    /// other peers' traffic from being encrypted.
    pub(super) fn apply_all(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        let mut refused = Vec::new();
        for step in op::steps(ops) {
            if let Err(errors) = self.apply_step(&step) {
                refused.extend(errors);
                if !sets_routes(&step) || refused.iter().any(Error::retry_can_help) {
                    return Err(refused);
                }
            }
            if let Err(error) = self.greet() {
                tracing::warn!("{error}; they will notice by themselves");
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    fn apply_step(&mut self, step: &Step<'_>) -> Result<(), Vec<Error>> {
        let one = |error| vec![error];
        match step {
            Step::Interface(op) => self.change_interface(op).map_err(one),
            Step::Device(ops) => self.change_device(ops).map_err(one),
            Step::Rtnetlink(ops) => self.change_rtnetlink(ops),
            Step::Firewall(ops) => self.change_firewall(ops).map_err(one),
            Step::Sysctl(op) => self.change_sysctl(op).map_err(one),
        }
    }

    fn change_interface(&mut self, op: &InterfaceOp) -> Result<(), Error> {
        let outcome = match op {
            InterfaceOp::Create { mtu, peer_lookup, source_check } => {
                self.create_link(*mtu, *peer_lookup, *source_check)
            }
            InterfaceOp::StartDevice { source_check } => {
                self.lose_sessions();
                let engine = self.backend(Implementation::Userspace);
                engine.create(PeerLookup::Gateway, *source_check)
            }
            InterfaceOp::Remove => self.remove_link(),
        };
        outcome.attempt(|| wording::interface(op, &self.interface))
    }

    /// One transaction, so that an allowed-IP that moves from one peer to another always has an owner.
    fn change_device(&mut self, ops: &[&DeviceOp]) -> Result<(), Error> {
        let ours = self.interface.clone();
        let operation = || together(ops, |op| wording::device(op, &ours));
        let key = self.private_key.clone();
        let changes: Result<Vec<_>, Cause> = ops.iter().map(|op| device_change(op, key.as_ref())).collect();
        let changes = changes.attempt(operation)?;
        let there = self.implementation()?;
        let port = ops.iter().find_map(|op| match op {
            DeviceOp::Configure { listen_port, .. } => Some(*listen_port),
            _ => None,
        });
        let outcome = self.backend(there).change(&changes);
        outcome.map_err(|cause| explain_port(cause, port)).attempt(operation)?;
        for op in ops {
            match op {
                DeviceOp::SetPeer(peer) => {
                    self.configured_endpoints
                        .extend(peer.endpoint.map(|endpoint| (peer.public_key, endpoint)));
                }
                DeviceOp::RemovePeer { public_key } => {
                    self.configured_endpoints.remove(public_key);
                }
                DeviceOp::Configure { .. } => {}
            }
        }
        Ok(())
    }

    fn change_firewall(&mut self, ops: &[&FirewallOp]) -> Result<(), Error> {
        self.nftables.change(ops).attempt(|| together(ops, wording::firewall))
    }

    fn change_sysctl(&mut self, op: &SysctlOp) -> Result<(), Error> {
        match op {
            SysctlOp::Set { interface, sysctl, value } => {
                sysctl::set(&self.state, interface, *sysctl, *value)
            }
            SysctlOp::Restore { interface, sysctl } => sysctl::restore(&self.state, interface, *sysctl),
        }
    }

    /// The kernel's WireGuard turns redirects off on all interfaces when one of its own comes up (`wg_open`
    /// in drivers/net/wireguard/device.c); the other interfaces are not ours to change.
    fn change_rtnetlink(&mut self, ops: &[&RtnetlinkOp]) -> Result<(), Vec<Error>> {
        if let RtnetlinkOp::SetUp = ops[0] {
            sysctl::preserve(ALL, UnderlaySysctl::SendRedirects, || self.request_all(ops))
                .unwrap_or_else(|error| Err(vec![error]))
        } else {
            self.request_all(ops)
        }
    }

    /// Many requests in few sends; the kernel tries all of them.
    fn request_all(&mut self, ops: &[&RtnetlinkOp]) -> Result<(), Vec<Error>> {
        let ours = self.interface.clone();
        let operation = |position: usize| wording::rtnetlink(ops[position], &ours);
        let one = |error| vec![error];
        let index = self.link().map_err(one)?.map(|found| found.index);
        let mut requests = Vec::with_capacity(ops.len());
        for (position, op) in ops.iter().enumerate() {
            requests.push(self.request(op, index).attempt(|| operation(position)).map_err(one)?);
        }
        if ops.iter().any(|op| leads_ipv6_to_our_interface(op)) {
            sysctl::enable_ipv6(&ours).map_err(one)?;
        }
        let refusals = self.netlink.change(&requests).attempt(|| operation(0)).map_err(one)?;
        let errors: Vec<Error> = refusals
            .into_iter()
            .filter(|(position, cause)| !is_done_already(ops[*position], cause))
            .map(|(position, cause)| {
                // The kernel's WireGuard opens its port only now.
                let port = matches!(ops[position], RtnetlinkOp::SetUp).then(|| self.listen_port()).flatten();
                Error::new(operation(position), explain_port(cause, port))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn listen_port(&mut self) -> Option<u16> {
        let there = self.implementation().ok()?;
        Some(self.read_device(there).ok()??.listen_port)
    }

    fn request(&self, op: &RtnetlinkOp, index: Option<u32>) -> Result<Request, Cause> {
        let interface = || index.ok_or_else(|| Cause::Passing("our interface is gone".into()));
        Ok(match op {
            RtnetlinkOp::SetMtu { mtu } => link::set_mtu(interface()?, *mtu),
            RtnetlinkOp::SetUp => link::set_up(interface()?),
            RtnetlinkOp::AddAddress { address } => address::add(interface()?, *address),
            RtnetlinkOp::RemoveAddress { address } => address::remove(interface()?, *address),
            RtnetlinkOp::SetNeighbour { address, link_address } => {
                neighbour::set(interface()?, *address, *link_address)
            }
            RtnetlinkOp::RemoveNeighbour { address } => neighbour::remove(interface()?, *address),
            RtnetlinkOp::AddLinkRoute { address } => route::add_link_route(*address, interface()?)?,
            RtnetlinkOp::RemoveLinkRoute { address } => route::remove_link_route(*address, interface()?)?,
            RtnetlinkOp::SetRoute(route) => route::set(route, self.table, index)?,
            RtnetlinkOp::RemoveRoute(route) => route::remove(route, self.table, index)?,
            RtnetlinkOp::AddRule(rule) => rule::add(rule),
            RtnetlinkOp::RemoveRule(rule) => rule::remove(rule),
        })
    }

    fn create_link(
        &mut self,
        mtu: u32,
        peer_lookup: PeerLookup,
        source_check: SourceCheck,
    ) -> Result<(), Cause> {
        self.state.begin_creating(&self.interface)?;
        let wanted = self.wanted.unwrap_or(Implementation::Userspace);
        self.backend(wanted).create(peer_lookup, source_check)?;
        self.lose_sessions();
        let found = link::by_name(&mut self.netlink, &self.interface)?;
        let found = found.ok_or_else(|| Cause::Passing("it vanished at once".into()))?;
        self.adopt(&found, mtu)?;
        Ok(self.state.end_creating()?)
    }

    /// If an agent was killed between making the interface and marking it, or lost patience with a
    /// device that made it after all, marks it.
    ///
    /// # Errors
    /// The record cannot be read, or the interface not be marked.
    pub fn finish_creation(&mut self) -> Result<(), Error> {
        let directory = self.state.path().display().to_string();
        let record = self.state.creating().attempt(|| format!("read {directory}/creating"))?;
        if record.as_deref() != Some(self.interface.as_str()) {
            return Ok(());
        }
        // It may still come.
        let Some(found) = self.link()? else { return Ok(()) };
        if !found.link.is_ours() {
            let interface = self.interface.clone();
            self.adopt(&found, found.link.mtu).attempt(|| format!("mark interface {interface} as ours"))?;
        }
        self.state.end_creating().attempt(|| format!("remove {directory}/creating"))
    }

    fn adopt(&mut self, found: &link::Indexed, mtu: u32) -> Result<(), Cause> {
        let mut requests = vec![link::adopt(found.index, mtu)];
        // A link wants its link-local address.
        if found.link.peer_lookup == PeerLookup::Destination {
            requests.push(link::no_link_local_addresses(found.index));
        }
        let refusals = self.netlink.change(&requests)?;
        // On a machine without IPv6 the kernel makes no link-local addresses anyway.
        match refusals.into_iter().find(|(position, _)| *position == 0) {
            Some((_, cause)) => Err(cause),
            None => Ok(()),
        }
    }

    fn remove_link(&mut self) -> Result<(), Cause> {
        let found = link::by_name(&mut self.netlink, &self.interface)?;
        let there = found.as_ref().map_or(Implementation::Userspace, |found| found.implementation);
        if let Some(found) = found {
            let refusals = self.netlink.change(&[link::remove(found.index)])?;
            let gone = |cause: &Cause| matches!(cause, Cause::Refused { errno: Errno::ENODEV, .. });
            if let Some((_, cause)) = refusals.into_iter().find(|(_, cause)| !gone(cause)) {
                return Err(cause);
            }
        }
        self.configured_endpoints.clear();
        self.backend(there).end()
    }
}

fn device_change<'a>(op: &'a DeviceOp, key: Option<&'a PrivateKey>) -> Result<Change<'a>, Cause> {
    Ok(match op {
        DeviceOp::Configure { listen_port, fwmark, source_check, .. } => Change::Configure {
            key: key.ok_or_else(|| Cause::Told("no private key is at hand".into()))?,
            listen_port: *listen_port,
            fwmark: *fwmark,
            source_check: *source_check,
        },
        DeviceOp::SetPeer(peer) => Change::SetPeer(peer),
        DeviceOp::RemovePeer { public_key } => Change::RemovePeer(*public_key),
    })
}

fn sets_routes(step: &Step<'_>) -> bool {
    matches!(step, Step::Rtnetlink(ops) if matches!(ops[0], RtnetlinkOp::SetRoute(_)))
}

fn leads_ipv6_to_our_interface(op: &RtnetlinkOp) -> bool {
    let RtnetlinkOp::SetRoute(Route { destination, kind, .. }) = op else { return false };
    matches!((destination, kind), (IpNet::V6(_), RouteKind::Device { .. }))
}

/// "Address already in use" says little.
fn explain_port(cause: Cause, port: Option<u16>) -> Cause {
    match (&cause, port) {
        (Cause::Refused { errno: Errno::EADDRINUSE, .. }, Some(port)) => Cause::Passing(format!(
            "UDP port {port} is in use by another program (`ss -lunp` names it); end that program, or set another \
             listen_port in agent.toml"
        )),
        _ => cause,
    }
}

/// One transaction, in words.
fn together<T>(ops: &[&T], wording: impl Fn(&T) -> String) -> String {
    match ops {
        [one] => wording(one),
        [first, ..] => format!("make {} changes ({}, …)", ops.len(), wording(first)),
        [] => String::new(),
    }
}

/// True when the kernel refuses because somebody did the same meanwhile.
fn is_done_already(op: &RtnetlinkOp, cause: &Cause) -> bool {
    let Cause::Refused { errno, .. } = cause else { return false };
    match op {
        RtnetlinkOp::AddAddress { .. } => *errno == Errno::EEXIST,
        RtnetlinkOp::RemoveAddress { .. } => *errno == Errno::EADDRNOTAVAIL,
        RtnetlinkOp::RemoveRoute(_) | RtnetlinkOp::RemoveLinkRoute { .. } => *errno == Errno::ESRCH,
        RtnetlinkOp::RemoveNeighbour { .. } | RtnetlinkOp::RemoveRule(_) => *errno == Errno::ENOENT,
        _ => false,
    }
}
