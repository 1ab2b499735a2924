//! Logging to standard error.

use std::{
    fmt,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Starts logging: coloured on a terminal only, and for the journal with priorities instead of times and levels.
pub(super) fn start(filter: EnvFilter) {
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if goes_to_the_journal() {
        let line = tracing_subscriber::fmt::format().without_time().with_level(false).with_target(false);
        log.with_ansi(false).event_format(WithPriority(line)).init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).with_target(false).init();
    }
}

/// Whether standard error is a stream of systemd's journal: `$JOURNAL_STREAM` holds its device and inode then
/// (systemd.exec(5)). A program that inherits the variable may write somewhere else.
fn goes_to_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Writes the priority before each line, as sd-daemon(3) says.
struct WithPriority<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithPriority<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// `SD_ERR` to `SD_DEBUG`.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}
