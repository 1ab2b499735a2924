//! Waiting for conditions instead of sleeping and hoping.

use std::{
    env,
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long to wait for something that should happen soon: 20 s, generous enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(20);

/// Scales a time to this machine: multiplies it by `WIRELOOM_LAB_PACE` from the environment, a whole number
/// (default 1). `tests/vm` sets it for an emulated machine, which is slower than a real one.
#[must_use]
pub fn at_this_pace(time: Duration) -> Duration {
    static PACE: OnceLock<u32> = OnceLock::new();
    let pace = || env::var("WIRELOOM_LAB_PACE").ok().and_then(|pace| pace.parse().ok()).unwrap_or(1);
    time * *PACE.get_or_init(pace)
}

/// Polls until `condition` returns `Some`, and returns what is in it.
///
/// # Errors
/// [`Error::Timeout`], naming `what`, when `condition` still returns `None` after `patience`
/// ([scaled](at_this_pace) to this machine).
pub fn until<T>(patience: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let patience = at_this_pace(patience);
    let deadline = Instant::now() + patience;
    loop {
        // The clock is read before the condition, so the condition is checked once more after the deadline.
        let begun = Instant::now();
        let over = begun >= deadline;
        if let Some(found) = condition() {
            return Ok(found);
        }
        if over {
            return Err(Error::Timeout { what: what.to_owned(), patience });
        }
        // A check may start processes. Sleeping as long as it took leaves half of the time to what is awaited.
        sleep(at_this_pace(INTERVAL).max(begun.elapsed()));
    }
}
