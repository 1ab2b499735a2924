//! The system's clocks, in the protocol's types.

use std::{
    io,
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use wireloom_proto::{Instant, Now, UnixTime};

/// Reads both clocks. The monotonic one counts the time while the machine sleeps, because sessions age then, too.
///
/// # Errors
/// When the kernel has no `CLOCK_BOOTTIME`.
pub(crate) fn now() -> io::Result<Now> {
    let boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    // A wall clock before 1970 is plainly wrong. The protocol makes its timestamps grow nevertheless.
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Now { monotonic: Instant::from_origin(boot), unix: UnixTime::from_epoch(unix) })
}
