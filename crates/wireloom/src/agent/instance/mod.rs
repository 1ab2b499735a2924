//! Instances: each start of a pod or unit is one, and one of them serves this node, the holder of the agent's lock.
//!
//! ```text
//!             the lock is free, or             another asks                    nobody has served for 2 s
//!  arriving ─ was given ────────────▶ serving ─────────────▶ passive: waits ─────────────────────────▶ serving
//! ```
//!
//! An arriving instance first [rehearses](rehearsal): it reads everything and makes its plan, and touches nothing if it
//! cannot. Then it asks the one that serves for the lock (`question`). That one ends its pass, writes down what it
//! knows, and starts its own program anew, passive: the kernel closes the lock and ends all its threads in one step, so
//! nothing of it touches anything any more. A passive instance never asks. What an instance does next while it waits is
//! decided in [`waiting`], which knows no clock and no socket.

mod question;
mod rehearsal;
mod waiting;

use std::{
    env, fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    flag,
};
use wireloom_kernel::state::{AgentLock, StateDir};

pub(crate) use self::question::remove_socket;
pub(super) use self::{
    question::{Asker, Listener},
    rehearsal::rehearse,
};
use self::{
    question::{LockId, ask},
    waiting::{Answer, Step, Waiting},
};
use super::Agent;
use crate::{
    instance_file::{Instance, InstanceFile, Role},
    metrics::Pulse,
    run_file::monotonic_time,
};

/// The option that starts an instance which has given the lock away.
pub(crate) const PASSIVE: &str = "--passive";

/// Longer than another process's [`StateDir::is_locked`] holds the lock.
const GLANCE: Duration = Duration::from_millis(50);

/// How soon a signal is obeyed while nothing else is done: nobody notices a tenth of a second.
const NAP: Duration = Duration::from_millis(100);

/// How often the instance's file is renewed while it waits. The liveness probe gives up on one that is 90 s old
/// (`TURN_MAX` in metrics/pulse.rs), which is more than four of these.
const BEAT: Duration = Duration::from_secs(20);

/// Waits until this instance is to serve, and returns the lock, and what says that a signal has come since; `None` when
/// one ends it first. `rehearse` reads everything and changes nothing. It is called when another instance has the lock,
/// before that is asked for it.
///
/// # Errors
/// Those of `rehearse`, and the lock's own.
pub(super) fn wait_to_serve(
    state: &StateDir,
    instance: &Instance,
    is_passive: bool,
    rehearse: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<(AgentLock, Arc<AtomicBool>)>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        flag::register(signal, Arc::clone(&stop))?;
    }
    // Meant for an agent that serves: `wireloom reload` may not know yet who that is.
    for signal in [SIGHUP, SIGUSR1] {
        flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let locking = || format!("cannot lock {}", state.lock_path().display());
    let gave_way = is_passive || instance.read().is_some_and(|before| before.gave_way);
    let mut report = InstanceFile { gave_way, ..InstanceFile::default() };
    let mut waiting = if gave_way {
        tracing::info!(
            "another instance of the agent serves this node; waiting until it or this one is ended"
        );
        report.role = Role::Passive;
        Waiting::passive()
    } else {
        beat(instance, &mut report);
        if let Some(lock) = state.lock(GLANCE).with_context(locking)? {
            return Ok(Some((lock, stop)));
        }
        rehearse()
            .context("another agent serves this node and goes on; this one cannot take over from it")?;
        Waiting::arriving()
    };
    beat(instance, &mut report);
    let begun = Instant::now();
    let mut beaten = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        match waiting.next(begun.elapsed()) {
            Step::Sleep(until) => thread::sleep(until.saturating_sub(begun.elapsed()).min(NAP)),
            Step::Look => {
                // Without the file, `wireloom down` has removed everything: then it is not to come back.
                let is_held = !state.lock_path().exists() || state.is_locked().with_context(locking)?;
                waiting.looked(is_held, begun.elapsed());
            }
            Step::Take => match take(state, gave_way).with_context(locking)? {
                Some(lock) => {
                    tracing::info!("this instance serves this node from now on");
                    report.role = Role::Starting;
                    beat(instance, &mut report);
                    return Ok(Some((lock, stop)));
                }
                None => waiting.failed(begun.elapsed()),
            },
            Step::Ask => {
                let answer = match LockId::of(state) {
                    Ok(lock) => ask(lock, &stop),
                    Err(error) => Some(Answer::Silence(error.to_string())),
                };
                if let Some(why) = answer.and_then(|answer| waiting.answered(answer, begun.elapsed())) {
                    tracing::info!("{why}; standing by until the lock in {} is free", state.path().display());
                    report.role = Role::Standby;
                    beat(instance, &mut report);
                }
            }
        }
        if beaten.elapsed() >= BEAT {
            beaten = Instant::now();
            beat(instance, &mut report);
        }
    }
    Ok(None)
}

/// Takes the lock if nobody has it. One that gave way never makes the file: `wireloom down` may just have removed it.
fn take(state: &StateDir, gave_way: bool) -> io::Result<Option<AgentLock>> {
    if gave_way { state.lock_if_there() } else { state.lock(Duration::ZERO) }
}

/// Writes down how this instance is now.
fn beat(instance: &Instance, report: &mut InstanceFile) {
    report.pulse = Pulse { turned: monotonic_time().unwrap_or_default(), unready: None };
    write(instance, report);
}

fn write(instance: &Instance, report: &InstanceFile) {
    if let Err(error) = instance.write(report) {
        tracing::warn!("cannot write this instance's file, so probes do not see it: {error}");
    }
}

impl Agent {
    /// Writes down how this instance is, for the probes of its pod.
    pub(super) fn write_instance(&mut self) {
        let serving =
            InstanceFile { role: Role::Serving, gave_way: self.gave_way, pulse: self.report.pulse.clone() };
        if self.instance_written.as_ref() != Some(&serving) {
            write(&self.instance, &serving);
            self.instance_written = Some(serving);
        }
    }

    /// Lets another instance serve this node, unless it has gone meanwhile. Returns only if it has, or with an error if
    /// this process cannot go on passively.
    pub(super) fn give_way(&mut self, asker: Asker) -> anyhow::Result<()> {
        // One that died in the meantime must not cost 2 s without an agent.
        if asker.is_gone() {
            return Ok(());
        }
        self.record_mesh();
        self.write_report();
        let pulse = self.report.pulse.clone();
        write(&self.instance, &InstanceFile { role: Role::Passive, gave_way: true, pulse });
        self.instance_written = None;
        match asker.give() {
            Ok(()) => {
                if let Err(error) = self.reconciler.kernel_mut().release_device() {
                    tracing::warn!("{error}");
                }
                tracing::info!("another instance of the agent takes over; the data path stays up");
                Err(start_passive()).context("cannot wait passively for the other instance's end")
            }
            Err(error) => {
                tracing::debug!("another instance asked for the lock and has gone: {error}");
                Ok(())
            }
        }
    }
}

/// Starts this program anew in this process, passive. All files are closed, the lock among them.
fn start_passive() -> io::Error {
    let program = env::current_exe().ok().filter(|path| path.exists());
    let mut arguments: Vec<_> = env::args_os().skip(1).collect();
    if !arguments.iter().any(|argument| argument == PASSIVE) {
        arguments.push(PASSIVE.into());
    }
    // The version that runs, also when its file is gone.
    Command::new(program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))).args(arguments).exec()
}

impl LockId {
    /// Which lock is meant: instances with another state directory have another one.
    fn of(state: &StateDir) -> io::Result<Self> {
        let found = fs::metadata(state.lock_path())?;
        Ok(Self { device: found.dev(), inode: found.ino() })
    }
}

/// Listens for other instances, until this one hands over.
pub(super) fn listen(state: &StateDir, asked: impl Fn(Asker) + Send + 'static) -> io::Result<Listener> {
    question::listen(LockId::of(state)?, asked)
}
