//! ICMP errors about packets between workloads.
//!
//! Such an error quotes what came out of the tunnel: of IPv6 up to 1,232 bytes (RFC 4443, section 3.1), of IPv4 up to
//! 548 (RFC 1812, section 4.3.2.3). This machine sends it from an address of its own, which routing does not lead into
//! the tunnel. So it gets a source that routing does lead there; and if it would leave by another interface all the
//! same, it is refused.

use std::net::IpAddr;

use wireloom_plan::{
    firewall::{Guard, GuardSet},
    routing::Family,
};

use super::{
    chain::{Chain, Hook},
    expression::{
        Expression, Rule, connection, count, destination, drop, field, has_no_connection, icmp, meta, rule,
        set_source,
    },
    guard_sets::{FAMILIES, set},
};

/// Gives the errors their source. Of type `route`, so that the kernel routes them again. It comes before NAT (-100) and
/// before [`refusals`].
pub(super) const GUARD_ERRORS: Chain =
    Chain { name: "guard_errors", hook: Hook { kind: "route", point: "output", priority: -150 } };

/// The counter of the errors that were refused.
pub(super) const ERRORS_REFUSED: &str = "errors_refused";

/// What is refused: the errors, and redirects, which quote a packet as well. The kernel sends one for each packet that
/// it leads back into the tunnel (`ip_forward` in net/ipv4/ip_forward.c), as it does while an address moves on. Those
/// of IPv6 need a link-local address of our interface, which has none.
fn refused_types(family: Family) -> Vec<&'static str> {
    let mut refused = types(family).to_vec();
    if family == Family::V4 {
        // In the order of their numbers, as the kernel gives them back.
        refused.insert(1, "redirect");
    }
    refused
}

/// The ICMP errors. Redirects are none of them: they are about neighbours.
pub(super) fn types(family: Family) -> &'static [&'static str] {
    match family {
        Family::V4 => &["destination-unreachable", "time-exceeded", "parameter-problem"],
        Family::V6 => &["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"],
    }
}

/// The rules of [`GUARD_ERRORS`].
pub(super) fn sources(guard: &Guard, interface: &str) -> Vec<Rule> {
    given_sources(guard)
        .flat_map(|(family, address)| {
            about_workloads(guard, interface, family, types(family)).map(|mut expressions| {
                expressions.push(set_source(address));
                rule(expressions)
            })
        })
        .collect()
}

fn given_sources(guard: &Guard) -> impl Iterator<Item = (Family, IpAddr)> {
    let v4 = guard.error_source_v4.map(|address| (Family::V4, address.into()));
    let v6 = guard.error_source_v6.map(|address| (Family::V6, address.into()));
    v4.into_iter().chain(v6)
}

/// Refuses the errors that would leave by another interface than ours.
pub(super) fn refusals(guard: &Guard, interface: &str) -> Vec<Rule> {
    let both = FAMILIES
        .into_iter()
        .flat_map(|family| about_workloads(guard, interface, family, &refused_types(family)));
    both.map(|mut expressions| {
        expressions.extend([count(ERRORS_REFUSED), drop()]);
        rule(expressions)
    })
    .collect()
}

/// Errors of these types to another node's workload that are not about to leave by our interface: one list of
/// expressions for each way in which they can be about a packet between workloads.
fn about_workloads(
    guard: &Guard,
    interface: &str,
    family: Family,
    types: &[&'static str],
) -> [Vec<Expression>; 3] {
    let in_pools =
        |direction, field| connection(direction, family, field).is_in(set(GuardSet::Pools, family).name);
    let between = |direction| vec![in_pools(direction, "saddr"), in_pools(direction, "daddr")];
    let to_another_node = || {
        let mut all = vec![
            meta("oifname").is_not_named(interface),
            field(icmp(family), "type").is_any_of(types),
            destination(family).is_in(set(GuardSet::Pools, family).name),
            destination(family).is_not_in(set(GuardSet::Own, family).name),
        ];
        if guard.datagrams.is_none() {
            all.push(destination(family).is_not_in(set(GuardSet::Nodes, family).name));
        }
        all
    };
    // The connection of an error is that of the packet which it is about, before NAT (original) or after it (reply).
    // Without a connection nobody knows: such an error counts as one about workloads.
    [between("original"), between("reply"), vec![has_no_connection()]].map(|about| {
        let mut all = to_another_node();
        all.extend(about);
        all
    })
}
