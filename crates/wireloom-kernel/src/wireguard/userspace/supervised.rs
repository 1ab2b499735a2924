//! The device under a supervisor (`wireloom engine`): it is asked to start and end the device, where there is one.

use std::env;

use wireloom_types::{PeerLookup, SourceCheck};

use super::{DeviceState, UserspaceDevice, serving};
use crate::{
    error::Cause,
    wireguard::supervisor::{SOCKET_VARIABLE, State, Supervisor, SupervisorError, socket_path},
};

/// Whose device serves our interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// Our supervisor's, or that of whoever started it where there is no supervisor.
    Own,
    /// Our supervisor's from now on: it has taken over from another one.
    Taken,
}

impl UserspaceDevice {
    /// What a device gets as its arguments, but for how it runs.
    pub(super) fn arguments(&self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Vec<String> {
        let words = [
            "--persistent",
            &self.interface,
            "--peer-lookup",
            &peer_lookup.to_string(),
            "--source-check",
            &source_check.to_string(),
        ];
        words.map(str::to_owned).to_vec()
    }

    /// Has our supervisor start a device; returns false where there is none.
    pub(super) fn create_supervised(&self, arguments: &[String]) -> Result<bool, Cause> {
        let Some(supervisor) = self.supervisor() else { return Ok(false) };
        supervisor.run(arguments, false)?;
        Ok(true)
    }

    /// Has our supervisor's device take over from the one that answers now, which was read just before, unless it is
    /// that. `anew`: even then, because our supervisor was told that another instance would have it.
    pub(crate) fn adopt(
        &mut self,
        read: &DeviceState,
        peer_lookup: PeerLookup,
        anew: bool,
    ) -> Result<Adoption, Cause> {
        let Some(supervisor) = self.supervisor() else { return Ok(Adoption::Own) };
        // One that is starting again serves in a moment. One that was released may be that of the agent before, where
        // both agents have the same supervisor: only `run` has it started again when it ends.
        if supervisor.status()?.keeps_a_device() && !anew {
            return Ok(Adoption::Own);
        }
        // A device of a version that hands nothing over stays until somebody ends it.
        if matches!(serving(&self.interface), Ok(None)) {
            return Ok(Adoption::Own);
        }
        self.unanswered = None;
        supervisor.run(&self.arguments(peer_lookup, read.source_check), true)?;
        self.note_socket();
        Ok(Adoption::Taken)
    }

    /// Tells our supervisor that another instance is about to take over.
    pub(crate) fn release(&self) -> Result<(), Cause> {
        match self.supervisor().map(|supervisor| supervisor.release()) {
            None | Some(Ok(_) | Err(SupervisorError::Absent(_))) => Ok(()),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// Has our supervisor end its device; returns false when it has none for our interface.
    pub(super) fn stop_supervised(&self) -> Result<bool, Cause> {
        let Some(supervisor) = self.supervisor() else { return Ok(false) };
        let status = match supervisor.status() {
            Err(SupervisorError::Absent(_)) => return Ok(false),
            status => status?,
        };
        if status.state == State::Idle || !status.arguments.contains(&self.interface) {
            return Ok(false);
        }
        supervisor.stop()?;
        Ok(true)
    }

    /// Our supervisor. Where the environment names one, it is waited for; elsewhere it must be there.
    fn supervisor(&self) -> Option<Supervisor> {
        let is_named = env::var_os(SOCKET_VARIABLE).is_some_and(|path| !path.is_empty());
        let supervisor = Supervisor::locate();
        let is_there = || !matches!(supervisor.status(), Err(SupervisorError::Absent(_)));
        (is_named || (socket_path().exists() && is_there())).then_some(supervisor)
    }
}
