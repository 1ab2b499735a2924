//! Waiting without falling asleep.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollTimeout, poll},
    sched::sched_yield,
};

/// How long to look for more after a bulk of packets before falling asleep: about what being woken up
/// costs, so that at worst the cost doubles.
const DOZE: Duration = Duration::from_micros(50);

/// Waits for something to become ready without falling asleep, but leaves the core to whoever else wants
/// it; false when nothing did in a while.
pub(crate) fn doze(fds: &mut [PollFd<'_>]) -> io::Result<bool> {
    let began = Instant::now();
    while began.elapsed() < DOZE {
        sched_yield()?;
        if poll(fds, PollTimeout::ZERO)? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
