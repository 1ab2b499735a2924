//! `wireloom health`: what probes ask.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use wireloom_kernel::state::StateDir;

use crate::run_file::{RunFile, monotonic_time};

/// Tell whether the agent lives, or whether the kernel is as planned
///
/// Prints one line, and ends with exit status 0 if it is so and 1 if not. It reads what the agent wrote down and
/// changes nothing, so probes may ask as often as they like; it needs no port. An outage of the membership source does
/// not count: the last mesh stays in force.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What is asked
    question: Question,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Question {
    /// Whether the agent runs and does its work
    Live,
    /// Whether the kernel is as the mesh and the settings want it
    Ready,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::require_net_admin("health")?;
    let (text, status) = match answer(arguments.question)? {
        Ok(()) => ("ok".to_owned(), ExitCode::SUCCESS),
        Err(why) => (why, ExitCode::FAILURE),
    };
    super::show(&format!("{text}\n"))?;
    Ok(status)
}

/// Whether it is so; the inner error is why not.
fn answer(question: Question) -> anyhow::Result<Result<(), String>> {
    let state = StateDir::locate();
    if !state.is_locked().with_context(|| format!("cannot read {}", state.lock_path().display()))? {
        return Ok(Err("no agent runs".into()));
    }
    // The agent records what it programs before anything else.
    let programmed = state.programmed().context("cannot read what the agent programmed")?;
    let agent = programmed.and_then(|programmed| RunFile::read(programmed.interface()));
    let Some(RunFile { pulse, .. }) = agent else { return Ok(Err("the agent is starting".into())) };
    let now = monotonic_time().context("cannot read the clock")?;
    Ok(match question {
        Question::Live => pulse.live(now),
        Question::Ready => pulse.ready(now),
    })
}
