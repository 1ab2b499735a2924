//! Rules of others that workloads' packets meet before ours.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Action, Facts, PolicyRule, prefixes::Prefixes};
use crate::{
    cluster::Node,
    routing::{Family, Rule},
};

/// `FRA_…` of include/uapi/linux/fib_rules.h.
const IIFNAME: u16 = 3;
const SUPPRESS_IFGROUP: u16 = 13;
const SUPPRESS_PREFIXLEN: u16 = 14;
const OIFNAME: u16 = 17;

/// The table of the kernel's own addresses (`RT_TABLE_LOCAL`): what it has is for this machine.
const LOCAL: u32 = 255;

/// A foreign rule that may take packets of local workloads away from ours.
pub(super) struct Catching<'a> {
    pub(super) rule: &'a PolicyRule,
    /// One of the local workloads that it matches.
    pub(super) workload: IpNet,
    /// It has selectors besides addresses, so that it matches some packets only.
    pub(super) sometimes: bool,
    /// The destinations in its table; `None` when it takes packets to all.
    table: Option<Prefixes<'a>>,
    /// The least length of a prefix that leads anywhere.
    least: u8,
}

impl Catching<'_> {
    /// Whether it takes packets to this workload CIDR of another node.
    pub(super) fn takes(&self, remote: IpNet) -> bool {
        Family::of(remote.addr()) == self.rule.rule.family
            && self.rule.rule.other.to.is_none_or(|to| overlap(to, remote))
            && self.table.as_ref().is_none_or(|table| table.any_overlaps(remote, self.least))
    }
}

/// Those that take packets to any workload of another node.
pub(super) fn find<'a>(facts: &Facts<'a>, own: &'a Node) -> Vec<Catching<'a>> {
    let others = facts.cluster.into_iter().flat_map(|cluster| &cluster.nodes);
    let others = others.filter(|(name, _)| **name != facts.settings.node);
    let remote: Vec<IpNet> = others.flat_map(|(_, node)| &node.workloads).copied().collect();
    let catching = earlier(facts).filter_map(|rule| catching(facts, own, rule));
    catching.filter(|catching| remote.iter().any(|remote| catching.takes(*remote))).collect()
}

/// The foreign rules that come before the first of ours of their family, or before where ours belong.
fn earlier<'a>(facts: &Facts<'a>) -> impl Iterator<Item = &'a PolicyRule> + use<'a> {
    let settings = facts.settings;
    let is_ours = move |rule: &Rule| rule.is_ours() || rule.is_unscoped(settings.fwmark);
    let rules = &facts.machine.rules;
    Family::ALL.into_iter().flat_map(move |family| {
        let of_family = move || rules.iter().filter(move |rule| rule.rule.family == family);
        let first = of_family().position(|rule| is_ours(&rule.rule) && rule.rule.table == settings.table);
        let before = of_family().enumerate().filter(move |(place, rule)| match first {
            Some(first) => *place < first,
            None => rule.rule.priority < settings.rule_priority,
        });
        before.map(|(_, rule)| rule).filter(move |rule| !is_ours(&rule.rule))
    })
}

fn catching<'a>(facts: &Facts<'a>, own: &Node, policy: &'a PolicyRule) -> Option<Catching<'a>> {
    let rule = &policy.rule;
    let table = match policy.action {
        Action::Nop => return None,
        // It comes back before ours.
        Action::Goto(priority) if priority <= facts.settings.rule_priority => return None,
        Action::Lookup if [facts.settings.table, LOCAL].contains(&rule.table) => return None,
        Action::Lookup => Some(Prefixes::new(facts.machine.tables.get(&rule.table)?)),
        _ => None,
    };
    let workload = own.workloads.iter().copied().find(|workload| {
        Family::of(workload.addr()) == rule.family
            && rule.from.is_none_or(|from| match rule.invert {
                false => overlap(from, *workload),
                true => !from.contains(workload) || has_more_selectors(rule),
            })
    })?;
    let attributes = &rule.other.attributes;
    // Packets that pass through have no outgoing interface yet, and do not come in by `lo`.
    let local_only = attributes.contains_key(&OIFNAME)
        || attributes.get(&IIFNAME).is_some_and(|name| name.starts_with(b"lo\0"));
    if local_only && !rule.invert {
        return None;
    }
    Some(Catching {
        rule: policy,
        workload,
        sometimes: !rule.invert && has_more_selectors(rule),
        table,
        least: least_length(rule),
    })
}

/// Whether it matches by more than addresses. A mark of 0 is what packets have unless somebody marks them.
fn has_more_selectors(rule: &Rule) -> bool {
    let selects = |kind: &u16| ![SUPPRESS_IFGROUP, SUPPRESS_PREFIXLEN].contains(kind);
    rule.mark != 0 || rule.other.tos != 0 || rule.other.attributes.keys().any(selects)
}

/// `suppress_prefixlength N` passes over routes whose prefixes are no longer than N.
fn least_length(rule: &Rule) -> u8 {
    let suppressed = rule.other.attributes.get(&SUPPRESS_PREFIXLEN);
    let suppressed = suppressed.and_then(|value| value.as_slice().try_into().ok()).map(u32::from_ne_bytes);
    suppressed.map_or(0, |length| u8::try_from(length).unwrap_or(u8::MAX).saturating_add(1))
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The rules that an agent would add.
pub(super) fn missing(facts: &Facts<'_>) -> BTreeSet<Rule> {
    use crate::op::{Op, RtnetlinkOp};
    let ops = facts.plan.into_iter().flat_map(|plan| &plan.ops);
    let added = ops.filter_map(|op| match op {
        Op::Rtnetlink(RtnetlinkOp::AddRule(rule)) => Some(rule.clone()),
        _ => None,
    });
    added.collect()
}
