//! What of this node itself keeps traffic with every other node from being encrypted.

use std::collections::BTreeSet;

use super::{DeviceFacts, Facts, Why, foreign_rules, routes::Astray};
use crate::{
    cluster::Node,
    op::{FirewallOp, Op},
    routing::Rule,
};

/// This node.
pub(super) struct Own<'a> {
    /// Its record.
    pub(super) record: Option<&'a Node>,
    /// Why nothing is encrypted, the most important reason first.
    pub(super) obstacles: Vec<Why>,
    /// The rules that should be there.
    pub(super) missing_rules: BTreeSet<Rule>,
    /// What packets for other nodes meet in our table instead of a route into the tunnel.
    pub(super) astray: Astray<'a>,
    /// Whether the guard should be there, and is not as it should be.
    pub(super) lacks_guard: bool,
    /// Whether the guard refuses plaintext.
    pub(super) guards: bool,
    /// Nothing of ours is on this machine.
    pub(super) is_bare: bool,
}

impl<'a> Own<'a> {
    pub(super) fn of(facts: &Facts<'a>) -> Self {
        let settings = facts.settings;
        let observed = facts.observed;
        let record = facts.cluster.and_then(|cluster| cluster.nodes.get(&settings.node));
        let guards =
            observed.firewall.as_ref().is_some_and(|firewall| !firewall.altered && firewall.guard.is_some());
        let has_rules = observed.rules.iter().any(Rule::is_ours);
        let interface = observed.interface.as_ref().filter(|interface| interface.is_ours());
        let missing_rules = foreign_rules::missing(facts);
        // Without a plan nobody knows which ones there should be.
        let lacks_rules = !missing_rules.is_empty() || (facts.plan.is_none() && !has_rules);
        let key = observed.device.as_ref().and_then(|device| device.public_key);
        let answers = matches!(facts.device, DeviceFacts::Answers { .. });
        let obstacles = [
            (facts.cluster.is_none(), Why::NoMesh),
            (facts.cluster.is_some() && record.is_none(), Why::NotInMesh),
            (interface.is_none_or(|interface| !interface.up), Why::NoInterface),
            (interface.is_some() && !answers, Why::NoDevice),
            (record.is_some_and(|record| !record.encrypt), Why::WeDoNotEncrypt),
            (
                answers
                    && record.is_some_and(|record| record.public_key.is_none() || record.public_key != key),
                Why::OurKey,
            ),
            (lacks_rules, Why::NoRules),
        ];
        Self {
            record,
            obstacles: obstacles.into_iter().filter(|(holds, _)| *holds).map(|(_, why)| why).collect(),
            missing_rules,
            astray: Astray::of(facts),
            lacks_guard: settings.guard && (!guards || sets_firewall(facts)),
            guards,
            is_bare: interface.is_none() && !has_rules && observed.firewall.is_none(),
        }
    }
}

/// Whether an agent would make the table anew.
fn sets_firewall(facts: &Facts<'_>) -> bool {
    let ops = facts.plan.into_iter().flat_map(|plan| &plan.ops);
    ops.into_iter().any(|op| matches!(op, Op::Firewall(FirewallOp::Set { anew: true, .. })))
}
