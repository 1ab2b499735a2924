//! The instance's own file, `agent.json` in the directory that `WIRELOOM_INSTANCE` names: how the agent of *this* pod
//! is, for the probes of the pod, and for the same pod's next agent. The run file is that of the one agent that serves.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wireloom_kernel::state;

use crate::metrics::Pulse;

/// The environment variable that names the directory: one that all containers of a pod share, and nobody else.
const VARIABLE: &str = "WIRELOOM_INSTANCE";

/// How the agent of this instance is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InstanceFile {
    pub(crate) role: Role,
    /// It has once let another instance serve. From then on it never asks for the lock, however often it is started.
    #[serde(default)]
    pub(crate) gave_way: bool,
    pub(crate) pulse: Pulse,
}

/// What an instance does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// It reads what it needs, or has just got the lock.
    #[default]
    Starting,
    /// Everything is read and there is a plan; the agent that serves cannot be asked, and is waited for.
    Standby,
    /// It has the lock.
    Serving,
    /// It has given the lock away.
    Passive,
}

impl InstanceFile {
    /// Whether this agent's loop turns, whatever its role. Returns what it does.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn live(&self, now: u64) -> Result<String, String> {
        self.pulse.live(now).map(|()| self.role.said().to_owned())
    }

    /// Whether this instance does its part. The DaemonSet controller removes an older pod as soon as that is not ready,
    /// or the newer one is. So one that waits passively is ready, or it would not be there if the newer one failed; and
    /// so is one that stands by, or the one that it waits for would never go.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn ready(&self, now: u64) -> Result<String, String> {
        match self.role {
            Role::Starting => Err("the agent is starting".to_owned()),
            Role::Serving => self.pulse.ready(now).map(|()| self.role.said().to_owned()),
            Role::Standby | Role::Passive => self.live(now),
        }
    }
}

impl Role {
    fn said(self) -> &'static str {
        match self {
            Self::Starting | Self::Serving => "ok",
            Self::Standby => "ok: stands by until the agent of another version ends",
            Self::Passive => "ok: another instance serves this node",
        }
    }
}

/// This instance's directory, if it has one.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    directory: Option<PathBuf>,
}

impl Instance {
    /// What the environment says.
    pub(crate) fn from_environment() -> Self {
        let directory = env::var_os(VARIABLE).filter(|path| !path.is_empty());
        Self { directory: directory.map(PathBuf::from) }
    }

    /// Whether it has a directory. Without one, an agent is known by the lock and the run file alone.
    pub(crate) fn is_named(&self) -> bool {
        self.directory.is_some()
    }

    /// What its agent wrote last; `None` when there is nothing that can be read.
    pub(crate) fn read(&self) -> Option<InstanceFile> {
        serde_json::from_slice(&state::read_file(&file(self.directory.as_ref()?)).ok()??).ok()
    }

    /// Writes how its agent is now, if it has a directory.
    ///
    /// # Errors
    /// The operating system's error.
    pub(crate) fn write(&self, report: &InstanceFile) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        state::create_directory(directory)?;
        state::write_atomically(&file(directory), &serde_json::to_vec(report)?)
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("agent.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_ready_and_who_starts_is_not() {
        let report =
            |role| InstanceFile { role, gave_way: false, pulse: Pulse { turned: 1_000, unready: None } };
        for (role, ready) in [
            (Role::Starting, Err("the agent is starting".to_owned())),
            (Role::Standby, Ok("ok: stands by until the agent of another version ends".to_owned())),
            (Role::Serving, Ok("ok".to_owned())),
            (Role::Passive, Ok("ok: another instance serves this node".to_owned())),
        ] {
            assert_eq!(report(role).ready(2_000), ready);
            assert!(report(role).live(2_000).is_ok());
            assert!(report(role).live(200_000).is_err(), "it hangs");
        }
        let mut unready = report(Role::Serving);
        unready.pulse.unready = Some("why".into());
        assert_eq!(unready.ready(2_000), Err("why".to_owned()));
    }

    #[test]
    fn an_instance_without_a_directory_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("instance");
        let instance = Instance { directory: Some(path.clone()) };
        assert_eq!(instance.read(), None);
        let report = InstanceFile { gave_way: true, ..InstanceFile::default() };
        instance.write(&report).unwrap();
        assert_eq!(instance.read(), Some(report.clone()));
        let none = Instance { directory: None };
        none.write(&report).unwrap();
        assert_eq!(none.read(), None);
    }
}
