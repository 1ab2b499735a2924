//! Busy polling: waiting for the next packets without going to sleep.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollTimeout, poll},
    sched::sched_yield,
};

/// How long to poll after a bulk transfer before going to sleep. It is about what a wake-up costs, so polling at
/// worst doubles that cost.
const BUSY_POLL: Duration = Duration::from_micros(50);

/// Polls until one of the descriptors is ready, and yields the core to other threads in between. Returns false when
/// none was ready in time.
pub(crate) fn busy_poll(fds: &mut [PollFd<'_>]) -> io::Result<bool> {
    let began = Instant::now();
    while began.elapsed() < BUSY_POLL {
        sched_yield()?;
        if poll(fds, PollTimeout::ZERO)? > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
