//! Logging to standard error.

use std::{
    fmt,
    fs::{self, Metadata},
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{DefaultFields, Writer},
    },
    registry::LookupSpan,
};

use crate::log_output::LogOutput;

/// Starts logging: coloured on a terminal only, and for the journal with priorities instead of times and levels.
pub(super) fn start(filter: EnvFilter) {
    start_with(filter, io::stderr, "2", String::new());
}

/// As [`start`], for a process that must not wait for the reader of its log.
pub(super) fn start_without_waiting(filter: EnvFilter) {
    start_with(filter, || LogOutput, "2", String::new());
}

/// As [`start_without_waiting`], for a device in the background. Its log goes to what standard input is now once it is
/// there.
pub(super) fn start_of_device(filter: EnvFilter, interface: &str) {
    start_with(filter, || LogOutput, "0", format!("device {interface}: "));
}

/// `descriptor` is the one that tells what is written to; `name` comes before each message.
fn start_with<W>(filter: EnvFilter, writer: W, descriptor: &str, name: String)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).fmt_fields(Named(name));
    let destination = fs::metadata(format!("/proc/self/fd/{descriptor}"));
    if destination.as_ref().is_ok_and(is_journal) {
        let line = tracing_subscriber::fmt::format().without_time().with_level(false).with_target(false);
        log.with_ansi(false).event_format(WithPriority(line)).init();
    } else {
        log.with_ansi(descriptor == "2" && io::stderr().is_terminal()).with_target(false).init();
    }
}

/// Whether this is a stream of systemd's journal: `$JOURNAL_STREAM` holds its device and inode then
/// (systemd.exec(5)). A program that inherits the variable may write somewhere else.
fn is_journal(file: &Metadata) -> bool {
    let stream = std::env::var("JOURNAL_STREAM");
    stream.is_ok_and(|stream| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// Writes a name before the message of each event.
struct Named(String);

impl<'w> FormatFields<'w> for Named {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        writer.write_str(&self.0)?;
        DefaultFields::new().format_fields(writer, fields)
    }
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
