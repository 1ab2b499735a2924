//! Asks something of the running agent with a signal, and waits for the answer in its run file.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wireloom_kernel::state::StateDir;

use super::SettingsFile;
use crate::run_file::{RunFile, monotonic_time};

/// How often the agent is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// What is asked, and how long an answer may take.
pub(super) struct Question<'a> {
    /// The command that asks, such as `reload`.
    pub(super) command: &'a str,
    pub(super) signal: Signal,
    pub(super) patience: Duration,
}

/// Signals the agent of this node, and returns the first of its run files that answers. `answers` gets the time at
/// which it was asked too, in milliseconds of [`monotonic_time`].
pub(super) fn ask(
    question: &Question<'_>,
    settings: &SettingsFile,
    state: &StateDir,
    answers: impl Fn(&RunFile, u64) -> bool,
) -> anyhow::Result<RunFile> {
    let Question { command, signal, patience } = question;
    let interface = interface(settings, state)?;
    let asked = monotonic_time().context("cannot read the clock")?;
    let deadline = Instant::now() + *patience;
    let mut signalled = None;
    let mut last = None;
    loop {
        refuse_without_agent(state)?;
        // The agent writes its run file a moment after it takes the lock; until then another agent's may be there.
        match RunFile::read(&interface) {
            Some(agent) if signalled == Some(agent.pid) => {
                if answers(&agent, asked) {
                    return Ok(agent);
                }
                last = Some(agent);
            }
            Some(agent) if is_ready(agent.pid, *signal, &state.lock_path(), command)? => {
                send(agent.pid, *signal, command)?;
                signalled = Some(agent.pid);
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            let seconds = patience.as_secs();
            let problem = last.and_then(|agent| agent.membership_error.or(agent.trouble));
            match (signalled, problem) {
                (Some(pid), Some(problem)) => {
                    bail!("the agent (process {pid}) has not obeyed within {seconds} s: {problem}")
                }
                (Some(pid), None) => bail!(
                    "the agent (process {pid}) has not obeyed within {seconds} s; `wireloom status` and its log say \
                     what it does"
                ),
                (None, _) => bail!(
                    "an agent holds the lock in {}, but cannot be told: it has no run file, is older than this \
                     program, or runs in another container; run `wireloom {command}` where it runs, or restart it",
                    state.path().display()
                ),
            }
        }
        thread::sleep(INTERVAL);
    }
}

/// Refuses to go on when no agent runs on this node.
pub(super) fn refuse_without_agent(state: &StateDir) -> anyhow::Result<()> {
    if !state.is_locked().with_context(|| format!("cannot read {}", state.lock_path().display()))? {
        bail!("no agent is running; start it, for instance with `systemctl start wireloom`");
    }
    Ok(())
}

/// The interface of the running agent: the recorded one, otherwise that of `agent.toml`.
fn interface(settings: &SettingsFile, state: &StateDir) -> anyhow::Result<String> {
    if let Ok(Some(programmed)) = state.programmed() {
        return Ok(programmed.interface().to_owned());
    }
    Ok(settings.load()?.settings.interface)
}

/// Whether the process is the agent that holds the lock, and handles the signal. Any other process would be ended by
/// it: a number in a run file may have been given to a new process since, and an older agent may not know the signal.
fn is_ready(pid: u32, signal: Signal, lock: &Path, command: &str) -> anyhow::Result<bool> {
    let ready = || -> io::Result<bool> {
        let lock = fs::metadata(lock)?;
        let holds = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().any(|file| {
            fs::metadata(file.path()).is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino()))
        });
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(holds && catches(&status, signal))
    };
    match ready() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!(
                "may not look at the agent (process {pid}); run `wireloom {command}` as the user of the agent, or as \
                 root"
            )
        }
        // It has ended meanwhile.
        Err(_) => Ok(false),
        Ok(ready) => Ok(ready),
    }
}

/// Whether a process has a handler for the signal, according to its proc_pid_status(5).
fn catches(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal as u32 - 1) & 1 == 1
}

fn send(pid: u32, signal: Signal, command: &str) -> anyhow::Result<()> {
    let raw = Pid::from_raw(i32::try_from(pid).context("the run file is damaged; restart the agent")?);
    kill(raw, signal).with_context(|| {
        format!(
            "cannot signal the agent (process {pid}); run `wireloom {command}` as the user of the agent, or as root"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_without_a_handler_is_never_sent() {
        let status = "Name:\twireloom\nSigIgn:\tffffffffffffffff\nSigCgt:\t0000000000004203\n";
        assert!(catches(status, Signal::SIGHUP));
        assert!(catches(status, Signal::SIGUSR1));
        assert!(!catches(status, Signal::SIGUSR2));
        assert!(!catches("SigCgt:\t0000000000004002\n", Signal::SIGHUP));
        assert!(!catches("", Signal::SIGHUP));
        // This process is no agent.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_ready(std::process::id(), Signal::SIGTERM, file.path(), "reload").unwrap());
    }
}
