//! How the kernel orders, finds and deletes policy rules (`net/core/fib_rules.c`).

use super::{OtherSelectors, Rule};

/// Insert as `fib_nl_newrule` does: after every rule of the same or a lower priority.
pub(crate) fn insert_rule(rules: &mut Vec<Rule>, rule: Rule) {
    let place = rules
        .iter()
        .position(|other| other.family == rule.family && other.priority > rule.priority)
        .unwrap_or(rules.len());
    rules.insert(place, rule);
}

/// The rule that a delete request for `request` hits, as `rule_find` and the families'
/// `compare` decide: the first whose priority is the same and that has what the request has.
///
/// What is zero or absent in the request matches anything: no source, mark 0, mask 0, protocol
/// 0, no other selector. The invert flag is not looked at. Measured on Linux 6.18: with
/// `from P fwmark 0/0xa` and `from all` at one priority, deleting `from all` deletes the first.
pub(crate) fn find_rule(rules: &[Rule], request: &Rule) -> Option<usize> {
    rules.iter().position(|rule| {
        rule.family == request.family
            && rule.priority == request.priority
            && rule.table == request.table
            && request.from.is_none_or(|from| from.prefix_len() == 0 || rule.from == Some(from))
            && (request.mark == 0 || rule.mark == request.mark)
            && (request.mask == 0 || rule.mask == request.mask)
            && (request.protocol == 0 || rule.protocol == request.protocol)
            && has_selectors(&rule.other, &request.other)
    })
}

fn has_selectors(rule: &OtherSelectors, request: &OtherSelectors) -> bool {
    request.to.is_none_or(|to| to.prefix_len() == 0 || rule.to == Some(to))
        && (request.tos == 0 || rule.tos == request.tos)
        && request.attributes.iter().all(|(kind, value)| rule.attributes.get(kind) == Some(value))
}
