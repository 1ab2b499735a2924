//! Carries out the planner's operations.

use ipnet::IpNet;
use nix::errno::Errno;
use wireloom_plan::{
    op::{self, DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, Step, SysctlOp},
    routing::{Route, RouteKind},
    sysctl::{ALL, UnderlaySysctl},
};
use wireloom_types::{PeerLookup, PresharedKey, PresharedKeyHash, PrivateKey, SourceCheck};

use super::Linux;
use crate::{
    error::{Attempt, Cause, Error},
    rtnetlink::{Request, address, interface, neighbour, route, rule},
    sysctl,
    wireguard::{Backend, Change},
    wording,
};

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
                tracing::warn!("{error}; their own timers will restart the sessions");
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
                self.create_interface(*mtu, *peer_lookup, *source_check)
            }
            InterfaceOp::StartDevice { source_check } => self.start_device(*source_check),
            InterfaceOp::Remove => self.remove_interface(),
        };
        outcome.attempt(|| wording::interface(op, &self.interface))
    }

    /// One transaction, so that an allowed-IP that moves from one peer to another always has an owner.
    fn change_device(&mut self, ops: &[&DeviceOp]) -> Result<(), Error> {
        let ours = self.interface.clone();
        let operation = || together(ops, |op| wording::device(op, &ours));
        let (key, preshared) = (self.private_key.clone(), self.preshared_key.clone());
        let changes = ops.iter().map(|op| device_change(op, key.as_ref(), preshared.as_ref()));
        let changes: Result<Vec<_>, Cause> = changes.collect();
        let changes = changes.attempt(operation)?;
        let backend = self.current_backend()?;
        let port = ops.iter().find_map(|op| match op {
            DeviceOp::Configure { listen_port, .. } => Some(*listen_port),
            _ => None,
        });
        let outcome = self.wireguard(backend).change(&changes);
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
            SysctlOp::SetOwnRpFilter { value } => sysctl::set_own_rp_filter(&self.interface, *value),
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
        let index = self.find_interface().map_err(one)?.map(|found| found.index);
        let mut requests = Vec::with_capacity(ops.len());
        for (position, op) in ops.iter().enumerate() {
            requests.push(self.request(op, index).attempt(|| operation(position)).map_err(one)?);
        }
        if ops.iter().any(|op| leads_ipv6_to_our_interface(op)) {
            sysctl::enable_ipv6(&ours).map_err(one)?;
        }
        let refusals = self.rtnetlink.change_all(&requests).attempt(|| operation(0)).map_err(one)?;
        let errors: Vec<Error> = refusals
            .into_iter()
            .filter(|(position, refusal)| !is_done_already(ops[*position], refusal.errno))
            .map(|(position, refusal)| {
                // The kernel's WireGuard opens its port only when the interface comes up.
                let port = matches!(ops[position], RtnetlinkOp::SetUp).then(|| self.listen_port()).flatten();
                Error::new(operation(position), explain_port(refusal.into(), port))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn listen_port(&mut self) -> Option<u16> {
        let backend = self.current_backend().ok()?;
        Some(self.read_device(backend).ok()??.listen_port)
    }

    fn request(&self, op: &RtnetlinkOp, index: Option<u32>) -> Result<Request, Cause> {
        let index_of_ours = || index.ok_or_else(|| Cause::Transient("our interface is gone".into()));
        Ok(match op {
            RtnetlinkOp::SetMtu { mtu } => interface::set_mtu(index_of_ours()?, *mtu),
            RtnetlinkOp::SetLinkAddress { link_address } => {
                interface::set_link_address(index_of_ours()?, *link_address)
            }
            RtnetlinkOp::SetUp => interface::set_up(index_of_ours()?),
            RtnetlinkOp::AddAddress { address } => address::add(index_of_ours()?, *address),
            RtnetlinkOp::RemoveAddress { address } => address::remove(index_of_ours()?, *address),
            RtnetlinkOp::SetNeighbour { address, link_address } => {
                neighbour::set(index_of_ours()?, *address, *link_address)
            }
            RtnetlinkOp::RemoveNeighbour { address } => neighbour::remove(index_of_ours()?, *address),
            RtnetlinkOp::AddLinkRoute { address } => route::add_link_route(*address, index_of_ours()?)?,
            RtnetlinkOp::RemoveLinkRoute { address } => route::remove_link_route(*address, index_of_ours()?)?,
            RtnetlinkOp::SetRoute(route) => route::set(route, self.table, index)?,
            RtnetlinkOp::RemoveRoute(route) => route::remove(route, self.table, index)?,
            RtnetlinkOp::AddRule(rule) => rule::add(rule),
            RtnetlinkOp::RemoveRule(rule) => rule::remove(rule),
        })
    }

    fn create_interface(
        &mut self,
        mtu: u32,
        peer_lookup: PeerLookup,
        source_check: SourceCheck,
    ) -> Result<(), Cause> {
        self.remove_renamed()?;
        self.state.begin_creating(&self.interface)?;
        let wanted = self.wanted.unwrap_or(Backend::Userspace);
        self.create_device(wanted, peer_lookup, source_check)?;
        self.lose_sessions();
        let found = interface::by_name(&mut self.rtnetlink, &self.interface)?;
        let found = found
            .ok_or_else(|| Cause::Transient("the interface vanished right after its creation".into()))?;
        self.adopt(&found, mtu)?;
        self.last_interface = Some((found.index, found.backend));
        Ok(self.state.end_creating()?)
    }

    /// Starts a device behind an interface that stayed. If somebody deletes the interface meanwhile, the device
    /// creates a new one, which [`Self::finish_creation`] marks as ours before the next pass.
    fn start_device(&mut self, source_check: SourceCheck) -> Result<(), Cause> {
        let gone = || Cause::Transient("somebody deleted the interface meanwhile".into());
        let found = interface::by_name(&mut self.rtnetlink, &self.interface)?.ok_or_else(gone)?;
        self.state.begin_creating(&self.interface)?;
        self.lose_sessions();
        self.create_device(Backend::Userspace, found.interface.peer_lookup, source_check)?;
        match interface::by_name(&mut self.rtnetlink, &self.interface)? {
            Some(found) if found.interface.is_ours() => Ok(self.state.end_creating()?),
            _ => Err(gone()),
        }
    }

    /// Creates what [`Self::finish_creation`] may mark as ours later. A failure leaves nothing behind: an interface
    /// that has our name then is somebody else's.
    fn create_device(
        &mut self,
        backend: Backend,
        peer_lookup: PeerLookup,
        source_check: SourceCheck,
    ) -> Result<(), Cause> {
        let created = self.wireguard(backend).create(peer_lookup, source_check);
        if !matches!(created, Ok(()) | Err(Cause::Unfinished(_))) {
            self.state.end_creating()?;
        }
        created
    }

    /// Marks the interface as ours if an agent was killed after creating it and before marking it, or timed
    /// out while a device was still creating it, or somebody deleted it while a device was starting behind it.
    ///
    /// # Errors
    /// The record of the creation cannot be read, or the interface cannot be marked.
    pub fn finish_creation(&mut self) -> Result<(), Error> {
        let directory = self.state.path().display().to_string();
        let record = self.state.creating().attempt(|| format!("read {directory}/creating"))?;
        if record.as_deref() != Some(self.interface.as_str()) {
            return Ok(());
        }
        // It may still appear.
        let Some(found) = self.find_interface()? else { return Ok(()) };
        if !found.interface.is_ours() && found.is_of_a_back_end {
            let interface = self.interface.clone();
            self.adopt(&found, found.interface.mtu)
                .attempt(|| format!("mark interface {interface} as ours"))?;
        }
        self.state.end_creating().attempt(|| format!("remove {directory}/creating"))
    }

    fn adopt(&mut self, found: &interface::Found, mtu: u32) -> Result<(), Cause> {
        let mut requests = vec![interface::adopt(found.index, mtu)];
        // Link mode needs the link-local address.
        if found.interface.peer_lookup == PeerLookup::Destination {
            requests.push(interface::no_link_local_addresses(found.index));
        }
        let refusals = self.rtnetlink.change_all(&requests)?;
        // A machine without IPv6 refuses the second request, and generates no link-local addresses anyway.
        match refusals.into_iter().find(|(position, _)| *position == 0) {
            Some((_, refusal)) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    fn remove_interface(&mut self) -> Result<(), Cause> {
        let found = interface::by_name(&mut self.rtnetlink, &self.interface)?;
        let backend = found.as_ref().map_or(Backend::Userspace, |found| found.backend);
        if let Some(found) = found {
            match self.rtnetlink.change(&interface::remove(found.index)) {
                // Somebody else removed it meanwhile.
                Err(error) if error.errno() == Some(Errno::ENODEV) => {}
                removed => removed?,
            }
        }
        self.configured_endpoints.clear();
        self.last_interface = None;
        self.wireguard(backend).end()
    }
}

fn device_change<'a>(
    op: &'a DeviceOp,
    key: Option<&'a PrivateKey>,
    preshared_key: Option<&'a PresharedKey>,
) -> Result<Change<'a>, Cause> {
    Ok(match op {
        DeviceOp::Configure { listen_port, fwmark, source_check, .. } => Change::Configure {
            key: key.ok_or_else(|| Cause::Permanent("no private key was set".into()))?,
            listen_port: *listen_port,
            fwmark: *fwmark,
            source_check: *source_check,
        },
        DeviceOp::SetPeer(peer) => {
            let planned = peer.preshared_key;
            let preshared_key = preshared_key.filter(|key| planned == Some(PresharedKeyHash::of(key)));
            // A peer must not get less protection than was planned.
            if planned.is_some() && preshared_key.is_none() {
                return Err(Cause::Permanent("the preshared key of the plan was not set".into()));
            }
            Change::SetPeer { peer, preshared_key }
        }
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

/// Says which port is in use, and what to do about it.
fn explain_port(cause: Cause, port: Option<u16>) -> Cause {
    match port {
        Some(port) if cause.errno() == Some(Errno::EADDRINUSE) => Cause::Transient(format!(
            "UDP port {port} is in use by another program (`ss -lunp` names it); end that program, or set another \
             listen_port in agent.toml"
        )),
        _ => cause,
    }
}

/// A transaction in words.
fn together<T>(ops: &[&T], wording: impl Fn(&T) -> String) -> String {
    match ops {
        [one] => wording(one),
        [first, ..] => format!("make {} changes ({}, …)", ops.len(), wording(first)),
        [] => String::new(),
    }
}

/// Whether the kernel refuses because somebody else did the same meanwhile.
fn is_done_already(op: &RtnetlinkOp, errno: Errno) -> bool {
    match op {
        RtnetlinkOp::AddAddress { .. } => errno == Errno::EEXIST,
        RtnetlinkOp::RemoveAddress { .. } => errno == Errno::EADDRNOTAVAIL,
        RtnetlinkOp::RemoveRoute(_) | RtnetlinkOp::RemoveLinkRoute { .. } => errno == Errno::ESRCH,
        RtnetlinkOp::RemoveNeighbour { .. } | RtnetlinkOp::RemoveRule(_) => errno == Errno::ENOENT,
        _ => false,
    }
}
