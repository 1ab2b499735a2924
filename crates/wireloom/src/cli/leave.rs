//! `wireloom leave` and `wireloom join`: this node goes out of the mesh without losing a packet, and in again.
//!
//! The agent is asked by a file in the state directory, and answers in its run file. So another container can ask, that
//! shares these directories with it and nothing else.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use wireloom_kernel::state::{Left, StateDir};

use super::SettingsFile;
use crate::run_file::RunFile;

/// How long leaving may take: the peers get 20 s, and the store the rest.
const LEAVING: Duration = Duration::from_secs(60);

/// How long joining may take.
const JOINING: Duration = Duration::from_secs(30);

/// How often the agent's run file is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

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
    /// Succeed at once where no agent runs: there is nothing that it could lose
    #[arg(long)]
    if_running: bool,
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
    let state = StateDir::locate();
    if arguments.if_running && !is_locked(&state)? {
        super::show("no agent runs here\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    let interface = interface(&arguments.settings, &state)?;
    refuse_unless_published(&state, &interface)?;
    if state.left()?.is_none() {
        state.set_left(Some(Left { gone: false })).context("cannot record that this node leaves the mesh")?;
    }
    wait(&state, &interface, LEAVING, |agent| agent.left == Some(true))?;
    super::show("this node has left the mesh; its traffic is direct\n")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn join(arguments: &JoinArguments) -> anyhow::Result<ExitCode> {
    let state = StateDir::locate();
    let interface = interface(&arguments.settings, &state)?;
    refuse_unless_published(&state, &interface)?;
    state.set_left(None).context("cannot record that this node joins the mesh")?;
    wait(&state, &interface, JOINING, |agent| agent.left.is_none() && agent.is_published)?;
    super::show("this node has joined the mesh: its record is published\n")?;
    Ok(ExitCode::SUCCESS)
}

/// The interface of the running agent: the recorded one, otherwise that of `agent.toml`.
fn interface(settings: &SettingsFile, state: &StateDir) -> anyhow::Result<String> {
    if let Ok(Some(programmed)) = state.programmed() {
        return Ok(programmed.interface().to_owned());
    }
    Ok(settings.load()?.settings.interface)
}

fn is_locked(state: &StateDir) -> anyhow::Result<bool> {
    state.is_locked().with_context(|| format!("cannot read {}", state.lock_path().display()))
}

/// Only a store's mesh is one that this node writes.
fn refuse_unless_published(state: &StateDir, interface: &str) -> anyhow::Result<()> {
    if !is_locked(state)? {
        bail!("no agent is running; start it, for instance with `systemctl start wireloom`");
    }
    // It writes its run file a moment after it takes the lock.
    let deadline = Instant::now() + JOINING;
    loop {
        match RunFile::read(interface) {
            Some(agent) if !agent.publishes => bail!(
                "the mesh file says who is in the mesh, and this node does not write it; to leave, write encrypt = \
                 false into this node's record on all nodes, and remove the record 20 s later"
            ),
            Some(_) => return Ok(()),
            None if Instant::now() >= deadline => {
                bail!(
                    "the agent has no run file in /run/wireloom; run this where that directory is the agent's"
                )
            }
            None => thread::sleep(INTERVAL),
        }
    }
}

fn wait(
    state: &StateDir,
    interface: &str,
    patience: Duration,
    is_done: impl Fn(&RunFile) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let agent = RunFile::read(interface);
        if agent.as_ref().is_some_and(&is_done) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let seconds = patience.as_secs();
            let problem = agent.and_then(|agent| agent.membership_error.or(agent.trouble));
            match problem {
                _ if !state.is_locked().unwrap_or_default() => {
                    bail!("the agent has ended meanwhile; it goes on when it is started again")
                }
                Some(problem) => {
                    bail!("not done within {seconds} s, but the agent goes on with it: {problem}")
                }
                None => bail!(
                    "not done within {seconds} s, but the agent goes on with it; `wireloom status` and its log say \
                     what it waits for"
                ),
            }
        }
        thread::sleep(INTERVAL);
    }
}
