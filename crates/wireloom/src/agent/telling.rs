//! Tells the membership source how this node is, where it shows that to people.

use std::{
    collections::{BTreeSet, HashSet},
    mem::{Discriminant, discriminant},
};

use wireloom_membership::kubernetes::Report;
use wireloom_plan::{
    health::{Encryption, Finding, Health, Verdict},
    warning::{Severity, Warning},
};

use super::Agent;
/// How many warnings are told: what people read there is no log.
const TOLD: usize = 20;

/// What tells one state of a node from the next. Sentences alone do not: some count seconds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct State {
    verdict: Discriminant<Verdict>,
    peers: (u32, u32),
    findings: HashSet<(Discriminant<Finding>, String)>,
    warnings: BTreeSet<Warning>,
    errors: Vec<String>,
}

impl Agent {
    /// Tells how this node is, if that is something new.
    pub(super) fn tell(&mut self, health: &Health) {
        if !self.publishing.is_on() {
            return;
        }
        if self.publishing.is_going() {
            self.tell_of_leaving();
            return;
        }
        let encrypted = health.peers.iter().filter(|peer| peer.encrypted == Encryption::Encrypted).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let state = State {
            verdict: discriminant(&health.verdict),
            peers: (count(encrypted), count(health.peers.len())),
            findings: health.findings.iter().map(Finding::subject).collect(),
            warnings: self.told_warnings(),
            errors: self.told_errors(),
        };
        if self.watching.told.as_ref() == Some(&state) {
            return;
        }
        let findings = health.findings.iter().map(|finding| (finding.severity(), finding.to_string()));
        let warnings = state.warnings.iter().map(|warning| (warning.severity(), warning.to_string()));
        let mut warnings: Vec<_> =
            findings.chain(warnings).filter(|(severity, _)| *severity >= Severity::Warning).collect();
        warnings.sort_by_key(|(severity, _)| std::cmp::Reverse(*severity));
        let sentences = state.errors.iter().cloned().chain(warnings.into_iter().map(|(_, text)| text));
        self.publishing.following().report(Report {
            state: match health.verdict {
                Verdict::Encrypted => "Encrypted",
                Verdict::Partly(_) => "PartlyEncrypted",
                Verdict::NotEncrypted(_) => "NotEncrypted",
            }
            .to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            message: health.verdict.to_string(),
            peers: state.peers,
            warnings: sentences.take(TOLD).collect(),
        });
        self.watching.told = Some(state);
    }

    /// Tells that this node has left the mesh, so that there is no more to tell.
    pub(super) fn tell_of_leaving(&mut self) {
        self.watching.told = None;
        self.publishing.following().report(Report::default());
    }

    /// The warnings of the plan, and what the agent alone knows and does not change by the second.
    fn told_warnings(&self) -> BTreeSet<Warning> {
        let of_agent = self.report.warnings(self.config.settings.table);
        let of_agent = of_agent.filter(|warning| {
            !matches!(warning, Warning::RemovalsHeld { .. } | Warning::RulesDeleted { .. })
        });
        let of_plan = self.reconciler.warnings().iter().cloned();
        of_plan.chain(of_agent).chain(self.config.warnings.iter().cloned()).collect()
    }

    fn told_errors(&self) -> Vec<String> {
        let report = &self.report;
        let errors = [
            &report.trouble,
            &report.membership_error,
            &report.settings_error,
            &report.key_error,
            &report.proofs_error,
            &report.preshared_error,
        ];
        errors.into_iter().filter_map(Clone::clone).collect()
    }
}
