//! `wireloom health`: what probes ask.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use wireloom_kernel::state::StateDir;

use crate::{
    instance_file::Instance,
    run_file::{RunFile, monotonic_time},
};

/// Tell whether the agent lives, or whether the kernel is as planned
///
/// Prints one line, and ends with exit status 0 if it is so and 1 if not. It reads what the agent wrote down and
/// changes nothing, so probes may ask as often as they like; it needs no port. An outage of the membership source does
/// not count: the last mesh stays in force. In a pod it asks for the agent of that pod, which may be waiting for
/// another one's end.
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
    let instance = Instance::from_environment();
    let outcome = if instance.is_named() {
        answer_of(&instance, arguments.question)?
    } else {
        answer(arguments.question)?.map(|()| "ok".to_owned())
    };
    let (text, status) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(why) => (why, ExitCode::FAILURE),
    };
    super::show(&format!("{text}\n"))?;
    Ok(status)
}

/// Whether it is so of the agent of this pod, which may be one of two on the node; the inner error is why not.
fn answer_of(instance: &Instance, question: Question) -> anyhow::Result<Result<String, String>> {
    let Some(report) = instance.read() else { return Ok(Err("the agent is starting".into())) };
    let now = monotonic_time().context("cannot read the clock")?;
    Ok(match question {
        Question::Live => report.live(now),
        Question::Ready => report.ready(now),
    })
}

/// Whether it is so of the agent that serves this node; the inner error is why not.
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
