//! Waiting for conditions instead of sleeping and hoping.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Error, Result};

/// How long tests wait for something that should come true soon: generous, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` gives something.
///
/// # Errors
/// [`Error::Timeout`], naming `what`, when `patience` is over and the condition still gives nothing.
pub fn until<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        // Read the clock first: a condition is looked at once more after the deadline.
        let over = Instant::now() >= deadline;
        if let Some(found) = condition() {
            return Ok(found);
        }
        if over {
            return Err(Error::Timeout { what: what.to_owned(), patience });
        }
        sleep(Duration::from_millis(20));
    }
}
