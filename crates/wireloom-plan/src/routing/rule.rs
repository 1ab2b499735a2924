//! Policy rules, and how the kernel orders, finds and deletes them (`net/core/fib_rules.c`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::Serialize;

use super::{Family, PROTOCOL};

/// A policy rule that looks up our table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Rule {
    /// The family whose packets it matches.
    pub family: Family,
    /// `FRA_PRIORITY`.
    pub priority: u32,
    /// `FIB_RULE_INVERT`: inverts the *whole* match.
    pub invert: bool,
    /// Source prefix; absent matches every source.
    pub from: Option<IpNet>,
    /// `FRA_FWMARK`, compared under the mask.
    pub mark: u32,
    /// `FRA_FWMASK`; 0 ignores the packet's mark.
    pub mask: u32,
    /// The table that it looks up.
    pub table: u32,
    /// `FRA_PROTOCOL`; ours have [`PROTOCOL`](super::PROTOCOL).
    pub protocol: u8,
    /// Selectors that Wireloom never writes, kept so that the rule can be deleted exactly.
    pub other: OtherSelectors,
}

impl Rule {
    /// Made by this agent or by an earlier one.
    pub fn is_ours(&self) -> bool {
        self.protocol == PROTOCOL
    }

    /// The rule of Calico issue #9751, whoever made it: it leads everything without the mark to the table, and has
    /// no other selector. An upgrade replaces it at any priority.
    pub fn is_unscoped(&self, mark: u32) -> bool {
        self.invert
            && self.from.is_none()
            && (self.mark, self.mask) == (mark, mark)
            && self.other == OtherSelectors::default()
    }
}

/// Selectors of a rule that Wireloom never writes; empty in every rule that it does write.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct OtherSelectors {
    /// Destination prefix; absent matches every destination.
    pub to: Option<IpNet>,
    /// The header's `tos`; 0 matches any.
    pub tos: u8,
    /// Every other netlink attribute that selects (`FRA_IIFNAME`, `FRA_UID_RANGE`, …): type and payload.
    /// Those that say "not set" (`FRA_SUPPRESS_PREFIXLEN` of all ones) are left out.
    pub attributes: BTreeMap<u16, Vec<u8>>,
}

/// Inserts a rule as `fib_nl_newrule` does: after every rule of the same or a lower priority.
pub(crate) fn insert_rule(rules: &mut Vec<Rule>, rule: Rule) {
    let place = rules
        .iter()
        .position(|other| other.family == rule.family && other.priority > rule.priority)
        .unwrap_or(rules.len());
    rules.insert(place, rule);
}

/// Finds the rule that a delete request for `request` hits. As `rule_find` and the families' `compare`
/// decide, it is the first with the same priority that has everything that the request has.
///
/// A field that is zero or absent in the request matches anything: no source, mark 0, mask 0, protocol 0,
/// no other selector. The invert flag is ignored. Measured on Linux 6.18: with `from P fwmark 0/0xa` and
/// `from all` at one priority, deleting `from all` deletes the former.
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
