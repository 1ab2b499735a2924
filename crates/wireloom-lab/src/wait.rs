//! Waiting with a limit and a message: for conditions, and for programs to end.

use std::{
    env,
    io::{ErrorKind, Read},
    mem,
    process::{Child, Output},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::{Error, Result};

/// How long to wait for something that should happen soon: 25 s, generous enough for a busy machine. An agent looks at
/// everything again every 30 s; within that, it repairs only what it was told of.
pub const PATIENCE: Duration = Duration::from_secs(25);

/// How long to wait for a program to end, unless the caller says otherwise.
pub(crate) const PROGRAM: Duration = Duration::from_secs(60);

/// How long to wait for the last output of a program that was killed.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

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

/// Closes a program's standard input, waits for it to end, and returns its exit status and output.
///
/// # Errors
/// [`Error::Timeout`], naming `what` and the output so far, when the program has not ended after `patience`
/// ([scaled](at_this_pace) to this machine), or a process that it started still holds its output open. The program is
/// killed.
pub fn finish(mut child: Child, what: &str, patience: Duration) -> Result<Output> {
    let patience = at_this_pace(patience);
    let deadline = Instant::now() + patience;
    drop(child.stdin.take());
    let pipes = [child.stdout.take().map(Pipe::read), child.stderr.take().map(Pipe::read)];
    let written = || pipes.each_ref().map(|pipe| pipe.as_ref().map(Pipe::written).unwrap_or_default());
    // A program that has closed its output is about to end, so most of the wait needs no polling.
    let is_closed = pipes.iter().flatten().all(|pipe| pipe.is_closed_by(deadline));
    let mut interval = Duration::from_micros(100);
    loop {
        let ended = child.try_wait().map_err(Error::io(format!("wait for {what}")))?;
        if let (Some(status), true) = (ended, is_closed) {
            let [stdout, stderr] = written();
            return Ok(Output { status, stdout, stderr });
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            let deadline = Instant::now() + LAST_OUTPUT;
            for pipe in pipes.iter().flatten() {
                let _ = pipe.is_closed_by(deadline);
            }
            let [stdout, stderr] = written().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let what = match ended {
                None => format!("{what} to end; it had written: {stdout}{stderr}"),
                Some(status) => format!(
                    "the output of {what} to end: it has ended ({status}), but a process that it started holds its \
                     output open; it had written: {stdout}{stderr}"
                ),
            };
            return Err(Error::Timeout { what, patience });
        }
        sleep(interval);
        interval = (2 * interval).min(INTERVAL);
    }
}

/// What a program writes to a pipe. A thread reads it continuously, so that the program never blocks.
struct Pipe {
    written: Arc<Mutex<Vec<u8>>>,
    /// Disconnected when the pipe is closed.
    closed: Receiver<()>,
}

impl Pipe {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let written = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&written);
        let (open, closed) = channel();
        thread::spawn(move || {
            let _open = open;
            let mut chunk = [0; 4096];
            loop {
                match pipe.read(&mut chunk) {
                    Ok(0) => return,
                    Ok(length) => {
                        copy.lock().unwrap_or_else(PoisonError::into_inner).extend(&chunk[..length]);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        });
        Self { written, closed }
    }

    fn is_closed_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        self.closed.recv_timeout(left) == Err(RecvTimeoutError::Disconnected)
    }

    fn written(&self) -> Vec<u8> {
        mem::take(&mut *self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn start(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    #[test]
    fn a_program_that_ends_returns_its_status_and_all_of_its_output() {
        // It writes more than a pipe holds, once its input is closed.
        let child = start("read -r line; head -c 200000 /dev/zero; echo trouble >&2; exit 7");
        let output = finish(child, "a script", PATIENCE).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(7), 200_000));
        assert_eq!(output.stderr, b"trouble\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_reported_with_its_output() {
        let begun = Instant::now();
        let child = start("echo begun; exec sleep 1000");
        let error = finish(child, "a script", Duration::from_secs(2)).unwrap_err().to_string();
        assert!(error.contains("a script to end; it had written: begun"), "{error}");
        assert!(begun.elapsed() < PATIENCE);
    }

    #[test]
    fn a_daemon_that_holds_its_parents_output_open_is_reported() {
        let child = start("sleep 20 & exit 0");
        let error = finish(child, "a script", Duration::from_secs(2)).unwrap_err().to_string();
        assert!(error.contains("a process that it started holds its output open"), "{error}");
    }
}
