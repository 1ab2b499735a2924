//! A device that does not answer, and for how long it has not.

use std::{fmt, time::Duration};

/// A device that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Its process, if that is in a PID namespace that we can see.
    pub process: Option<i32>,
    /// From when it was first asked in vain until it was last looked at in vain, without what this process slept
    /// through.
    pub lasted: Duration,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the WireGuard device does not answer")?;
        match self.process {
            Some(process) => write!(f, " (process {process})"),
            None => Ok(()),
        }
    }
}
