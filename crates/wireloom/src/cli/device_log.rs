//! The log of a device in the background, which outlives whoever reads it: it never waits, and never fails.

use std::{
    io::{self, Write},
    sync::{
        OnceLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// How many lines wait for a reader who is slow or gone. More are dropped.
const QUEUE: usize = 256;

/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_millis(200);

static LINES: OnceLock<SyncSender<Entry>> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// Everything before this was written.
    Written(SyncSender<()>),
}

/// Writes to standard error, in a thread of its own once there is one.
pub(super) struct DeviceLog;

impl Write for DeviceLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match LINES.get() {
            Some(lines) => drop(lines.try_send(Entry::Line(line.to_owned()))),
            None => drop(io::stderr().write_all(line)),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread, with the signal mask and the privileges of the caller.
pub(super) fn start_thread() -> io::Result<()> {
    let (sender, entries) = sync_channel(QUEUE);
    thread::Builder::new().name("log".into()).spawn(move || {
        for entry in entries {
            match entry {
                // Nobody is left to hear of an error.
                Entry::Line(line) => drop(io::stderr().write_all(&line)),
                Entry::Written(heard) => drop(heard.try_send(())),
            }
        }
    })?;
    LINES.get_or_init(|| sender);
    Ok(())
}

/// Waits until what was logged so far is written, but not for long.
pub(super) fn finish() {
    let (sender, written) = sync_channel(1);
    if LINES.get().is_some_and(|lines| lines.try_send(Entry::Written(sender)).is_ok()) {
        let _ = written.recv_timeout(LAST_LINES);
    }
}
