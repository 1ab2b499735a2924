//! `wireloom reload`: the running agent reads everything again.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wireloom_kernel::state::StateDir;

use super::SettingsFile;
use crate::run_file::{RunFile, monotonic_time, unix_time};

/// How long to wait for the agent: longer than it waits for a file that somebody is writing (5 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// How often the agent is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

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
    let interface = interface(arguments, &state)?;
    let signal = if arguments.now { Signal::SIGUSR1 } else { Signal::SIGHUP };
    let asked = monotonic_time().context("cannot read the clock")?;
    let deadline = Instant::now() + PATIENCE;
    let mut signalled = None;
    loop {
        if !state.is_locked().with_context(|| format!("cannot read {}", state.lock_path().display()))? {
            bail!("no agent is running; start it, for instance with `systemctl start wireloom`");
        }
        // The agent writes its run file a moment after it takes the lock; until then another agent's may be there.
        match RunFile::read(&interface) {
            Some(agent)
                if signalled == Some(agent.pid) && agent.reread.is_some_and(|begun| begun >= asked) =>
            {
                return report(&agent);
            }
            Some(agent)
                if signalled != Some(agent.pid) && is_ready(agent.pid, signal, &state.lock_path())? =>
            {
                send(agent.pid, signal)?;
                signalled = Some(agent.pid);
            }
            _ => {}
        }
        if Instant::now() >= deadline {
            let seconds = PATIENCE.as_secs();
            match signalled {
                Some(pid) => {
                    let error = RunFile::read(&interface).and_then(|agent| agent.membership_error);
                    let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                    bail!(
                        "the agent (process {pid}) has not obeyed within {seconds} s; `wireloom status` and its log \
                         say what it does{why}"
                    )
                }
                None => bail!(
                    "an agent holds the lock in {}, but cannot be told to reload: it has no run file, is older than \
                     this program, or runs in another container; run `wireloom reload` where it runs, or restart it",
                    state.path().display()
                ),
            }
        }
        thread::sleep(INTERVAL);
    }
}

/// The interface of the running agent: the recorded one, otherwise that of `agent.toml`.
fn interface(arguments: &Arguments, state: &StateDir) -> anyhow::Result<String> {
    if let Ok(Some(programmed)) = state.programmed() {
        return Ok(programmed.interface().to_owned());
    }
    Ok(arguments.settings.load()?.settings.interface)
}

/// Whether the process is the agent that holds the lock, and handles the signal. Any other process would be ended by
/// it: a number in a run file may have been given to a new process since, and an older agent may not know the signal.
fn is_ready(pid: u32, signal: Signal, lock: &Path) -> anyhow::Result<bool> {
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
                "may not look at the agent (process {pid}); run `wireloom reload` as the user of the agent, or as root"
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

fn send(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let raw = Pid::from_raw(i32::try_from(pid).context("the run file is damaged; restart the agent")?);
    kill(raw, signal).with_context(|| {
        format!("cannot signal the agent (process {pid}); run `wireloom reload` as the user of the agent, or as root")
    })
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
        assert!(!is_ready(std::process::id(), Signal::SIGTERM, file.path()).unwrap());
    }
}
