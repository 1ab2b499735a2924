//! The ordered operations that lead from the observed state to the desired state.
//!
//! The order is the point. At every moment in between, each packet takes either its old path or its new one:
//!
//! 1. set sysctls and firewall, so that the underlay lets WireGuard in, and what nobody encrypts any more out;
//! 2. create or change the interface and the device;
//! 3. add peers and allowed-IPs;
//! 4. add addresses, bring the interface up, and in link mode add the neighbours and the routes to them;
//! 5. set routes, the longest prefixes first;
//! 6. add rules, which now lead into a complete table;
//! 7. remove rules;
//! 8. remove routes, the shortest prefixes first, and preferred sources that no rule needs any more;
//! 9. remove neighbours, then allowed-IPs and peers;
//! 10. refuse in plaintext what the routes now encrypt;
//! 11. remove addresses, admitted sources and the firewall, and restore sysctls.
//!
//! An interface that outlived its device keeps its addresses and routes, and gets a new device. One that must become
//! one of another kind is recreated, which loses its peers, its sessions and its routes. Until they are back, its
//! destinations are unreachable, so that nothing leaves in plaintext.

mod firewall;
mod neighbours;
mod peers;
mod routes;
mod rules;
mod teardown;

use std::borrow::Cow;

use wireloom_types::LinkAddress;

pub use teardown::teardown;

use crate::{
    desired::Desired,
    observed::{Interface, Observed},
    op::{DeviceOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    refusal::Refusal,
    routing::{Route, RouteKind, Rule},
    touched::Touched,
};
/// The operations that lead from observed to desired; empty when nothing has to change. The same arguments
/// give the same list.
///
/// Foreign objects stay: an interface with our name but without our alias is a refusal, and a rule or route of our
/// table with a protocol other than ours is left alone. Whether the table is ours at all is not asked here (see
/// [`crate::ownership`]).
///
/// # Errors
/// [`Refusal::ForeignInterface`]
pub fn diff(observed: &Observed, desired: &Desired) -> Result<Vec<Op>, Refusal> {
    refuse_foreign_interface(observed, desired)?;
    let mut ops = Vec::new();
    let firewall = firewall::all(observed, desired);
    ops.extend(set_sysctls(observed, desired).map(Op::Sysctl));
    ops.extend(firewall.early.into_iter().map(Op::Firewall));
    let observed = raise_interface(observed, desired, &mut ops);

    let peers = peers::changes(&observed, desired, peers::all(&observed, desired));
    ops.extend(peers.grow.into_iter().map(Op::Device));

    let new = desired.addresses.difference(&observed.addresses);
    ops.extend(new.map(|new| RtnetlinkOp::AddAddress { address: *new }.into()));
    if observed.interface.as_ref().is_none_or(|interface| !interface.up) {
        ops.push(RtnetlinkOp::SetUp.into());
    }
    if observed.interface.as_ref().is_none_or(|interface| interface.rp_filter != desired.rp_filter) {
        ops.push(SysctlOp::SetOwnRpFilter { value: desired.rp_filter }.into());
    }
    let neighbours = neighbours::changes(&observed, desired, neighbours::all(&observed, desired));
    ops.extend(neighbours.early.into_iter().map(Op::Rtnetlink));

    let routes = routes::changes(&observed, desired, routes::all(&observed, desired));
    let replaced = |rule: &Rule| rule.is_ours() || rule.is_unscoped(desired.device.fwmark);
    let rules = rules::changes(&observed.rules, &desired.rules, replaced);
    let tables = [routes.early, rules, routes.late, neighbours.late];
    ops.extend(tables.into_iter().flatten().map(Op::Rtnetlink));
    ops.extend(peers.shrink.into_iter().map(Op::Device));

    let old = observed.addresses.difference(&desired.addresses);
    ops.extend(old.map(|old| RtnetlinkOp::RemoveAddress { address: *old }.into()));
    ops.extend(firewall.late.into_iter().map(Op::Firewall));
    ops.extend(restore_sysctls(&observed, desired).map(Op::Sysctl));
    Ok(ops)
}

/// The operations for the firewall alone.
pub(crate) fn diff_guard(observed: &Observed, desired: &Desired) -> Vec<Op> {
    let changes = firewall::all(observed, desired);
    changes.early.into_iter().chain(changes.late).map(Op::Firewall).collect()
}

/// [`diff`] limited to what changes of the cluster touched.
///
/// # Errors
/// [`Refusal::ForeignInterface`]
pub(crate) fn diff_touched(
    observed: &Observed,
    desired: &Desired,
    touched: &Touched,
) -> Result<Vec<Op>, Refusal> {
    refuse_foreign_interface(observed, desired)?;
    let firewall = firewall::touched(observed, desired, touched);
    let peers = peers::changes(observed, desired, touched.peers.iter().copied());
    let neighbours = neighbours::changes(observed, desired, touched.neighbours.iter().copied());
    let routes = routes::changes(observed, desired, touched.destinations.iter().copied());
    let mut ops = Vec::new();
    ops.extend(firewall.early.into_iter().map(Op::Firewall));
    ops.extend(peers.grow.into_iter().map(Op::Device));
    let tables = [neighbours.early, routes.early, routes.late, neighbours.late];
    ops.extend(tables.into_iter().flatten().map(Op::Rtnetlink));
    ops.extend(peers.shrink.into_iter().map(Op::Device));
    ops.extend(firewall.late.into_iter().map(Op::Firewall));
    Ok(ops)
}

fn refuse_foreign_interface(observed: &Observed, desired: &Desired) -> Result<(), Refusal> {
    match &observed.interface {
        Some(interface) if !interface.is_ours() => {
            Err(Refusal::ForeignInterface { interface: desired.interface.clone() })
        }
        _ => Ok(()),
    }
}

fn set_sysctls<'a>(observed: &'a Observed, desired: &'a Desired) -> impl Iterator<Item = SysctlOp> + use<'a> {
    desired.sysctls.iter().flat_map(|(interface, sysctls)| {
        let current = |sysctl| observed.sysctl(interface, sysctl);
        let stale = sysctls.iter().filter(move |(sysctl, value)| current(**sysctl) != Some(**value));
        stale.map(|(sysctl, value)| SysctlOp::Set {
            interface: interface.clone(),
            sysctl: *sysctl,
            value: *value,
        })
    })
}

fn restore_sysctls<'a>(
    observed: &'a Observed,
    desired: &'a Desired,
) -> impl Iterator<Item = SysctlOp> + use<'a> {
    observed.saved_sysctls.iter().flat_map(|(interface, saved)| {
        let wanted = desired.sysctls.get(interface);
        let unwanted =
            saved.keys().filter(move |sysctl| wanted.is_none_or(|wanted| !wanted.contains_key(sysctl)));
        unwanted.map(|sysctl| SysctlOp::Restore { interface: interface.clone(), sysctl: *sysctl })
    })
}

/// Creates or changes the interface and the device. Returns what will be observed once that is done: a
/// recreated interface has lost its peers, its addresses and its routes.
fn raise_interface<'a>(observed: &'a Observed, desired: &Desired, ops: &mut Vec<Op>) -> Cow<'a, Observed> {
    let mut observed = Cow::Borrowed(observed);
    let wanted = &desired.device;
    let stays = observed.interface.as_ref().is_some_and(|present| {
        present.peer_lookup == wanted.peer_lookup && (observed.device.is_some() || present.left)
    });
    if !stays {
        if observed.interface.is_some() {
            let routes = refuse_meanwhile(observed.to_mut(), desired);
            ops.extend(routes.into_iter().map(|route| RtnetlinkOp::SetRoute(route).into()));
            ops.push(InterfaceOp::Remove.into());
        }
        observed.to_mut().forget_interface();
    } else if observed.device.is_none() {
        ops.push(InterfaceOp::StartDevice { source_check: wanted.source_check }.into());
    }
    match &observed.interface {
        None => {
            let (peer_lookup, source_check) = (wanted.peer_lookup, wanted.source_check);
            ops.push(InterfaceOp::Create { mtu: desired.mtu, peer_lookup, source_check }.into());
        }
        Some(present) if present.mtu != desired.mtu => {
            ops.push(RtnetlinkOp::SetMtu { mtu: desired.mtu }.into());
        }
        Some(_) => {}
    }
    let device = observed.device.as_ref();
    let key_stays = device.is_some_and(|device| device.public_key == Some(wanted.public_key));
    let configured = device.is_some_and(|device| {
        (device.listen_port, device.fwmark, device.source_check)
            == (wanted.listen_port, wanted.fwmark, wanted.source_check)
    });
    if !(key_stays && configured) {
        let configure = DeviceOp::Configure {
            public_key: wanted.public_key,
            listen_port: wanted.listen_port,
            fwmark: wanted.fwmark,
            source_check: wanted.source_check,
        };
        ops.push(configure.into());
    }
    // A new key brings its own.
    let own = LinkAddress::of(wanted.public_key);
    let is_foreign = |interface: &Interface| interface.link_address.is_some_and(|present| present != own);
    let set_address = key_stays && observed.interface.as_ref().is_some_and(is_foreign);
    if set_address {
        ops.push(RtnetlinkOp::SetLinkAddress { link_address: own }.into());
    }
    if (!key_stays || set_address) && !observed.neighbours.is_empty() {
        observed.to_mut().neighbours.clear();
    }
    observed
}

/// Turns our routes out of an interface that is recreated into unreachable ones, so that they outlive it.
/// Routes that are not desired any more go with it.
fn refuse_meanwhile(observed: &mut Observed, desired: &Desired) -> Vec<Route> {
    let through = |route: &&Route| route.is_ours() && matches!(route.kind, RouteKind::Device { .. });
    let stay =
        |route: &&Route| desired.routes.contains_key(&route.destination) && !observed.is_blocked(route);
    let refused: Vec<Route> = observed
        .routes
        .iter()
        .filter(|route| through(route) && stay(route))
        .map(|route| Route { kind: RouteKind::Unreachable, ..route.clone() })
        .collect();
    for route in &refused {
        observed.routes.insert(route.clone());
    }
    refused
}
