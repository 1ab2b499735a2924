//! What the table holds, as read or as our operations leave it.

use std::collections::BTreeSet;

use wireloom_plan::{
    firewall::{Firewall, Guarded, Source},
    observed::Observed,
    op::{FirewallOp, Op},
};
use wireloom_types::LinkAddress;

use super::counters::{GuardCounters, Refusals};

/// The contents of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) firewall: Option<Firewall>,
    pub(crate) judged_peers: BTreeSet<LinkAddress>,
    pub(crate) sources: BTreeSet<Source>,
    pub(crate) guarded: BTreeSet<Guarded>,
    pub(crate) refusals: Refusals,
    pub(crate) guard_counters: GuardCounters,
}

impl Table {
    /// What operations make of it, without counters. `None` when the kernel would refuse one.
    pub(super) fn after(&self, ops: &[&FirewallOp]) -> Option<Self> {
        let mut twin = Observed {
            firewall: self.firewall.clone(),
            judged_peers: self.judged_peers.clone(),
            sources: self.sources.clone(),
            guarded: self.guarded.clone(),
            ..Observed::default()
        };
        for op in ops {
            match op {
                // It need not be there.
                FirewallOp::Remove if twin.firewall.is_none() => {}
                op => twin.apply(&Op::Firewall((*op).clone())).ok()?,
            }
        }
        Some(Self {
            firewall: twin.firewall,
            judged_peers: twin.judged_peers,
            sources: twin.sources,
            guarded: twin.guarded,
            ..Self::default()
        })
    }

    /// Its chains, if the guard is among them.
    pub(super) fn guarding(&self) -> Option<&Firewall> {
        self.firewall.as_ref().filter(|firewall| firewall.guard.is_some())
    }
}
