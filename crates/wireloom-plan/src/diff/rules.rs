//! Rules that look up our table.

use std::collections::BTreeSet;

use crate::{
    op::RtnetlinkOp,
    routing::{Rule, find_rule, insert_rule},
};

/// Adds missing rules, then removes surplus ones among those that are ours, as `is_ours` says.
///
/// A delete request does not identify a rule: it removes the first rule that matches loosely (see
/// [`find_rule`]), which may be a desired one or somebody else's. Such a rule is added a second time first, after the
/// others of its priority, so that it is never missing; then the request is repeated until it hits its target. Each
/// request removes the target or a rule before it, and every addition comes after it, so this ends.
pub(super) fn changes(
    observed: &[Rule],
    desired: &BTreeSet<Rule>,
    is_ours: impl Fn(&Rule) -> bool,
) -> Vec<RtnetlinkOp> {
    let mut rules = observed.to_vec();
    let mut ops = Vec::new();
    let add = |rules: &mut Vec<Rule>, ops: &mut Vec<RtnetlinkOp>, rule: &Rule| {
        insert_rule(rules, rule.clone());
        ops.push(RtnetlinkOp::AddRule(rule.clone()));
    };
    for rule in desired.iter().filter(|rule| !observed.contains(rule)) {
        add(&mut rules, &mut ops, rule);
    }
    while let Some(surplus) = first_surplus(&rules, desired, &is_ours) {
        let request = rules[surplus].clone();
        // A rule always matches itself.
        let hit = find_rule(&rules, &request).unwrap_or(surplus);
        let is_only_copy = || desired.contains(&rules[hit]) && copies(&rules, hit) == 1;
        if !is_ours(&rules[hit]) || is_only_copy() {
            let kept = rules[hit].clone();
            add(&mut rules, &mut ops, &kept);
        }
        rules.remove(hit);
        ops.push(RtnetlinkOp::RemoveRule(request));
    }
    ops
}

/// A rule of ours that is not desired, or a second copy of one that is.
fn first_surplus(
    rules: &[Rule],
    desired: &BTreeSet<Rule>,
    is_ours: &impl Fn(&Rule) -> bool,
) -> Option<usize> {
    let surplus = |place: &usize| !desired.contains(&rules[*place]) || copies(rules, *place) > 1;
    (0..rules.len()).filter(|place| is_ours(&rules[*place])).find(surplus)
}

fn copies(rules: &[Rule], place: usize) -> usize {
    rules.iter().filter(|rule| **rule == rules[place]).count()
}
