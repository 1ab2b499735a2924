//! `wireloom plan`: what would change in the kernel now.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use owo_colors::OwoColorize;
use serde::Serialize;
use wireloom_kernel::wording;
use wireloom_plan::{
    op::{DeviceOp, FirewallOp, InterfaceOp, Op, RtnetlinkOp, SysctlOp},
    warning::Warning,
};

use super::{SettingsFile, situation::Situation};

mod check;

/// Show what the agent would change in the kernel now, and change nothing
///
/// Prints one line for each operation. The exit status is 0 when nothing would change, 2 when something would, and 1
/// on errors. With --check, it judges a mesh file instead, on any machine and without root, before that is distributed:
/// the exit status is then 0 when there is nothing to say against it, 2 when there are warnings, and 1 on a mistake.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Judge this mesh file, and say how it differs from the mesh in force here
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Print the operations and warnings as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    ops: &'a [Op],
    warnings: Vec<WarningReport<'a>>,
}

/// A warning as JSON, and its text.
#[derive(Serialize)]
pub(in crate::cli) struct WarningReport<'a> {
    #[serde(flatten)]
    warning: &'a Warning,
    pub(in crate::cli) text: String,
}

impl<'a> From<&'a Warning> for WarningReport<'a> {
    fn from(warning: &'a Warning) -> Self {
        Self { warning, text: warning.to_string() }
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(file) = &arguments.check {
        let config = arguments.settings.load()?;
        return check::run(file, &config.settings.node, arguments.json);
    }
    super::require_net_admin("plan")?;
    let situation = Situation::observe(&arguments.settings)?;
    if let Some(problem) = situation.problems.first() {
        anyhow::bail!("{}", problem.what);
    }
    let (Some(cluster), Some(kernel)) = (&situation.cluster, &situation.kernel) else {
        anyhow::bail!("no mesh is known");
    };
    if let Some(silence) = kernel.silence {
        anyhow::bail!("{silence}, so nobody knows what it lacks");
    }
    let plan = situation.plan(cluster, kernel)?;
    if arguments.json {
        let output =
            Output { ops: &plan.ops, warnings: plan.warnings.iter().map(WarningReport::from).collect() };
        super::show(&format!("{}\n", serde_json::to_string_pretty(&output)?))?;
    } else {
        let interface = &situation.config.settings.interface;
        let lines: String =
            plan.ops.iter().map(|op| format!("{} {}\n", sign(op), wording::op(op, interface))).collect();
        super::show(&lines)?;
        if plan.ops.is_empty() {
            super::show(&format!("{}\n", "nothing to do: the kernel is as desired".green()))?;
        }
        for warning in &plan.warnings {
            anstream::eprintln!("{} {warning}", "warning:".yellow().bold());
        }
    }
    Ok(if plan.ops.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Shows at a glance whether an operation adds, removes or changes something.
fn sign(op: &Op) -> String {
    let (plus, minus, tilde) = ("+".green(), "-".red(), "~".yellow());
    match op {
        Op::Interface(InterfaceOp::Create { .. }) => plus.to_string(),
        Op::Interface(InterfaceOp::StartDevice { .. }) => tilde.to_string(),
        Op::Interface(InterfaceOp::Remove) => minus.to_string(),
        Op::Device(DeviceOp::SetPeer(_)) => plus.to_string(),
        Op::Device(DeviceOp::Configure { .. }) => tilde.to_string(),
        Op::Device(DeviceOp::RemovePeer { .. }) => minus.to_string(),
        Op::Rtnetlink(
            RtnetlinkOp::AddAddress { .. }
            | RtnetlinkOp::SetNeighbour { .. }
            | RtnetlinkOp::AddLinkRoute { .. }
            | RtnetlinkOp::SetRoute(_)
            | RtnetlinkOp::AddRule(_),
        ) => plus.to_string(),
        Op::Rtnetlink(
            RtnetlinkOp::SetMtu { .. } | RtnetlinkOp::SetLinkAddress { .. } | RtnetlinkOp::SetUp,
        ) => tilde.to_string(),
        Op::Rtnetlink(
            RtnetlinkOp::RemoveAddress { .. }
            | RtnetlinkOp::RemoveNeighbour { .. }
            | RtnetlinkOp::RemoveLinkRoute { .. }
            | RtnetlinkOp::RemoveRoute(_)
            | RtnetlinkOp::RemoveRule(_),
        ) => minus.to_string(),
        Op::Firewall(FirewallOp::JudgePeer { .. } | FirewallOp::AdmitSource(_) | FirewallOp::Guard(_)) => {
            plus.to_string()
        }
        Op::Firewall(FirewallOp::Set { .. } | FirewallOp::ReplaceSources { .. }) => tilde.to_string(),
        Op::Firewall(
            FirewallOp::ForgetPeer { .. }
            | FirewallOp::RefuseSource(_)
            | FirewallOp::Unguard(_)
            | FirewallOp::Remove,
        ) => minus.to_string(),
        Op::Sysctl(SysctlOp::Set { .. } | SysctlOp::Restore { .. } | SysctlOp::SetOwnRpFilter { .. }) => {
            tilde.to_string()
        }
    }
}
