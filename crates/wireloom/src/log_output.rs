//! Standard error as the end of a log that nobody waits for: that of a device, which carries packets, and that of its
//! supervisor. Whoever reads it may hang or end. What it does not take is lost, counted, and reported later.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    process::ExitCode,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How many lines wait for a reader who is slow or gone. More are lost.
const QUEUE: usize = 256;

/// How long the end of the process waits for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Between two looks whether the queue has room for the end.
const PAUSE: Duration = Duration::from_millis(5);

/// How much is written at once (bytes). A pipe that poll(2) calls writable takes as much without waiting (`PIPE_BUF` in
/// pipe(7)).
const PIECE: usize = 4096;

static STDERR: Output = Output::new();

struct Output {
    /// To the thread that writes, once there is one.
    entries: OnceLock<SyncSender<Entry>>,
    /// How many lines were lost so far.
    lost: AtomicUsize,
    /// How many of them were reported.
    reported: AtomicUsize,
}

enum Entry {
    Lines(Vec<u8>),
    /// Everything before this was written.
    Written(SyncSender<()>),
}

/// Writes to standard error, and never waits or fails. Without the thread, that holds for a pipe of this process alone:
/// somebody else may fill another one between the look and the write.
pub(crate) struct LogOutput;

impl Write for LogOutput {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        // Locked, so that it takes as much as it seemed to.
        STDERR.add(lines, || io::stderr().lock());
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes, with the signal mask and the privileges of the caller.
pub(crate) fn start_thread() -> io::Result<()> {
    let (sender, entries) = sync_channel(QUEUE);
    thread::Builder::new()
        .name("log".into())
        .spawn(move || write_entries(&entries, &mut io::stderr(), report_lost))?;
    STDERR.entries.get_or_init(|| sender);
    Ok(())
}

/// Waits until what was logged so far is written, but not for long.
pub(crate) fn finish() {
    let Some(entries) = STDERR.entries.get() else { return };
    let deadline = Instant::now() + LAST_LINES;
    let (sender, written) = sync_channel(1);
    let mut last = Entry::Written(sender);
    while let Err(TrySendError::Full(again)) = entries.try_send(last) {
        if Instant::now() >= deadline {
            return;
        }
        last = again;
        thread::sleep(PAUSE);
    }
    let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

/// Ends the program's work with this error, as [`main`](crate::main) would, but without waiting for the log's reader.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = LogOutput.write_all(format!("wireloom: {error:#}\n").as_bytes());
    finish();
    ExitCode::FAILURE
}

/// Says how many lines were lost since it said so last, if standard error takes more now.
pub(crate) fn report_lost() {
    if STDERR.has_lost()
        && (STDERR.entries.get().is_some() || is_writable(&io::stderr()))
        && let lost @ 1.. = STDERR.take_lost()
    {
        tracing::warn!("lines of the log that were lost because nobody read it: {lost}");
    }
}

impl Output {
    const fn new() -> Self {
        Self { entries: OnceLock::new(), lost: AtomicUsize::new(0), reported: AtomicUsize::new(0) }
    }

    /// Has the thread write this. If there is none, it is written here, as far as there is room.
    fn add<D: AsFd + Write>(&self, lines: &[u8], destination: impl FnOnce() -> D) {
        let lost = match self.entries.get() {
            Some(entries) => match entries.try_send(Entry::Lines(lines.to_owned())) {
                Ok(()) => &[],
                Err(_) => lines,
            },
            None => write_at_once(&mut destination(), lines),
        };
        self.lost.fetch_add(lost.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
    }

    fn has_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) != self.reported.load(Ordering::Relaxed)
    }

    /// How many lines were lost that this has not returned before.
    fn take_lost(&self) -> usize {
        let lost = self.lost.load(Ordering::Relaxed);
        lost.wrapping_sub(self.reported.swap(lost, Ordering::Relaxed))
    }
}

/// Writes what comes, and reports what was lost when nothing more waits.
fn write_entries(entries: &Receiver<Entry>, destination: &mut impl Write, report_lost: impl Fn()) {
    loop {
        let next = entries.try_recv().or_else(|_| {
            report_lost();
            entries.recv()
        });
        match next {
            // Nobody is left to hear of an error.
            Ok(Entry::Lines(lines)) => drop(destination.write_all(&lines)),
            Ok(Entry::Written(heard)) => drop(heard.try_send(())),
            Err(_) => return,
        }
    }
}

/// Writes as much as there is room for, and returns the rest.
fn write_at_once<'t>(destination: &mut (impl AsFd + Write), mut text: &'t [u8]) -> &'t [u8] {
    while !text.is_empty() && is_writable(destination) {
        let (piece, rest) = text.split_at(text.len().min(PIECE));
        if destination.write_all(piece).is_err() {
            break;
        }
        text = rest;
    }
    text
}

fn is_writable(destination: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(destination.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Does this in a thread, so that a test whose log waits for its reader fails.
    fn within_patience(what: impl FnOnce() + Send + 'static) {
        let (sender, done) = sync_channel(1);
        thread::spawn(move || {
            what();
            sender.send(()).unwrap();
        });
        done.recv_timeout(PATIENCE).expect("it does not wait for its reader");
    }

    #[test]
    fn without_a_thread_what_a_full_pipe_does_not_take_is_lost_and_counted() {
        static OUTPUT: Output = Output::new();
        let (mut reader, writer) = io::pipe().unwrap();
        let of_log = writer.try_clone().unwrap();
        let log = move |text: &[u8]| OUTPUT.add(text, || of_log.try_clone().unwrap());
        within_patience(move || {
            // More than a pipe takes, and more than one piece.
            log(&b"sixteen bytes..\n".repeat(20_000));
            assert!(OUTPUT.has_lost());
            let taken = 20_000 - OUTPUT.take_lost();
            assert!(taken > 0 && !OUTPUT.has_lost());
            log(b"two\nmore\n");
            assert_eq!(OUTPUT.take_lost(), 2);
            reader.read_exact(&mut vec![0; taken * 16]).unwrap();
            log(b"again\n");
            let mut line = [0; 6];
            reader.read_exact(&mut line).unwrap();
            assert_eq!((&line, OUTPUT.take_lost()), (b"again\n", 0));
            drop(reader);
            log(b"nobody\n");
            assert_eq!(OUTPUT.take_lost(), 1);
        });
        drop(writer);
    }

    #[test]
    fn what_the_queue_does_not_take_is_lost_counted_and_reported_once_the_reader_is_back() {
        static OUTPUT: Output = Output::new();
        const LINES: usize = 20_000;
        let (mut reader, mut writer) = io::pipe().unwrap();
        let (sender, entries) = sync_channel(QUEUE);
        OUTPUT.entries.get_or_init(|| sender);
        let (reports, reported) = sync_channel(QUEUE);
        let report = move || {
            if let lost @ 1.. = OUTPUT.take_lost() {
                reports.send(lost).unwrap();
            }
        };
        thread::spawn(move || write_entries(&entries, &mut writer, report));
        within_patience(|| {
            for _ in 0..LINES {
                OUTPUT.add(b"sixteen bytes..\n", io::stderr);
            }
        });
        let mut left = OUTPUT.lost.load(Ordering::Relaxed);
        assert!(left > 0, "pipe and queue take less");
        reader.read_exact(&mut vec![0; (LINES - left) * 16]).unwrap();
        while left > 0 {
            // Some may have been reported before, when the queue was full and the pipe was not.
            left -= reported.recv_timeout(PATIENCE).expect("the rest is reported");
        }
    }
}
