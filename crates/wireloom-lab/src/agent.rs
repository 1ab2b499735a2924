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

use super::{Error, Node, PATIENCE, Result, until};

/// Where it writes to: standard output and standard error.
const LOG: &str = "/run/agent.log";

/// A running `wireloom agent`; dropped, it is killed, and what it made stays.
#[derive(Debug)]
pub struct Agent {
    process: Child,
    place: String,
}

impl Agent {
    /// Starts it, with the files that are in the node's `/etc/wireloom`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(wireloom: &Path, node: &Node) -> Result<Self> {
        let space = &node.host.space;
        let mut command = Command::new(wireloom);
        command.arg("agent").env("NO_COLOR", "1").stdin(Stdio::null()).process_group(0);
        let log = space.open(&format!("open {LOG}"), || {
            std::fs::OpenOptions::new().create(true).append(true).open(LOG)
        })?;
        let copy = log.try_clone().map_err(Error::io(format!("open {LOG}")))?;
        let process = space.spawn(command.stdout(log).stderr(copy))?;
        Ok(Self { process, place: node.name.clone() })
    }

    /// Its process id, as seen from this process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Has it ended, and how?
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.process.try_wait().map_err(Error::io(format!("look after the agent on {}", self.place)))
    }

    /// Asks it to read its settings again.
    ///
    /// # Errors
    /// When it has ended.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("the agent on {} to end", self.place);
        until(PATIENCE, &what, || self.ended().transpose())?
    }

    /// Ends it without asking (`kill -9`).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().and_then(|()| self.process.wait()).map(drop).map_err(Error::io("kill an agent"))
    }

    /// Lets it outlive this process.
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

/// What the agents of this node have written so far.
///
/// # Errors
/// When it cannot be read.
pub fn log(node: &Node) -> Result<String> {
    Ok(node.host.space.read(LOG)?.unwrap_or_default())
}

/// Removes everything that the agent made on this node.
///
/// # Errors
/// With what `wireloom down` said, when it fails.
pub fn down(wireloom: &Path, node: &Node) -> Result<String> {
    node.run(&format!("{} down", wireloom.display()))
}
