//! The ordered operations that lead from what is observed to what is desired.
//!
//! The order is the point. At every moment in between, a packet meets either the way it had or
//! the way it shall have:
//!
//! 1. sysctls and firewall, so that the underlay lets WireGuard in;
//! 2. the interface and the device;
//! 3. peers that are new, and allowed-IPs that grow;
//! 4. addresses, and the interface up;
//! 5. routes, the longest prefixes first;
//! 6. rules added: they lead into a table that is whole;
//! 7. rules removed;
//! 8. routes removed, the shortest prefixes first (and preferred sources that no rule needs now);
//! 9. allowed-IPs that shrink, and peers removed;
//! 10. addresses, firewall and sysctls that are needed no longer.

mod peers;
mod routes;
mod rules;
mod teardown;

use std::{borrow::Cow, collections::BTreeSet};

use ipnet::IpNet;
pub use teardown::teardown;

use crate::{desired::Desired, kernel::Observed, key::PublicKey, op::Op, refusal::Refusal, warning::Warning};

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
    raise_underlay(observed, desired, &mut ops);
    let observed = raise_link(observed, desired, &mut ops);

    let peers = peers::changes(&observed, desired, peers::all(&observed, desired));
    ops.extend(peers.grow);

    ops.extend(desired.addresses.difference(&observed.addresses).map(|new| Op::AddAddress { address: *new }));
    if observed.link.as_ref().is_none_or(|link| !link.up) {
        ops.push(Op::SetUp);
    }

    let routes = routes::changes(&observed, desired, routes::all(&observed, desired));
    ops.extend(routes.early);
    ops.extend(rules::changes(&observed.rules, &desired.rules));
    ops.extend(routes.late);
    ops.extend(peers.shrink);

    let old = observed.addresses.difference(&desired.addresses);
    ops.extend(old.map(|old| Op::RemoveAddress { address: *old }));
    lower_underlay(&observed, desired, &mut ops);
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
    let peers = peers::changes(observed, desired, touched.peers.iter().copied());
    let routes = routes::changes(observed, desired, touched.destinations.iter().copied());
    Ok([peers.grow, routes.early, routes.late, peers.shrink].concat())
}

/// The peers and destinations that changes of the cluster touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) peers: BTreeSet<PublicKey>,
    pub(crate) destinations: BTreeSet<IpNet>,
}

impl Touched {
    pub(crate) fn extend(&mut self, other: Self) {
        self.peers.extend(other.peers);
        self.destinations.extend(other.destinations);
    }
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

fn raise_underlay(observed: &Observed, desired: &Desired, ops: &mut Vec<Op>) {
    for (interface, sysctls) in &desired.sysctls {
        let current = |sysctl| observed.underlays.get(interface).map(|underlay| underlay.sysctl(sysctl));
        let stale = sysctls.iter().filter(|(sysctl, value)| current(**sysctl) != Some(**value));
        ops.extend(stale.map(|(sysctl, value)| Op::SetUnderlaySysctl {
            interface: interface.clone(),
            sysctl: *sysctl,
            value: *value,
        }));
    }
    if let Some(firewall) = &desired.firewall
        && observed.firewall.as_ref() != Some(firewall)
    {
        ops.push(Op::SetFirewall(firewall.clone()));
    }
}

fn lower_underlay(observed: &Observed, desired: &Desired, ops: &mut Vec<Op>) {
    if observed.firewall.is_some() && desired.firewall.is_none() {
        ops.push(Op::RemoveFirewall);
    }
    for (interface, saved) in &observed.saved_sysctls {
        let wanted = desired.sysctls.get(interface);
        let unwanted = saved.keys().filter(|sysctl| wanted.is_none_or(|wanted| !wanted.contains_key(sysctl)));
        ops.extend(
            unwanted
                .map(|sysctl| Op::RestoreUnderlaySysctl { interface: interface.clone(), sysctl: *sysctl }),
        );
    }
}

/// The interface and the device. Gives what will be observed once that is done: an interface made
/// anew has lost its peers, its addresses and its routes.
fn raise_link<'a>(observed: &'a Observed, desired: &Desired, ops: &mut Vec<Op>) -> Cow<'a, Observed> {
    let mut observed = Cow::Borrowed(observed);
    if observed.link.is_none() || observed.device.is_none() {
        ops.extend(observed.link.is_some().then_some(Op::RemoveLink));
        observed.to_mut().forget_link();
    }
    match &observed.link {
        None => ops.push(Op::CreateLink { mtu: desired.mtu }),
        Some(link) if link.mtu != desired.mtu => ops.push(Op::SetMtu { mtu: desired.mtu }),
        Some(_) => {}
    }
    let wanted = &desired.device;
    let configured = observed.device.as_ref().is_some_and(|device| {
        (device.public_key, device.listen_port, device.fwmark)
            == (Some(wanted.public_key), wanted.listen_port, wanted.fwmark)
    });
    if !configured {
        ops.push(Op::ConfigureDevice {
            public_key: wanted.public_key,
            listen_port: wanted.listen_port,
            fwmark: wanted.fwmark,
        });
    }
    observed
}
