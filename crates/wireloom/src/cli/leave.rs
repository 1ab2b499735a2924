//! `wireloom leave` and `wireloom join`: this node goes out of the mesh without losing a packet, and in again.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::Signal;
use wireloom_kernel::state::{Left, StateDir};
use wireloom_membership::Source;

use super::{
    SettingsFile,
    asking::{Question, ask, refuse_without_agent},
};
use crate::agent::leaves_by_file;

/// How long leaving may take: the peers get 20 s, and the store the rest.
const LEAVING: Duration = Duration::from_secs(60);

/// How long joining may take.
const JOINING: Duration = Duration::from_secs(20);

/// Let this node leave the mesh: it publishes encrypt = false, and removes its record once the peers have gone direct
///
/// No packet is lost, and what was encrypted with this node goes direct. Returns when the store has no record of this
/// node any more, which takes about 20 s; the exit status is 1 when that is not so after a minute, and the agent goes
/// on with it by itself. The agent keeps running, as a node outside the mesh, also after a restart, until `wireloom
/// join` or `wireloom down`.
#[derive(Debug, Args)]
pub(super) struct LeaveArguments {
    #[command(flatten)]
    settings: SettingsFile,
}

/// Let this node join the mesh again that it left with `wireloom leave`
///
/// Returns when the store has this node's record.
#[derive(Debug, Args)]
pub(super) struct JoinArguments {
    #[command(flatten)]
    settings: SettingsFile,
}

pub(super) fn leave(arguments: &LeaveArguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("leave")?;
    let state = StateDir::locate();
    refuse_without_agent(&state)?;
    let config = arguments.settings.load()?;
    if let Source::File(path) = &config.membership {
        bail!("{}", leaves_by_file(path, &config.settings.node));
    }
    if state.left()?.is_none() {
        state.set_left(Some(Left { gone: false })).context("cannot record that this node leaves the mesh")?;
    }
    let question = Question { command: "leave", signal: Signal::SIGHUP, patience: LEAVING };
    ask(&question, &arguments.settings, &state, |agent, _| agent.left == Some(true))?;
    super::show("this node has left the mesh; its traffic is direct\n")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn join(arguments: &JoinArguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("join")?;
    let state = StateDir::locate();
    refuse_without_agent(&state)?;
    if let Source::File(_) = arguments.settings.load()?.membership {
        bail!("the mesh file says who is in the mesh; write this node's record into it");
    }
    state.set_left(None).context("cannot record that this node joins the mesh")?;
    let question = Question { command: "join", signal: Signal::SIGHUP, patience: JOINING };
    ask(&question, &arguments.settings, &state, |agent, _| agent.left.is_none() && agent.is_published)?;
    super::show("this node has joined the mesh: its record is published\n")?;
    Ok(ExitCode::SUCCESS)
}
