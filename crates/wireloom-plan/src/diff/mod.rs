//! The ordered operations that lead from what is observed to what is desired.
//!
//! The order is the point. At every moment in between, a packet meets either the way it had or
//! the way it shall have:
//!
//! 1. sysctls and firewall, so that the underlay lets WireGuard in;
//! 2. the interface and the device;
//! 3. peers that are new, and allowed-IPs that grow;
//! 4. addresses, the interface up, and on a link the neighbours and the routes to them;
//! 5. routes, the longest prefixes first;
//! 6. rules added: they lead into a table that is whole;
//! 7. rules removed;
//! 8. routes removed, the shortest prefixes first (and preferred sources that no rule needs now);
//! 9. allowed-IPs that shrink, and peers removed;
//! 10. neighbours, addresses, sources that the firewall lets in, the firewall itself and sysctls that are
//!     needed no longer.
//!
//! An interface that must become one of another kind is made anew, which takes its peers, its
//! sessions and its routes away. Until they are back its destinations are unreachable: nothing
//! of it leaves in plaintext.

mod firewall;
mod neighbours;
mod peers;
mod routes;
mod rules;
mod teardown;

use std::borrow::Cow;

pub use teardown::teardown;

use crate::{
    desired::Desired,
    kernel::{Observed, Route, RouteKind},
    op::{DeviceOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    refusal::Refusal,
    touched::Touched,
    warning::Warning,
};
use wireloom_types::PeerLookup;

/// From observed to desired; empty when nothing is to do. The same arguments give the same list.
///
/// What is foreign stays: an interface of our name without our alias is a refusal, a route in our
/// table with another protocol than ours is left (see [`foreign_routes`]).
///
/// # Errors
/// [`Refusal::ForeignLink`]
pub fn diff(observed: &Observed, desired: &Desired) -> Result<Vec<Op>, Refusal> {
    refuse_foreign_link(observed, desired)?;
    let mut ops = Vec::new();
    let firewall = firewall::all(observed, desired);
    ops.extend(set_sysctls(observed, desired).map(Op::Sysctl));
    ops.extend(firewall.early.into_iter().map(Op::Firewall));
    let observed = raise_link(observed, desired, &mut ops);

    let peers = peers::changes(&observed, desired, peers::all(&observed, desired));
    ops.extend(peers.grow.into_iter().map(Op::Device));

    let new = desired.addresses.difference(&observed.addresses);
    ops.extend(new.map(|new| RtnetlinkOp::AddAddress { address: *new }.into()));
    if observed.link.as_ref().is_none_or(|link| !link.up) {
        ops.push(RtnetlinkOp::SetUp.into());
    }
    let neighbours = neighbours::changes(&observed, desired, neighbours::all(&observed, desired));
    ops.extend(neighbours.early.into_iter().map(Op::Rtnetlink));

    let routes = routes::changes(&observed, desired, routes::all(&observed, desired));
    let rules = rules::changes(&observed.rules, &desired.rules);
    let tables = [routes.early, rules, routes.late, neighbours.late];
    ops.extend(tables.into_iter().flatten().map(Op::Rtnetlink));
    ops.extend(peers.shrink.into_iter().map(Op::Device));

    let old = observed.addresses.difference(&desired.addresses);
    ops.extend(old.map(|old| RtnetlinkOp::RemoveAddress { address: *old }.into()));
    ops.extend(firewall.late.into_iter().map(Op::Firewall));
    ops.extend(restore_sysctls(&observed, desired).map(Op::Sysctl));
    Ok(ops)
}

/// [`diff`] for no more than some peers and destinations: what a change of one node touched.
///
/// # Errors
/// [`Refusal::ForeignLink`]
pub(crate) fn diff_touched(
    observed: &Observed,
    desired: &Desired,
    touched: &Touched,
) -> Result<Vec<Op>, Refusal> {
    refuse_foreign_link(observed, desired)?;
    let firewall = firewall::touched(observed, desired, &touched.judged_peers, &touched.sources);
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

/// The routes in our table that somebody else made.
pub fn foreign_routes<'a>(
    observed: &'a Observed,
    desired: &'a Desired,
) -> impl Iterator<Item = Warning> + use<'a> {
    observed.routes.iter().filter(|route| !route.is_ours()).map(|route| Warning::ForeignRoute {
        route: route.clone(),
        blocks_ours: desired
            .routes
            .get(&route.destination)
            .is_some_and(|kind| routes::is_blocked(observed, &routes::ours(route.destination, kind))),
    })
}

fn refuse_foreign_link(observed: &Observed, desired: &Desired) -> Result<(), Refusal> {
    match &observed.link {
        Some(link) if !link.is_ours() => Err(Refusal::ForeignLink { interface: desired.interface.clone() }),
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

/// The interface and the device. Gives what will be observed once that is done: an interface made
/// anew has lost its peers, its addresses and its routes.
fn raise_link<'a>(observed: &'a Observed, desired: &Desired, ops: &mut Vec<Op>) -> Cow<'a, Observed> {
    let mut observed = Cow::Borrowed(observed);
    let wanted = &desired.device;
    let fits = observed.link.as_ref().is_some_and(|link| link.peer_lookup == wanted.peer_lookup);
    // The interface of a link stays when its device ends.
    let stays = observed.device.is_some() || wanted.peer_lookup == PeerLookup::Gateway;
    if !fits || !stays {
        if observed.link.is_some() {
            let routes = refuse_meanwhile(observed.to_mut(), desired);
            ops.extend(routes.into_iter().map(|route| RtnetlinkOp::SetRoute(route).into()));
            ops.push(InterfaceOp::Remove.into());
        }
        observed.to_mut().forget_link();
    } else if observed.device.is_none() {
        ops.push(InterfaceOp::StartDevice { source_check: wanted.source_check }.into());
    }
    match &observed.link {
        None => {
            let (peer_lookup, source_check) = (wanted.peer_lookup, wanted.source_check);
            ops.push(InterfaceOp::Create { mtu: desired.mtu, peer_lookup, source_check }.into());
        }
        Some(link) if link.mtu != desired.mtu => ops.push(RtnetlinkOp::SetMtu { mtu: desired.mtu }.into()),
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
    if !key_stays && !observed.neighbours.is_empty() {
        observed.to_mut().neighbours.clear();
    }
    observed
}

/// Our routes out of the interface that goes and comes again, so that they do not go with it.
/// One that shall go for good goes.
fn refuse_meanwhile(observed: &mut Observed, desired: &Desired) -> Vec<Route> {
    let through = |route: &&Route| route.is_ours() && matches!(route.kind, RouteKind::Device { .. });
    let stay = |route: &&Route| {
        desired.routes.contains_key(&route.destination) && !routes::is_blocked(observed, route)
    };
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
