//! Carries out the planner's operations.

use std::mem::discriminant;

use ipnet::IpNet;
use nix::errno::Errno;
use wireloom_plan::{
    kernel::{ALL, Route, RouteKind, UnderlaySysctl},
    op::Op,
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
    /// A route that the kernel refuses for good (on a machine without IPv6, say) must not keep the
    /// others' traffic from encryption; whatever else fails ends it, for the next pass to try again.
    pub(super) fn apply_all(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        let mut refused = Vec::new();
        let one_group = |one: &Op, next: &Op| {
            is_of_the_device(one, next)
                || [one, next].into_iter().all(is_of_the_firewall)
                || discriminant(one) == discriminant(next)
        };
        for group in ops.chunk_by(one_group) {
            if let Err(errors) = self.apply_group(group) {
                refused.extend(errors);
                let routes = matches!(group[0], Op::SetRoute(_));
                if !routes || refused.iter().any(Error::retry_can_help) {
                    return Err(refused);
                }
            }
            if let Err(error) = self.greet() {
                tracing::warn!("{error}; they will notice by themselves");
            }
        }
        if refused.is_empty() { Ok(()) } else { Err(refused) }
    }

    fn apply_group(&mut self, group: &[Op]) -> Result<(), Vec<Error>> {
        match &group[0] {
            Op::ConfigureDevice { .. } | Op::SetPeer(_) | Op::RemovePeer { .. } => {
                self.change_device(group).map_err(|error| vec![error])
            }
            // The kernel's WireGuard turns redirects off everywhere (`wg_open` in
            // drivers/net/wireguard/device.c); other interfaces are none of our business.
            Op::SetUp => sysctl::preserve(ALL, UnderlaySysctl::SendRedirects, || self.change_tables(group))
                .unwrap_or_else(|error| Err(vec![error])),
            Op::SetMtu { .. }
            | Op::AddAddress { .. }
            | Op::RemoveAddress { .. }
            | Op::SetNeighbour { .. }
            | Op::RemoveNeighbour { .. }
            | Op::AddLinkRoute { .. }
            | Op::RemoveLinkRoute { .. }
            | Op::SetRoute(_)
            | Op::RemoveRoute(_)
            | Op::AddRule(_)
            | Op::RemoveRule(_) => self.change_tables(group),
            Op::SetFirewall { .. }
            | Op::JudgePeer { .. }
            | Op::ForgetPeer { .. }
            | Op::AdmitSource(_)
            | Op::RefuseSource(_)
            | Op::ReplaceSources { .. }
            | Op::RemoveFirewall => self.change_firewall(group).map_err(|error| vec![error]),
            Op::CreateLink { .. }
            | Op::StartDevice { .. }
            | Op::RemoveLink
            | Op::SetUnderlaySysctl { .. }
            | Op::RestoreUnderlaySysctl { .. } => {
                group.iter().try_for_each(|op| self.apply_one(op)).map_err(|error| vec![error])
            }
        }
    }

    fn apply_one(&mut self, op: &Op) -> Result<(), Error> {
        let ours = self.interface.clone();
        let operation = || wording::op(op, &ours);
        match op {
            Op::CreateLink { mtu, peer_lookup, source_check } => {
                self.create_link(*mtu, *peer_lookup, *source_check).attempt(operation)
            }
            Op::StartDevice { source_check } => {
                self.lose_sessions();
                let engine = self.backend(Implementation::Userspace);
                engine.create(PeerLookup::Gateway, *source_check).attempt(operation)
            }
            Op::RemoveLink => self.remove_link().attempt(operation),
            Op::SetUnderlaySysctl { interface, sysctl, value } => {
                sysctl::set(&self.state, interface, *sysctl, *value)
            }
            Op::RestoreUnderlaySysctl { interface, sysctl } => {
                sysctl::restore(&self.state, interface, *sysctl)
            }
            _ => self.apply_group(std::slice::from_ref(op)).map_err(|mut errors| errors.swap_remove(0)),
        }
    }

    /// Consecutive changes of the device make one transaction, so that an allowed-IP that moves
    /// from one peer to another is nobody's at no time.
    fn change_device(&mut self, ops: &[Op]) -> Result<(), Error> {
        let ours = self.interface.clone();
        let operation = || together(ops, &ours);
        let key = self.private_key.clone();
        let changes: Result<Vec<_>, Cause> = ops.iter().map(|op| device_change(op, key.as_ref())).collect();
        let changes = changes.attempt(operation)?;
        let there = self.implementation()?;
        let port = ops.iter().find_map(|op| match op {
            Op::ConfigureDevice { listen_port, .. } => Some(*listen_port),
            _ => None,
        });
        let outcome = self.backend(there).change(&changes);
        outcome.map_err(|cause| explain_port(cause, port)).attempt(operation)?;
        for op in ops {
            match op {
                Op::SetPeer(peer) => {
                    self.configured_endpoints
                        .extend(peer.endpoint.map(|endpoint| (peer.public_key, endpoint)));
                }
                Op::RemovePeer { public_key } => {
                    self.configured_endpoints.remove(public_key);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn change_firewall(&mut self, ops: &[Op]) -> Result<(), Error> {
        self.nftables.change(ops).attempt(|| together(ops, &self.interface))
    }

    /// Many changes in few sends; the kernel tries all of them.
    fn change_tables(&mut self, ops: &[Op]) -> Result<(), Vec<Error>> {
        let ours = self.interface.clone();
        let operation = |position: usize| wording::op(&ops[position], &ours);
        let one = |error| vec![error];
        let index = self.link().map_err(one)?.map(|found| found.index);
        let mut requests = Vec::with_capacity(ops.len());
        for (position, op) in ops.iter().enumerate() {
            requests.push(self.request(op, index).attempt(|| operation(position)).map_err(one)?);
        }
        if ops.iter().any(leads_ipv6_to_our_interface) {
            sysctl::enable_ipv6(&ours).map_err(one)?;
        }
        let refusals = self.netlink.change(&requests).attempt(|| operation(0)).map_err(one)?;
        let errors: Vec<Error> = refusals
            .into_iter()
            .filter(|(position, cause)| !is_done_already(&ops[*position], cause))
            .map(|(position, cause)| {
                // The kernel's WireGuard opens its port only now.
                let port = matches!(ops[position], Op::SetUp).then(|| self.listen_port()).flatten();
                Error::new(operation(position), explain_port(cause, port))
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn listen_port(&mut self) -> Option<u16> {
        let there = self.implementation().ok()?;
        Some(self.read_device(there).ok()??.listen_port)
    }

    fn request(&self, op: &Op, index: Option<u32>) -> Result<Request, Cause> {
        let interface = || index.ok_or_else(|| Cause::Passing("our interface is gone".into()));
        match op {
            Op::SetMtu { mtu } => Ok(link::set_mtu(interface()?, *mtu)),
            Op::SetUp => Ok(link::set_up(interface()?)),
            Op::AddAddress { address } => Ok(address::add(interface()?, *address)),
            Op::RemoveAddress { address } => Ok(address::remove(interface()?, *address)),
            Op::SetNeighbour { address, link_address } => {
                Ok(neighbour::set(interface()?, *address, *link_address))
            }
            Op::RemoveNeighbour { address } => Ok(neighbour::remove(interface()?, *address)),
            Op::AddLinkRoute { address } => route::add_link_route(*address, interface()?),
            Op::RemoveLinkRoute { address } => route::remove_link_route(*address, interface()?),
            Op::SetRoute(route) => route::set(route, self.table, index),
            Op::RemoveRoute(route) => route::remove(route, self.table, index),
            Op::AddRule(rule) => Ok(rule::add(rule)),
            Op::RemoveRule(rule) => Ok(rule::remove(rule)),
            _ => Err(Cause::Told("it is no change of a table".into())),
        }
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
            if let Some((_, cause)) =
                refusals.into_iter().find(|(_, cause)| !is_done_already(&Op::RemoveLink, cause))
            {
                return Err(cause);
            }
        }
        self.configured_endpoints.clear();
        self.backend(there).end()
    }
}

fn device_change<'a>(op: &'a Op, key: Option<&'a PrivateKey>) -> Result<Change<'a>, Cause> {
    match op {
        Op::ConfigureDevice { listen_port, fwmark, source_check, .. } => match key {
            Some(key) => Ok(Change::Configure {
                key,
                listen_port: *listen_port,
                fwmark: *fwmark,
                source_check: *source_check,
            }),
            None => Err(Cause::Told("no private key is at hand".into())),
        },
        Op::SetPeer(peer) => Ok(Change::SetPeer(peer)),
        Op::RemovePeer { public_key } => Ok(Change::RemovePeer(*public_key)),
        _ => Err(Cause::Told("it is no change of the device".into())),
    }
}

fn leads_ipv6_to_our_interface(op: &Op) -> bool {
    matches!(op, Op::SetRoute(Route { destination: IpNet::V6(_), kind: RouteKind::Device { .. }, .. }))
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
fn together(ops: &[Op], interface: &str) -> String {
    match ops {
        [one] => wording::op(one, interface),
        [first, ..] => format!("make {} changes ({}, …)", ops.len(), wording::op(first, interface)),
        [] => String::new(),
    }
}

/// Such ones that follow each other are one transaction.
fn is_of_the_firewall(op: &Op) -> bool {
    matches!(
        op,
        Op::SetFirewall { .. }
            | Op::JudgePeer { .. }
            | Op::ForgetPeer { .. }
            | Op::AdmitSource(_)
            | Op::RefuseSource(_)
            | Op::ReplaceSources { .. }
            | Op::RemoveFirewall
    )
}

fn is_of_the_device(one: &Op, next: &Op) -> bool {
    [one, next]
        .iter()
        .all(|op| matches!(op, Op::ConfigureDevice { .. } | Op::SetPeer(_) | Op::RemovePeer { .. }))
}

/// True when the kernel refuses because somebody did the same meanwhile.
fn is_done_already(op: &Op, cause: &Cause) -> bool {
    let Cause::Refused { errno, .. } = cause else { return false };
    match op {
        Op::RemoveLink => *errno == Errno::ENODEV,
        Op::AddAddress { .. } => *errno == Errno::EEXIST,
        Op::RemoveAddress { .. } => *errno == Errno::EADDRNOTAVAIL,
        Op::RemoveNeighbour { .. } => *errno == Errno::ENOENT,
        Op::RemoveRoute(_) | Op::RemoveLinkRoute { .. } => *errno == Errno::ESRCH,
        Op::RemoveRule(_) => *errno == Errno::ENOENT,
        _ => false,
    }
}
