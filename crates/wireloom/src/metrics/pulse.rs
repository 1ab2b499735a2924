//! Whether the agent lives, and whether the kernel is as planned.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long the agent's loop may take for one turn. It turns every 30 s at least; `wireloom status` calls it stuck
/// after as long.
const TURN_MAX: Duration = Duration::from_secs(90);

/// A sign of life. Times are milliseconds of the machine's monotonic clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pulse {
    /// When the loop turned. In the run file: when it last brought the kernel to the desired state, or started.
    pub(crate) turned: u64,
    /// Why the kernel is not as planned; `None` when it is.
    pub(crate) unready: Option<String>,
}

impl Pulse {
    /// Whether the agent's loop turns.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn live(&self, now: u64) -> Result<(), String> {
        let since = Duration::from_millis(now.saturating_sub(self.turned));
        if since > TURN_MAX {
            return Err(format!("the agent has done nothing for {} s", since.as_secs()));
        }
        Ok(())
    }

    /// Whether the kernel is as planned, as far as a living agent knows.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn ready(&self, now: u64) -> Result<(), String> {
        self.live(now)?;
        self.unready.clone().map_or(Ok(()), Err)
    }
}
