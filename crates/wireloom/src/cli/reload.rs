//! `wireloom reload`: the running agent reads everything again.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use clap::Args;
use nix::sys::signal::Signal;
use wireloom_kernel::state::StateDir;

use super::{
    SettingsFile,
    asking::{Question, ask},
};
use crate::run_file::{RunFile, unix_time};

/// How long to wait for the agent: longer than it waits for a file that somebody is writing (5 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// Let the running agent read agent.toml, the mesh and the private key again
///
/// Waits until the agent has obeyed them. The exit status is 1 when it could not, with the reason. The agent follows
/// changes by itself; this is for scripts that want to know the outcome, and for a new private key.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsFile,
    /// Remove missing nodes at once, even if they are most of the mesh: they are meant to go
    #[arg(long)]
    now: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("reload")?;
    let state = StateDir::locate();
    let signal = if arguments.now { Signal::SIGUSR1 } else { Signal::SIGHUP };
    let question = Question { command: "reload", signal, patience: PATIENCE };
    let agent = ask(&question, &arguments.settings, &state, |agent, asked| {
        agent.reread.is_some_and(|begun| begun >= asked)
    })?;
    report(&agent)
}

/// Says how it went.
fn report(agent: &RunFile) -> anyhow::Result<ExitCode> {
    let errors = [
        &agent.settings_error,
        &agent.key_error,
        &agent.membership_error,
        &agent.preshared_error,
        &agent.trouble,
    ];
    let errors: Vec<&str> = errors.into_iter().filter_map(|error| error.as_deref()).collect();
    if !errors.is_empty() {
        bail!("{}", errors.join("\n"));
    }
    super::show("the agent has read everything again and obeys it\n")?;
    if let Some(held) = &agent.held {
        super::show(&format!("{}\n", held.warning(unix_time())))?;
    }
    Ok(ExitCode::SUCCESS)
}
