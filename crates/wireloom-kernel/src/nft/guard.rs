//! The chains of the guard: what should be encrypted neither leaves nor enters in plaintext, whatever routing says.

use wireloom_plan::{
    firewall::{Guard, GuardSet},
    routing::Family,
};

use super::{
    chain::{Chain, Hook},
    errors::{self, ERRORS_REFUSED, GUARD_ERRORS},
    expression::{
        Expression, Key, Rule, accept, add_mark, connection, count, destination, drop, field, has_mark,
        is_for_us, is_reply, jump, meta, reject, rule, source,
    },
    guard_sets::{FAMILIES, set},
};

/// Judges what leaves. Before the filters of others (0), behind destination NAT.
pub(super) const GUARD_FORWARD: Chain = filter("guard_forward", "forward", -10);
/// The same for what this machine sends itself.
pub(super) const GUARD_OUTPUT: Chain = filter("guard_output", "output", -10);
/// What both have in common.
pub(super) const GUARD_EGRESS: Chain = Chain { name: "guard_egress", hook: None };
/// Judges what enters, as it was on the wire: before NAT and before connection tracking (-200), after
/// defragmentation (-400).
pub(super) const GUARD_INGRESS: Chain = filter("guard_ingress", "prerouting", -310);
/// Leads answers to connections that came in directly past the scoped rules. After connection tracking, before routing.
pub(super) const GUARD_ANSWERS: Chain = filter("guard_answers", "prerouting", -150);

/// The counter of packets from a local workload to one whose node has proved nothing.
pub(super) const UNPROVEN_OUT: &str = "unproven_out";
/// The counter of the opposite direction.
pub(super) const UNPROVEN_IN: &str = "unproven_in";
/// The counter of packets that came out of the tunnel and would have left in plaintext.
pub(super) const RETURNED: &str = "returned";
/// The counter of packets that came in from other machines with a local workload's address as their source.
pub(super) const FORGED: &str = "forged";

/// Neighbour discovery (RFC 4861).
const DISCOVERY: [&str; 5] =
    ["nd-router-solicit", "nd-router-advert", "nd-neighbor-solicit", "nd-neighbor-advert", "nd-redirect"];

const fn filter(name: &'static str, point: &'static str, priority: i32) -> Chain {
    Chain { name, hook: Some(Hook { kind: "filter", point, priority }) }
}

/// The chains with their rules.
pub(super) fn chains(guard: &Guard, interface: &str) -> Vec<(Chain, Vec<Rule>)> {
    // A chain comes before those that jump to it.
    let mut all = vec![
        (GUARD_EGRESS, egress(guard, interface)),
        (GUARD_FORWARD, vec![rule([jump(GUARD_EGRESS.name)])]),
        (GUARD_OUTPUT, output(guard, interface)),
        (GUARD_INGRESS, ingress(guard, interface)),
        (GUARD_ERRORS, errors::sources(guard, interface)),
    ];
    if guard.datagrams.is_none() {
        all.push((GUARD_ANSWERS, answers(guard)));
    }
    all
}

/// The named counters.
pub(super) fn counters(guard: &Guard) -> impl Iterator<Item = &'static str> {
    let unproven = guard.reject.then_some([UNPROVEN_OUT, UNPROVEN_IN]);
    [RETURNED, FORGED, ERRORS_REFUSED].into_iter().chain(unproven.into_iter().flatten())
}

fn egress(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = vec![rule([meta("oifname").is_named(interface), accept()])];
    if guard.datagrams.is_none() {
        // A connection that a workload opened towards an address that is no workload came in directly. A packet without
        // a connection matches neither.
        for to_no_workload in FAMILIES.map(to_no_workload).into_iter().flatten() {
            rules.push(rule([is_reply(), to_no_workload, accept()]));
        }
        rules.extend(nodes());
    } else {
        rules.push(discovery());
    }
    // The lookup that counts comes last.
    rules.extend(FAMILIES.map(|family| {
        rule([is_from(GuardSet::Own, family), is_to(GuardSet::RefusedOut, family), reject(family)])
    }));
    if guard.outward.is_empty() {
        return rules;
    }
    rules.extend(FAMILIES.map(|family| {
        rule([
            meta("iifname").is_named(interface),
            meta("oifname").is_named_any_of(&guard.outward),
            is_from(GuardSet::Pools, family),
            is_to(GuardSet::Pools, family),
            count(RETURNED),
            reject(family),
        ])
    }));
    if guard.reject {
        rules.extend(FAMILIES.map(|family| {
            rule([
                meta("oifname").is_named_any_of(&guard.outward),
                is_from(GuardSet::Own, family),
                is_to(GuardSet::Pools, family),
                count(UNPROVEN_OUT),
                reject(family),
            ])
        }));
    }
    rules
}

fn output(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    // Our own encrypted datagrams: they alone have both.
    if let Some(datagrams) = &guard.datagrams {
        rules.push(rule([
            field("udp", "sport").is_number(datagrams.port),
            has_mark(datagrams.mark),
            accept(),
        ]));
    }
    rules.extend(errors::refusals(guard, interface));
    rules.push(rule([jump(GUARD_EGRESS.name)]));
    rules
}

fn ingress(guard: &Guard, interface: &str) -> Vec<Rule> {
    let mut rules = vec![rule([meta("iifname").is_named(interface), accept()])];
    match &guard.datagrams {
        Some(datagrams) => {
            rules.push(rule([field("udp", "dport").is_number(datagrams.port), is_for_us(), accept()]));
            rules.push(discovery());
        }
        None => rules.extend(nodes()),
    }
    rules
        .extend(FAMILIES.map(|family| {
            rule([is_to(GuardSet::Own, family), is_from(GuardSet::RefusedIn, family), drop()])
        }));
    if guard.outward.is_empty() {
        return rules;
    }
    let came_in = || meta("iifname").is_named_any_of(&guard.outward);
    if guard.reject {
        rules.extend(FAMILIES.map(|family| {
            let (to, from) = (is_to(GuardSet::Own, family), is_from(GuardSet::Pools, family));
            rule([came_in(), to, from, count(UNPROVEN_IN), drop()])
        }));
    }
    // Source validation of underlay interfaces is loose, and would let these pass.
    rules.extend(
        FAMILIES.map(|family| rule([came_in(), is_from(GuardSet::Own, family), count(FORGED), drop()])),
    );
    rules
}

/// Judged by the addresses with which the connection was opened: with a node port that masquerades, an answer is still
/// addressed to this node here.
fn answers(guard: &Guard) -> Vec<Rule> {
    let both = FAMILIES.into_iter().flat_map(|family| {
        to_no_workload(family).map(|to_no_workload| {
            let opened_by = connection("original", family, "saddr");
            rule([
                is_reply(),
                in_set(opened_by, GuardSet::Pools, family),
                to_no_workload,
                add_mark(guard.mark),
            ])
        })
    });
    both.collect()
}

/// The connection was opened towards an address outside the pools, or towards that of a node.
fn to_no_workload(family: Family) -> [Expression; 2] {
    let opened_to = || connection("original", family, "daddr");
    [opened_to().is_not_in(set(GuardSet::Pools, family).name), in_set(opened_to(), GuardSet::Nodes, family)]
}

/// Lets packets from and to nodes pass.
fn nodes() -> impl Iterator<Item = Rule> {
    FAMILIES.into_iter().flat_map(|family| {
        [is_from(GuardSet::Nodes, family), is_to(GuardSet::Nodes, family)].map(|node| rule([node, accept()]))
    })
}

fn discovery() -> Rule {
    rule([field("icmpv6", "type").is_any_of(&DISCOVERY), accept()])
}

fn is_from(of: GuardSet, family: Family) -> Expression {
    in_set(source(family), of, family)
}

fn is_to(of: GuardSet, family: Family) -> Expression {
    in_set(destination(family), of, family)
}

fn in_set(key: Key, of: GuardSet, family: Family) -> Expression {
    key.is_in(set(of, family).name)
}
