//! Logging to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging, coloured on a terminal only, with or without the time in front of each line.
pub(super) fn start(filter: EnvFilter, time: bool) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    if time {
        log.init();
    } else {
        log.without_time().init();
    }
}
