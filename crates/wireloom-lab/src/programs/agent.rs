//! `wireloom agent` on a node of the laboratory.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Node, PATIENCE, Result, until};

/// The file on the node that an agent's standard output and standard error are appended to.
const LOG: &str = "/run/agent.log";

/// A running `wireloom agent`. Dropping it kills the process and leaves everything that it programmed.
#[derive(Debug)]
pub struct Agent {
    process: Child,
    place: String,
}

impl Agent {
    /// Starts the agent of the program `wireloom`. It reads the node's `/etc/wireloom`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn start(wireloom: &Path, node: &Node) -> Result<Self> {
        Self::start_command(Command::new(wireloom).arg("agent"), node)
    }

    /// Starts an agent that takes over from the one that runs (`--take-over`). What concerns this instance alone is in
    /// this directory; so is the socket of its supervisor, if one is to run its device.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn take_over(wireloom: &Path, node: &Node, instance: &str, is_supervised: bool) -> Result<Self> {
        let mut command = Command::new(wireloom);
        let command = command.args(["agent", "--take-over"]).env("WIRELOOM_INSTANCE", instance);
        if is_supervised {
            command.env("WIRELOOM_ENGINE_SOCKET", format!("{instance}/engine.sock"));
        }
        Self::start_command(command, node)
    }

    fn start_command(command: &mut Command, node: &Node) -> Result<Self> {
        let space = &node.host.space;
        command.env("NO_COLOR", "1").stdin(Stdio::null()).process_group(0);
        let log = space.open(&format!("open {LOG}"), || {
            std::fs::OpenOptions::new().create(true).append(true).open(LOG)
        })?;
        let copy = log.try_clone().map_err(Error::io(format!("open {LOG}")))?;
        let process = space.spawn(command.stdout(log).stderr(copy))?;
        Ok(Self { process, place: node.name.clone() })
    }

    /// The agent's process id, as seen from this process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The agent's process id, as seen on its node (`NSpid` in proc_pid_status(5)); `None` once it has ended.
    ///
    /// # Errors
    /// [`Error::Io`] when `/proc` cannot be read.
    pub fn pid_on_node(&self) -> Result<Option<u32>> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        Ok(ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok()))
    }

    /// The agent's exit status, or `None` while it runs.
    ///
    /// # Errors
    /// [`Error::Io`], from `waitpid`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().map_err(Error::io(format!("wait for the agent on {}", self.place)))
    }

    /// Tells the agent to read everything again (SIGHUP).
    ///
    /// # Errors
    /// [`Error::Io`] when it has ended.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Tells the agent to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it has not ended after [`PATIENCE`].
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("the agent on {} to end", self.place);
        until(PATIENCE, &what, || self.ended().transpose())?
    }

    /// Kills the agent (SIGKILL), and waits until it has ended.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().and_then(|()| self.process.wait()).map(drop).map_err(Error::io("kill an agent"))
    }

    /// Lets the agent outlive this process.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).expect("process ids fit in pid_t");
        kill(Pid::from_raw(pid), signal).map_err(Error::io(format!("signal the agent on {}", self.place)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Everything that the agents of this node have logged so far.
///
/// # Errors
/// [`Error::Io`] when the log exists and cannot be read.
pub fn log(node: &Node) -> Result<String> {
    Ok(node.host.space.read(LOG)?.unwrap_or_default())
}

/// Runs `wireloom down` on this node, which removes everything that the agent programmed, and returns its output.
///
/// # Errors
/// [`Error::Command`] with its output when it fails.
pub fn down(wireloom: &Path, node: &Node) -> Result<String> {
    node.run(&format!("{} down", wireloom.display()))
}
