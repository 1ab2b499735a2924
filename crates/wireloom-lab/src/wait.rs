//! Waiting for conditions instead of sleeping and hoping.

use std::{
    env,
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Error, Result};

/// How long tests wait for something that should come true soon: generous, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(20);

/// A time to wait, on this machine: where the environment's `WIRELOOM_LAB_PACE` is a whole number,
/// everything takes so many times longer than usual (tests/vm says so of an emulated machine).
#[must_use]
pub fn at_this_pace(time: Duration) -> Duration {
    static PACE: OnceLock<u32> = OnceLock::new();
    let pace = || env::var("WIRELOOM_LAB_PACE").ok().and_then(|pace| pace.parse().ok()).unwrap_or(1);
    time * *PACE.get_or_init(pace)
}

/// Polls until `condition` gives something.
///
/// # Errors
/// [`Error::Timeout`], naming `what`, when `patience` ([at this pace](at_this_pace)) is over and the
/// condition still gives nothing.
pub fn until<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let patience = at_this_pace(patience);
    let deadline = Instant::now() + patience;
    loop {
        // Read the clock first: a condition is looked at once more after the deadline.
        let begun = Instant::now();
        let over = begun >= deadline;
        if let Some(found) = condition() {
            return Ok(found);
        }
        if over {
            return Err(Error::Timeout { what: what.to_owned(), patience });
        }
        // A look may start processes: half of the time, at least, is left to what is waited for.
        sleep(at_this_pace(INTERVAL).max(begun.elapsed()));
    }
}
