//! `wireloom down`: takes everything away that the agent programmed.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use owo_colors::OwoColorize;
use wireloom_kernel::{
    Kernel, Linux,
    state::{LOCK_PATIENCE, Programmed, StateDir},
    wording,
};
use wireloom_plan::diff::teardown;

use crate::{config::Config, run_file::RunFile};

/// Take everything away: rules, routes, the interface and its process, the firewall; sysctls go back.
///
/// Only the private key stays. It needs neither a valid agent.toml nor a mesh file.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The settings [default: /etc/wireloom/agent.toml, which may be absent]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("down")?;
    let state = StateDir::locate();
    let programmed = what_is_programmed(arguments, &state)?;
    let lock =
        state.lock(LOCK_PATIENCE).with_context(|| format!("cannot lock {}", state.path().display()))?;
    let Some(lock) = lock else {
        bail!("{}", agent_runs(&programmed.interface));
    };

    let mut kernel = Linux::open(&programmed.interface, programmed.table, state.clone())?;
    kernel.finish_creation()?;
    let ops = teardown(&kernel.observe_for_removal()?);
    for op in &ops {
        anstream::println!("{} {}", "-".red(), wording::op(op, &programmed.interface));
    }
    kernel.apply(&ops).map_err(|errors| {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", texts.join("\n"))
    })?;
    if let Some(left) = teardown(&kernel.observe_for_removal()?).first() {
        bail!(
            "something came back while it was taken away: it still takes to {}",
            wording::op(left, &programmed.interface)
        );
    }
    RunFile::remove(&programmed.interface).context("cannot remove the run file")?;
    state.clear().with_context(|| format!("cannot clear {}", state.path().display()))?;
    drop(lock);
    if ops.is_empty() {
        anstream::println!("nothing of Wireloom's is here");
    }
    Ok(ExitCode::SUCCESS)
}

/// What the agent recorded; without a record what `agent.toml` says, and if that cannot be
/// read, the defaults.
fn what_is_programmed(arguments: &Arguments, state: &StateDir) -> anyhow::Result<Programmed> {
    let recorded = state
        .programmed()
        .with_context(|| format!("cannot read what is programmed in {}", state.path().display()))?;
    if let Some(programmed) = recorded {
        return Ok(programmed);
    }
    match Config::load(arguments.config.as_deref()) {
        Ok(config) => Ok(Programmed { interface: config.settings.interface, table: config.settings.table }),
        Err(error) => {
            anstream::eprintln!(
                "{} {error}; interface wg0 and table 1 are assumed",
                "warning:".yellow().bold()
            );
            Ok(Programmed { interface: "wg0".into(), table: 1 })
        }
    }
}

fn agent_runs(interface: &str) -> String {
    match RunFile::read(interface) {
        Some(RunFile { pid, .. }) => {
            format!(
                "the agent runs (process {pid}); stop it first, with `systemctl stop wireloom` or `kill {pid}`"
            )
        }
        None => "the agent runs; stop it first, with `systemctl stop wireloom`".into(),
    }
}
