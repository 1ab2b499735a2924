//! What the table holds, apart from the elements of its sets.

use wireloom_plan::firewall::Firewall;

use super::{
    chain::Chain,
    errors::{ERRORS_REFUSED, GUARD_ERRORS},
    exempt::{GUARD_EXEMPT, GUARD_EXEMPT_SENT},
    expression::Rule,
    guard::{
        self, FORGED, GUARD_ANSWERS, GUARD_FORWARD, GUARD_INGRESS, GUARD_LEAVING, GUARD_TRANSLATED, RETURNED,
        UNPROVEN_IN, UNPROVEN_OUT,
    },
    guard_sets,
    rules::{
        JUDGE_SOURCES, MARK_INCOMING, REFUSED, SOURCES_V4, SOURCES_V6, STRANGERS, judge_sources,
        mark_incoming,
    },
    segments::{self, SEGMENTS_IN, SEGMENTS_OUT},
    set::Set,
};

/// Every chain that the table can have.
pub(super) const CHAINS: [Chain; 12] = [
    MARK_INCOMING,
    JUDGE_SOURCES,
    GUARD_FORWARD,
    GUARD_LEAVING,
    GUARD_TRANSLATED,
    GUARD_INGRESS,
    GUARD_ERRORS,
    GUARD_ANSWERS,
    GUARD_EXEMPT,
    GUARD_EXEMPT_SENT,
    SEGMENTS_IN,
    SEGMENTS_OUT,
];

/// Every named counter that it can have.
pub(super) const COUNTERS: [&str; 6] =
    [STRANGERS, UNPROVEN_OUT, UNPROVEN_IN, RETURNED, FORGED, ERRORS_REFUSED];

/// Every set that it can have.
pub(super) fn sets() -> Vec<Set> {
    [REFUSED, SOURCES_V4, SOURCES_V6].into_iter().chain(guard_sets::all().map(|(_, set)| set)).collect()
}

/// What the table holds for the wanted chains.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) chains: Vec<(Chain, Vec<Rule>)>,
    pub(super) sets: Vec<Set>,
    pub(super) counters: Vec<&'static str>,
}

impl Contents {
    pub(super) fn of(firewall: &Firewall, interface: &str) -> Self {
        let mut contents = Self::default();
        if let Some(mark) = &firewall.mark_incoming {
            contents.chains.push((MARK_INCOMING, vec![mark_incoming(mark)]));
        }
        if firewall.judge_sources {
            contents.chains.push((JUDGE_SOURCES, judge_sources(interface)));
            contents.sets.extend([REFUSED, SOURCES_V4, SOURCES_V6]);
            contents.counters.push(STRANGERS);
        }
        if let Some(guard) = &firewall.guard {
            contents.chains.extend(guard::chains(guard, interface));
            contents.sets.extend(guard_sets::all().map(|(_, set)| set));
            contents.counters.extend(guard::counters(guard));
        }
        if let Some(bytes) = firewall.segment_v6 {
            contents.chains.extend(segments::chains(bytes, interface));
        }
        contents
    }
}
