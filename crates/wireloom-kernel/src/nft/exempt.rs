//! What is direct in host mode all the same: packets that have an exempt address at one end.
//!
//! They get our mark, as WireGuard's own packets have it, so that the unscoped rule does not match them and the table
//! `main` routes them. A route to the address would do for one direction only: what a node with an exempt address sends
//! must be direct too, and routing by source would need one more rule, which every packet would meet.

use wireloom_plan::{firewall::GuardSet, routing::Family};

use super::{
    chain::{Chain, Hook},
    expression::{
        Expression, Key, Rule, accept, add_mark, connection, destination, drop, is_led_elsewhere,
        is_original, is_reply, meta, reject, rule, source, take_mark,
    },
    guard_sets::{FAMILIES, set},
};

/// Marks what this machine forwards, behind destination NAT (-100) and before routing.
pub(super) const GUARD_EXEMPT: Chain =
    Chain { name: "guard_exempt", hook: Hook { kind: "filter", point: "prerouting", priority: -90 } };

/// Marks what this machine sends, behind destination NAT (-100). Of type `route`, so that the kernel routes it again.
pub(super) const GUARD_EXEMPT_SENT: Chain =
    Chain { name: "guard_exempt_sent", hook: Hook { kind: "route", point: "output", priority: -90 } };

/// The rules of [`GUARD_EXEMPT`]. An answer that destination NAT will change has a workload's address still.
///
/// What NAT leads on to another machine is another packet from here on: routing decides, whatever was exempt before,
/// and the address that source NAT will give it is not known yet. Its answers come out of the tunnel, and the exempt
/// end gets them as it sent. Other answers out of the tunnel are as their sender wanted them.
pub(super) fn forwarded(mark: u32, interface: &str) -> Vec<Rule> {
    let both = FAMILIES.into_iter().flat_map(|family| {
        let from_outside = || meta("iifname").is_not_named(interface);
        let led_on = rule([
            from_outside(),
            is_original(),
            is_led_elsewhere(),
            destination(family).is_not_in(set(GuardSet::Own, family).name),
            destination(family).is_not_in(set(GuardSet::Exempt, family).name),
            take_mark(mark),
            accept(),
        ]);
        let ends =
            [destination(family), source(family)].map(|end| vec![from_outside(), is_exempt(&end, family)]);
        let answers = vec![from_outside(), is_reply(), opened_to_exempt(family)];
        let from_tunnel = [opened_to_exempt(family), opened_by_exempt(family)]
            .map(|exempt| vec![meta("iifname").is_named(interface), is_reply(), is_led_elsewhere(), exempt]);
        let marked = ends.into_iter().chain([answers]).chain(from_tunnel);
        let marked = marked.map(move |expressions| rule(expressions.into_iter().chain([add_mark(mark)])));
        [led_on].into_iter().chain(marked)
    });
    both.collect()
}

/// The rules of [`GUARD_EXEMPT_SENT`].
pub(super) fn sent(mark: u32) -> Vec<Rule> {
    let ends =
        FAMILIES.into_iter().flat_map(|family| [(destination(family), family), (source(family), family)]);
    ends.map(|(end, family)| {
        rule([meta("oifname").is_not_named("lo"), is_exempt(&end, family), add_mark(mark)])
    })
    .collect()
}

/// Lets in what was sent directly. The mark tells validation of sources by which table the answer goes. A source of our
/// own is forged.
pub(super) fn may_enter(mark: u32) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().flat_map(move |family| {
        let not_ours = move || source(family).is_not_in(set(GuardSet::Own, family).name);
        let exempt = [source(family), destination(family)]
            .map(|end| rule([is_exempt(&end, family), not_ours(), add_mark(mark), accept()]));
        let tolerated = [source(family), destination(family)]
            .map(|end| rule([end.is_in(set(GuardSet::Tolerated, family).name), not_ours(), accept()]));
        exempt.into_iter().chain(tolerated)
    })
}

/// Lets what is exempt leave.
pub(super) fn may_leave() -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().flat_map(|family| {
        let answers = rule([is_reply(), opened_to_exempt(family), accept()]);
        let ends = [source(family), destination(family)];
        ends.map(|end| rule([is_exempt(&end, family), accept()])).into_iter().chain([answers])
    })
}

/// Drops what comes in plaintext from where none is taken, whatever address of a service it was sent to; but not what
/// was sent to an exempt one, which destination NAT has changed by now.
pub(super) fn refused_for_us(interface: &str) -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().flat_map(move |family| {
        let from_others = move || {
            let to = destination(family).is_in(set(GuardSet::Own, family).name);
            [meta("iifname").is_not_named(interface), to]
        };
        let opened_to = [GuardSet::Exempt, GuardSet::Tolerated].map(|of| {
            let opened = connection("original", family, "daddr").is_in(set(of, family).name);
            rule(from_others().into_iter().chain([opened, accept()]))
        });
        let from_exempt = [GuardSet::Exempt, GuardSet::Tolerated].map(|of| {
            let from = source(family).is_in(set(of, family).name);
            rule(from_others().into_iter().chain([from, accept()]))
        });
        let refused = source(family).is_in(set(GuardSet::RefusedIn, family).name);
        let refused = rule(from_others().into_iter().chain([refused, drop()]));
        opened_to.into_iter().chain(from_exempt).chain([refused])
    })
}

/// Refuses what a workload sent to an exempt address and NAT leads on to where nothing goes in plaintext.
pub(super) fn refused_led_on() -> [Rule; 2] {
    FAMILIES.map(|family| {
        let from = source(family).is_in(set(GuardSet::Pools, family).name);
        let to = destination(family).is_in(set(GuardSet::RefusedOut, family).name);
        rule([is_original(), is_led_elsewhere(), from, to, reject(family)])
    })
}

fn opened_by_exempt(family: Family) -> Expression {
    is_exempt(&connection("original", family, "saddr"), family)
}

fn opened_to_exempt(family: Family) -> Expression {
    is_exempt(&connection("original", family, "daddr"), family)
}

fn is_exempt(address: &Key, family: Family) -> Expression {
    address.is_in(set(GuardSet::Exempt, family).name)
}
