//! The process of a device: its start with the descriptors of the one before, and what it says.

use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{self, Child, ChildStderr, Command, Stdio},
    rc::Rc,
};

use anyhow::{Context, bail, ensure};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{Pid, close, dup2_stdin, getppid},
};

use super::{
    descriptor::{Descriptor, receive_to_pass_on, send},
    state_machine::DeviceId,
};
use crate::log_output::LogOutput;

/// The first descriptor that is passed on: `SD_LISTEN_FDS_START` in sd_listen_fds(3).
const FIRST: RawFd = 3;

/// How much of standard error is forwarded at once (bytes).
const PIECE: usize = 4096;

/// How much is kept of a line.
const LONGEST_LINE: usize = 1024;

/// A device that was started and not waited for.
pub(super) struct Device {
    pub(super) id: DeviceId,
    process: Child,
    words: Option<ChildStderr>,
    line: Vec<u8>,
    /// The last line that gives a reason, as this program writes them, and the last line.
    reason: Option<String>,
    last_line: Option<String>,
}

impl Device {
    /// Starts a device of the program's file, which may be newer than the program that runs, with descriptors in the
    /// way of systemd (sd_listen_fds(3)): from number 3 on, `LISTEN_FDS` of them, with `LISTEN_FDNAMES`. It says on
    /// the socket `notify` when it is ready.
    ///
    /// Between the two is a process that becomes the device ([`become_device`]): the numbers and `LISTEN_PID` are set
    /// there, because safe code cannot do so between fork(2) and execve(2).
    pub(super) fn start(
        id: DeviceId,
        program: &Path,
        arguments: &[String],
        take_over: bool,
        descriptors: &[(String, Rc<Descriptor>)],
        notify: &Path,
    ) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        let numbers: Vec<&Descriptor> = descriptors.iter().map(|(_, descriptor)| &**descriptor).collect();
        send(&near, &numbers)?;
        let names: Vec<&str> = descriptors.iter().map(|(name, _)| name.as_str()).collect();
        // This very version, so that both ends agree.
        let mut process = Command::new("/proc/self/exe")
            .args(["engine", "--parent", &process::id().to_string(), "--become"])
            // The file was removed or replaced by nothing: the version that runs.
            .arg(if program.exists() { program } else { Path::new("/proc/self/exe") })
            .args(["--", "device", "--foreground"])
            .args(take_over.then_some("--take-over"))
            .args(arguments)
            .env("NOTIFY_SOCKET", notify)
            .env("LISTEN_FDS", descriptors.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            // Meant for us.
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_PIDFDID")
            .stdin(OwnedFd::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let words = process.stderr.take();
        if let Some(words) = &words {
            fcntl(words, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { id, process, words, line: Vec::new(), reason: None, last_line: None })
    }

    pub(super) fn pid(&self) -> Pid {
        // The kernel's numbers are positive and fit (PID_MAX_LIMIT).
        Pid::from_raw(self.process.id().cast_signed())
    }

    /// Its standard error, while it is open.
    pub(super) fn words(&self) -> Option<BorrowedFd<'_>> {
        self.words.as_ref().map(AsFd::as_fd)
    }

    /// Passes on what it has written to standard error. When our own takes no more, it is lost: a supervisor that waits
    /// starts no device.
    pub(super) fn forward(&mut self) {
        let mut piece = [0; PIECE];
        while let Some(words) = &mut self.words {
            match words.read(&mut piece) {
                Ok(0) => self.words = None,
                Ok(length) => {
                    let _ = LogOutput.write_all(&piece[..length]);
                    self.note(&piece[..length]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.words = None,
            }
        }
    }

    /// Why it ended, in its own words.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.clone().or_else(|| self.last_line.clone())
    }

    fn note(&mut self, text: &[u8]) {
        for byte in text {
            if *byte != b'\n' {
                if self.line.len() < LONGEST_LINE {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
            // Our own errors, and those of the parser of arguments, which other lines follow.
            let reason = line.strip_prefix("wireloom: ").or_else(|| line.strip_prefix("error: "));
            self.reason = reason.map(str::to_owned).or(self.reason.take());
            if !line.is_empty() {
                self.last_line = Some(line);
            }
        }
    }
}

/// Becomes the program with these arguments. Standard input is the socket over which the `LISTEN_FDS` descriptors come.
/// The program gets SIGTERM when the process `parent`, the supervisor, ends.
///
/// # Errors
/// When that fails.
pub(crate) fn become_device(
    program: &Path,
    arguments: &[OsString],
    parent: u32,
) -> anyhow::Result<Infallible> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("cannot ask for a signal when the supervisor ends")?;
    // It may have ended before.
    ensure!(getppid() == Pid::from_raw(parent.cast_signed()), "the supervisor has ended");
    // The supervisor's, which the standard library leaves as it is.
    SigSet::empty().thread_set_mask().context("cannot unblock signals")?;
    close_all().context("cannot close descriptors")?;
    let count = env::var("LISTEN_FDS").unwrap_or_default().parse().context("LISTEN_FDS is no number")?;
    let numbers = receive_to_pass_on(&io::stdin(), count).context("cannot receive descriptors")?;
    if !numbers.iter().copied().eq((FIRST..).take(count)) {
        bail!("{count} descriptors were to come, and came as {numbers:?}");
    }
    dup2_stdin(File::open("/dev/null").context("cannot open /dev/null")?)?;
    let mut device = Command::new(program);
    device.args(arguments);
    match count {
        0 => device.env_remove("LISTEN_FDS").env_remove("LISTEN_FDNAMES").env_remove("LISTEN_PID"),
        _ => device.env("LISTEN_PID", process::id().to_string()),
    };
    Err(device.exec()).with_context(|| format!("cannot run {}", program.display()))
}

/// Closes what this process got beside standard input, output and error, so that the next descriptor is [`FIRST`].
pub(super) fn close_all() -> io::Result<()> {
    let numbers: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|number| *number >= FIRST)
        .collect();
    for number in numbers {
        // The one of the directory itself is closed already.
        let _ = close(number);
    }
    Ok(())
}
