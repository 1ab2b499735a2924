//! Programs of the cluster, which run until their machine ends, each with a log.

use std::{
    fs::File,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use crate::{Error, Node, Result};

/// How many of the last lines of a log an error shows.
const LINES: usize = 20;

/// A running program. Dropping it kills and reaps it: a machine cannot end while one of its processes is a zombie.
#[derive(Debug)]
pub(super) struct Program {
    process: Child,
}

impl Program {
    /// Starts a program on a machine. Its output goes to a log there, which [`explain`] shows.
    pub(super) fn start(machine: &Node, name: &str, command: &mut Command) -> Result<Self> {
        let space = &machine.host.space;
        let path = log(name);
        let what = format!("open {path}");
        let log = space.open(&what, || File::options().create(true).append(true).open(&path))?;
        let copy = log.try_clone().map_err(Error::io(what))?;
        // Not in the terminal's process group: Ctrl-C ends us, and our end ends the machine with everything on it.
        let command = command.stdin(Stdio::null()).stdout(log).stderr(copy).process_group(0);
        Ok(Self { process: space.spawn(command)? })
    }

    /// Kills and reaps it.
    pub(super) fn stop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Lets the program outlive this process.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The log of a program, on its machine.
fn log(name: &str) -> String {
    format!("/run/{name}.log")
}

/// Adds the end of a program's log to the error of what depends on it.
pub(super) fn explain<T>(outcome: Result<T>, machine: &Node, name: &str) -> Result<T> {
    outcome.map_err(|error| {
        let log = machine.host.space.read(&log(name)).ok().flatten().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let log = lines[lines.len().saturating_sub(LINES)..].join("\n");
        Error::Logged { what: format!("{error}; {name} on {}", machine.name), log }
    })
}
