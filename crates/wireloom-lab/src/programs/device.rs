//! `wireloom device` in the foreground, which hands its interface over to the next.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use wireloom_types::exit_status::HANDED_OVER;

use crate::{Error, PATIENCE, Result, Space, at_this_pace, until};

/// What the log says before the time that packets waited.
const PAUSE: &str = "packets waited for ";
/// What it says when the process before does not hand over.
const REFUSED: &str = "does not hand it over";
/// How often a hand-over is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// The process that serves an interface, or is about to. Dropping it kills the process.
#[derive(Debug)]
pub struct Device {
    space: Space,
    program: PathBuf,
    interface: String,
    arguments: Vec<String>,
    process: Child,
    log: File,
}

impl Device {
    /// Starts a device with these arguments, and waits until `wg` can see it.
    ///
    /// # Errors
    /// [`Error::Output`] with its log when it ends; [`Error::Timeout`].
    pub fn start(program: &Path, space: &Space, interface: &str, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
        let mut device = Self::spawn(program, space, interface, arguments, &[])?;
        until(PATIENCE, "a device to serve its interface", || {
            let there = device.has_ended() || space.run(&format!("wg show {interface}")).is_ok();
            there.then_some(())
        })?;
        device.assert_runs()?;
        Ok(device)
    }

    /// Takes an interface over from whoever serves it. The arguments count where nobody does, or does not answer.
    ///
    /// # Errors
    /// [`Error::Output`] with its log when it ends; [`Error::Timeout`].
    pub fn take_over(program: &Path, space: &Space, interface: &str, arguments: &[&str]) -> Result<Self> {
        let arguments: Vec<_> = arguments.iter().map(|&word| word.to_owned()).collect();
        unless_refused(|| {
            let mut device = Self::spawn(program, space, interface, arguments.clone(), &["--take-over"])?;
            until(PATIENCE, "a device to take an interface over", || {
                (device.has_ended() || device.pause().is_some()).then_some(())
            })?;
            device.assert_runs()?;
            Ok(device)
        })
    }

    /// Starts a process that takes this one's interface over, and does not wait for it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn begin_hand_over(&self) -> Result<Self> {
        let Self { space, program, interface, arguments, .. } = self;
        Self::spawn(program, space, interface, arguments.clone(), &["--take-over"])
    }

    /// Hands the interface over to a new process, which this one becomes. Returns how long packets waited, as it says.
    /// Where this one refuses because the new one was too slow, the next tries.
    ///
    /// # Errors
    /// [`Error::Output`] with the log when either process ends otherwise; [`Error::Timeout`].
    pub fn hand_over(&mut self) -> Result<Duration> {
        unless_refused(|| {
            let taker = self.begin_hand_over()?;
            self.become_taker(taker)
        })
    }

    /// Waits until `taker` has the interface, and becomes it.
    ///
    /// # Errors
    /// As [`Self::hand_over`].
    pub fn become_taker(&mut self, mut taker: Self) -> Result<Duration> {
        let patience = at_this_pace(PATIENCE);
        let deadline = Instant::now() + patience;
        loop {
            let pause = taker.pause();
            if let (Some(pause), Some(status)) = (pause, self.end()) {
                if status.code() != Some(i32::from(HANDED_OVER)) {
                    return Err(self.unexpected(&format!("the device before, which ended with {status}")));
                }
                *self = taker;
                return Ok(pause);
            }
            taker.assert_runs()?;
            if Instant::now() >= deadline {
                let what = format!("a hand-over (before: {}; after: {})", self.said(), taker.said());
                return Err(Error::Timeout { what, patience });
            }
            thread::sleep(LOOK);
        }
    }

    /// How long packets waited when this process took over: as soon as it says so.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        let said = self.said();
        let milliseconds = said.split_once(PAUSE)?.1.split_once(" ms")?.0.parse::<f64>().ok()?;
        Some(Duration::from_secs_f64(milliseconds / 1e3))
    }

    /// Sends its process a signal.
    ///
    /// # Errors
    /// [`Error::Io`] when it has ended, and was looked at since.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let process = Pid::from_raw(self.process.id().cast_signed());
        kill(process, signal).map_err(Error::io("send a signal to a device"))
    }

    /// How its process has ended, if it has.
    pub fn end(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Whether its process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.end().is_some()
    }

    /// Everything that it has logged.
    #[must_use]
    pub fn said(&self) -> String {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        // At a place of its own: the process writes at the common one.
        while let Ok(length @ 1..) = self.log.read_at(&mut part, bytes.len() as u64) {
            bytes.extend(&part[..length]);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn spawn(
        program: &Path,
        space: &Space,
        interface: &str,
        arguments: Vec<String>,
        more: &[&str],
    ) -> Result<Self> {
        let files = tempfile::tempfile().and_then(|log| Ok((log.try_clone()?, log)));
        let (log, written) = files.map_err(Error::io("make a file for what a device says"))?;
        let mut command = Command::new(program);
        command.args(["device", "--foreground"]).args(&arguments).args(more).arg(interface);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(written);
        let process = space.spawn(&mut command)?;
        let (space, program, interface) = (space.clone(), program.to_owned(), interface.to_owned());
        Ok(Self { space, program, interface, arguments, process, log })
    }

    fn assert_runs(&mut self) -> Result<()> {
        match self.end() {
            None => Ok(()),
            Some(status) => Err(self.unexpected(&format!("a device, which ended with {status},"))),
        }
    }

    fn unexpected(&self, what: &str) -> Error {
        Error::Output { what: what.to_owned(), output: self.said() }
    }
}

/// Takes over, again and again when the process before refuses that: on a slow machine the next one may be too late.
fn unless_refused<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + at_this_pace(PATIENCE);
    loop {
        match attempt() {
            Err(Error::Output { output, .. }) if output.contains(REFUSED) && Instant::now() < deadline => {}
            outcome => return outcome,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
