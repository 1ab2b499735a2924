//! `wireloom status`: this node, its peers, its rules, and what is wrong.

use std::{mem, process::ExitCode};

use clap::Args;
use wireloom_plan::warning::Warning;

use self::report::Report;
use super::{SettingsFile, situation::Situation};
use crate::run_file::unix_time;

mod report;
mod text;

/// Show this node's mode, peers and rules, and what is wrong
///
/// Shows the handshake, traffic and endpoint of every peer, and what the guard and, in link mode, the source check
/// refused; then changes that are still to be made, warnings and errors. Works without a running agent, too.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Print the status as JSON
    #[arg(long)]
    json: bool,
}

/// The exit status when the status cannot be told.
pub(super) const FAILED: u8 = 3;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("status")?;
    let mut situation = Situation::observe(arguments.settings.config.as_deref())?;
    let mut errors: Vec<String> = Vec::new();
    let mut pending = Vec::new();
    let mut warnings = Vec::new();
    if let (Some(cluster), Some(kernel)) = (&situation.cluster, &situation.kernel) {
        match situation.plan(cluster, &kernel.observed) {
            Ok(plan) => {
                pending = plan.ops;
                warnings.extend(plan.warnings);
            }
            Err(refusal) => errors.push(refusal.to_string()),
        }
    }
    let agent = situation.agent.as_mut();
    let one_sided = agent.map(|agent| mem::take(&mut agent.not_proved_us)).unwrap_or_default();
    let agent = situation.agent.as_ref();
    let table = situation.config.settings.table;
    let deleted = agent.and_then(|agent| agent.rules_deleted);
    warnings.extend(deleted.map(|recurrence| Warning::RulesDeleted { table, recurrence }));
    let held = agent.and_then(|agent| agent.held.as_ref());
    warnings.extend(held.map(|held| held.warning(unix_time())));
    warnings.extend(one_sided.into_keys().map(|node| Warning::HasNotProvedUs { node }));
    warnings.extend(situation.config.warnings.iter().cloned());
    let report = Report::new(&situation, pending, &warnings, errors);
    if arguments.json {
        super::show(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        super::show(&text::text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}
