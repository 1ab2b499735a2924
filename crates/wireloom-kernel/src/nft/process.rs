//! Runs `nft`.

use std::{
    collections::VecDeque,
    io::{self, Write},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::Cause;

/// Runs `nft`, and remembers its last processes, whose changes are no news. A netlink socket that asks for no port
/// gets its process's number (`netlink_autobind`, net/netlink/af_netlink.c), and notifications carry it.
#[derive(Debug, Clone, Default)]
pub(super) struct Nft {
    processes: Arc<Mutex<VecDeque<u32>>>,
}

impl Nft {
    /// More processes than can have notifications under way.
    const REMEMBERED: usize = 32;

    /// Carries out a script in one transaction.
    pub(super) fn load(&self, script: &str) -> Result<(), Cause> {
        self.run(&["-f", "-"], script).map(drop)
    }

    /// What it prints.
    pub(super) fn run(&self, arguments: &[&str], script: &str) -> Result<Vec<u8>, Cause> {
        let spawned = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Cause::Permanent(
                    "`nft` is not installed; install nftables (the Debian package nftables)".into(),
                ));
            }
            child => child?,
        };
        // Before it gets its script, so that its changes are recognized as ours.
        self.remember(child.id());
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() { Ok(output.stdout) } else { Err(failure(&output)) }
    }

    /// Whether a process is one of the last that [`run`](Self::run) started.
    pub(super) fn ran(&self, process: u32) -> bool {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).contains(&process)
    }

    fn remember(&self, process: u32) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        processes.truncate(Self::REMEMBERED - 1);
        processes.push_front(process);
    }
}

/// Transient, because often somebody else was faster: the next observation shows what is left to do.
fn failure(output: &Output) -> Cause {
    let words = String::from_utf8_lossy(&output.stderr);
    // The first line says what is wrong; the next ones repeat the script, which may have thousands of elements.
    let line = words.lines().next().unwrap_or("it failed without a message");
    Cause::Transient(format!("nft says: {}", line.trim()))
}
