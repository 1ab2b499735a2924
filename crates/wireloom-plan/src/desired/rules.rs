//! The policy rules: which packets look up our table.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::View;
use crate::{
    routing::{Family, OtherSelectors, PROTOCOL, Rule},
    settings::Scope,
};

impl View<'_> {
    pub(crate) fn rules(&self) -> BTreeSet<Rule> {
        if self.settings.encrypt_host_traffic {
            self.families().map(|family| self.unscoped_rule(family)).collect()
        } else {
            self.scope().map(|source| self.scoped_rule(source)).collect()
        }
    }

    /// `not from all fwmark MARK/MARK`: everything except WireGuard's own packets.
    fn unscoped_rule(&self, family: Family) -> Rule {
        Rule { invert: true, from: None, mark: self.settings.fwmark, ..self.rule(family) }
    }

    /// `from SOURCE fwmark 0/MARK`: unmarked packets from the source.
    ///
    /// It is not `not from SOURCE fwmark MARK/MARK`: the kernel inverts the whole match (`fib_rule_match`,
    /// net/core/fib_rules.c), so that would match everything except marked packets from the source.
    fn scoped_rule(&self, source: IpNet) -> Rule {
        // The kernel takes a source of length 0 for "from all" and reports no source.
        let from = (source.prefix_len() > 0).then_some(source);
        Rule { invert: false, from, mark: 0, ..self.rule(Family::of(source.addr())) }
    }

    fn rule(&self, family: Family) -> Rule {
        Rule {
            family,
            priority: self.settings.rule_priority,
            invert: false,
            from: None,
            mark: 0,
            mask: self.settings.fwmark,
            table: self.settings.table,
            protocol: PROTOCOL,
            other: OtherSelectors::default(),
        }
    }

    /// The sources of the scoped rules. Single addresses are left out, because each would cost every packet
    /// of the machine one more rule.
    pub(super) fn scope(&self) -> impl Iterator<Item = IpNet> {
        let pools = self.settings.scope == Scope::Pool && !self.cluster.pools.is_empty();
        let sources = if pools { &self.cluster.pools } else { &self.own.workloads };
        sources.iter().copied().filter(|source| source.prefix_len() < source.max_prefix_len())
    }

    /// Whether a rule leads every packet from the workload into our table.
    pub(super) fn is_covered(&self, workload: IpNet) -> bool {
        self.settings.encrypt_host_traffic || self.scope().any(|source| source.contains(&workload))
    }
}
