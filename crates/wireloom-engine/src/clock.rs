//! The system's clocks, as the protocol wants them.

use std::{
    io,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use wireloom_proto::{Instant, Now, UnixTime};

/// Reads both clocks. The monotonic one goes on while the machine sleeps, as sessions age then, too.
///
/// # Errors
/// Only where the kernel has no `CLOCK_BOOTTIME`.
pub(crate) fn now() -> io::Result<Now> {
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    // Before 1970 the wall clock is plainly wrong; the protocol sees to it that timestamps still grow.
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Now { monotonic: Instant::from_origin(boot), unix: UnixTime::from_epoch(unix) })
}
