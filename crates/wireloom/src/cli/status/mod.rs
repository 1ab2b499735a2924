//! `wireloom status`: what is so on this node, and what is wrong. docs/status.md describes it.

use std::process::ExitCode;

use clap::Args;
use wireloom_plan::health::examine;

use self::{
    facts::Known,
    report::{Findings, Report, Told},
};
use super::{
    SettingsFile,
    situation::{Problem, Situation},
};

mod drops;
mod facts;
mod lines;
mod report;
mod text;
mod watch;

/// The exit status when the status cannot be told.
pub(super) const FAILED: u8 = 3;

/// Show whether traffic is encrypted, and what is wrong
///
/// The first line says whether traffic between workloads is encrypted. Then come this node, its peers, and what is
/// wrong, with the fix. All of it is observed, and works without a running agent, too. The exit status is 0 when all is
/// well, 1 when something is wrong, 2 when nothing is encrypted, and 3 when this command itself failed.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Print the status as JSON, whose shape docs/status.md describes
    #[arg(long)]
    json: bool,
    /// Show keys, endpoints, traffic and allowed-IPs of the peers, too
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    /// Show the status every 2 seconds until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("status")?;
    if arguments.watch {
        return watch::watch(arguments);
    }
    let (text, status) = tell(arguments)?;
    super::show(&text)?;
    Ok(status)
}

/// The status as the arguments ask for it, and the exit status that it stands for.
fn tell(arguments: &Arguments) -> anyhow::Result<(String, ExitCode)> {
    let situation = Situation::observe(&arguments.settings)?;
    let mut errors = Vec::new();
    let planned = situation.cluster.as_ref().zip(situation.kernel.as_ref());
    let planned = planned.map(|(cluster, kernel)| situation.plan(cluster, kernel));
    let plan = planned.and_then(|planned| planned.map_err(|refusal| errors.push(refusal.to_string())).ok());
    let known = Known::new(&situation);
    let health = situation.kernel.as_ref();
    let health = health.map(|kernel| examine(&known.facts(&situation, kernel, plan.as_ref())));
    let errors = with_problems(errors, &situation);

    let mut warnings = Vec::new();
    for finding in health.iter().flat_map(|health| &health.findings) {
        warnings.push(Told::new(finding.severity(), finding)?);
    }
    let of_plan = plan.iter().flat_map(|plan| &plan.warnings).cloned();
    let table = situation.config.settings.table;
    let of_agent = situation.agent.iter().flat_map(|agent| agent.warnings(table));
    for warning in of_plan.chain(of_agent).chain(situation.config.warnings.iter().cloned()) {
        warnings.push(Told::new(warning.severity(), &warning)?);
    }
    warnings.sort_by_key(|told| std::cmp::Reverse(told.severity));
    let pending = plan.as_ref().map(|plan| &plan.ops[..]).unwrap_or_default();
    let report = Report::new(&situation, Findings { health: health.as_ref(), pending, warnings, errors });
    let text = match (arguments.json, arguments.watch) {
        (false, _) => text::text(&report, arguments.verbose, lines::width()),
        (true, false) => format!("{}\n", serde_json::to_string_pretty(&report)?),
        (true, true) => format!("{}\n", serde_json::to_string(&report)?),
    };
    Ok((text, ExitCode::from(report.exit_status)))
}

/// These errors, what the agent reports, and what could not be read. The agent may have found the same, and adds what
/// follows from it.
fn with_problems(mut errors: Vec<String>, situation: &Situation) -> Vec<String> {
    let agent = situation.agent.as_ref();
    let reported = agent.map(|agent| {
        [
            &agent.trouble,
            &agent.membership_error,
            &agent.settings_error,
            &agent.key_error,
            &agent.proofs_error,
            &agent.preshared_error,
        ]
    });
    let reported: Vec<&String> = reported.into_iter().flatten().flatten().collect();
    let is_new = |error: &str| !reported.iter().any(|reported| reported.starts_with(error));
    errors.retain(|error| is_new(error));
    errors.extend(reported.iter().map(|reported| (*reported).clone()));
    let unread = situation.problems.iter().filter(|problem| is_new(&problem.what));
    errors.extend(unread.map(Problem::to_string));
    errors
}
