//! The userspace engine: `wireloom device` in a process of its own, which its control socket identifies. A supervisor
//! runs it where there is one; else we start it ourselves.

mod conversation;
mod drops;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod secret;
mod serving;
mod socket_file;
mod supervised;
#[cfg(test)]
mod tests;
mod uapi;

use std::{
    env,
    fs::File,
    io::{self, Read, Seek},
    os::{fd::AsFd as _, unix::fs::FileTypeExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use wireloom_types::{PeerLookup, SourceCheck, interface::control_socket};
use zeroize::Zeroizing;

use self::{conversation::Conversation, socket_file::SocketFile, uapi::ReplyError};
pub use self::{
    serving::{Serving, serving},
    supervised::Adoption,
};
use super::{Change, DeviceState, Silence, WireguardDevice};
use crate::{error::Cause, state};

/// How long the device may take to end after its interface was removed. It takes milliseconds.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take to end after its control socket was removed.
const DISMISSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The device is ready within milliseconds of its start, but a booting machine may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How often an awaited state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// How long a reading is waited for: as long as the one before took, times twenty, because a device under load answers
/// late. What comes later still is taken by a later reading, and counts as one that took that long.
const READ_TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// How long a reading is expected to take before there was any.
const FIRST_READING: Duration = Duration::from_millis(25);

/// How long a device that has not answered is listened to.
const GLANCE: Duration = Duration::from_millis(1);

/// How long a device may be silent. One with 5,000 peers on a loaded machine answers within seconds.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How much of the time between two looks counts as silence. Looks are closer together: if the next one is later, then
/// this process did not run either (a frozen cgroup, a paused machine), and the device may be healthy.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// How long a change of the device may take: this, and as much for each thousand changes.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(1);

/// The device of one interface.
pub(crate) struct UserspaceDevice {
    interface: String,
    /// The control socket.
    socket: PathBuf,
    /// Its file while our interface was in place.
    own_socket: Option<SocketFile>,
    /// How long the last reading took, or the last answer that came late.
    reading_took: Duration,
    unanswered: Option<Unanswered>,
}

/// What the device has not answered yet.
struct Unanswered {
    since: Instant,
    /// When it was last looked at in vain.
    looked: Instant,
    /// How long it had been silent then.
    lasted: Duration,
    /// Absent when the device did not even take the request.
    conversation: Option<Conversation>,
    /// Whether a reading was asked for, or a change.
    is_reading: bool,
}

impl Unanswered {
    fn silence(&self) -> Silence {
        let process = self.conversation.as_ref().and_then(Conversation::process);
        Silence { process: process.map(Pid::as_raw), lasted: self.lasted }
    }

    /// Counts the time since the look before.
    fn look_in_vain(&mut self) -> Silence {
        let now = Instant::now();
        self.lasted += (now - self.looked).min(LOOK_MAX);
        self.looked = now;
        self.silence()
    }
}

impl UserspaceDevice {
    pub(crate) fn new(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            socket: control_socket(interface),
            own_socket: None,
            reading_took: FIRST_READING,
            unanswered: None,
        }
    }

    /// The silence of a device that has not answered what it was asked last.
    pub(crate) fn silence(&self) -> Option<Silence> {
        self.unanswered.as_ref().map(Unanswered::silence)
    }

    /// Remembers whose the control socket is, while our interface is in place and a process holds it.
    pub(crate) fn note_socket(&mut self) {
        self.own_socket = SocketFile::at(&self.socket);
    }

    /// Ends the process of a device that has not answered, and removes its socket.
    pub(crate) fn kill_silent(&mut self) -> Result<(), Cause> {
        let Some(unanswered) = &self.unanswered else { return Ok(()) };
        // Our supervisor does not start it again: the next pass asks for a new one.
        if !self.stop_supervised()? {
            match &unanswered.conversation {
                Some(conversation) => kill_process(conversation)?,
                None => {
                    return Err(Cause::Permanent("its control socket takes no connection; end it".into()));
                }
            }
        }
        state::remove_if_there(&self.socket)?;
        self.unanswered = None;
        Ok(())
    }

    /// Ends the process of a device whose interface is not in place any more, if it has not ended by itself. Not a
    /// device that serves the socket since then: network namespaces share its directory.
    pub(crate) fn dismiss(&mut self) -> Result<(), Cause> {
        self.unanswered = None;
        let Some(mut conversation) = Conversation::begin(&self.socket, b"", 1, GLANCE)? else {
            return Ok(());
        };
        // After the connection, which is to this one's process then.
        let now = SocketFile::at(&self.socket);
        if now.is_none() || now != self.own_socket {
            return Ok(());
        }
        // This ends it, and removes its interface wherever that is.
        state::remove_if_there(&self.socket)?;
        match conversation.listen(Instant::now() + DISMISSAL_TIMEOUT) {
            Ok(None) if self.stop_supervised()? => Ok(()),
            Ok(None) => kill_process(&conversation),
            _ => Ok(()),
        }
    }

    /// Sends requests and returns their replies, which may hold the private key. `None` when nobody listens. What comes
    /// after `limit` can be had later ([`Self::late_answer`]).
    fn ask(
        &mut self,
        requests: &[u8],
        replies: usize,
        limit: Duration,
        is_reading: bool,
    ) -> Result<Option<Zeroizing<String>>, Cause> {
        let since = Instant::now();
        let conversation = match Conversation::begin(&self.socket, requests, replies, limit) {
            Ok(Some(mut conversation)) => match conversation.listen(since + limit)? {
                Some(reply) => return Ok(Some(reply)),
                None => Some(conversation),
            },
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error.into()),
        };
        let mut unanswered =
            Unanswered { since, looked: since, lasted: Duration::ZERO, conversation, is_reading };
        let silence = unanswered.look_in_vain();
        self.unanswered = Some(unanswered);
        Err(Cause::Silent(silence))
    }

    /// The answer of a device that did not answer in time, if it is a reading. `None` when it must be asked anew.
    fn late_answer(&mut self) -> Result<Option<Zeroizing<String>>, Cause> {
        let Some(mut unanswered) = self.unanswered.take() else { return Ok(None) };
        // Otherwise its queue was full.
        let Some(conversation) = &mut unanswered.conversation else {
            return match Conversation::begin(&self.socket, b"", 0, GLANCE) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let silence = unanswered.look_in_vain();
                    self.unanswered = Some(unanswered);
                    Err(Cause::Silent(silence))
                }
                _ => Ok(None),
            };
        };
        match conversation.listen(Instant::now() + GLANCE) {
            // Half an answer is what a process leaves that has ended.
            Ok(Some(reply)) if unanswered.is_reading && reply.ends_with("\n\n") => {
                self.reading_took = unanswered.since.elapsed();
                Ok(Some(reply))
            }
            Ok(Some(_)) => Ok(None),
            Ok(None) => {
                let silence = unanswered.look_in_vain();
                self.unanswered = Some(unanswered);
                Err(Cause::Silent(silence))
            }
            // That process has ended.
            Err(_) => Ok(None),
        }
    }
}

impl WireguardDevice for UserspaceDevice {
    fn read(&mut self) -> Result<Option<DeviceState>, Cause> {
        let reply = match self.late_answer()? {
            Some(late) => late,
            None => {
                let begun = Instant::now();
                let (least, most) = READ_TIMEOUTS;
                let limit = self.reading_took.saturating_mul(20).clamp(least, most);
                let Some(reply) = self.ask(uapi::GET_ALL, 2, limit, true)? else { return Ok(None) };
                self.reading_took = begun.elapsed();
                reply
            }
        };
        let unreadable = |error: ReplyError| Cause::Transient(error.to_string());
        let (device, link) = uapi::split(&reply).ok_or_else(|| unreadable(ReplyError::CutOff))?;
        let mut device = uapi::parse_get_reply(device).map_err(unreadable)?;
        device.source_check = uapi::parse_link_reply(link).map_err(unreadable)?;
        Ok(Some(device))
    }

    fn create(&mut self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<(), Cause> {
        self.unanswered = None;
        let arguments = self.arguments(peer_lookup, source_check);
        if self.create_supervised(&arguments)? {
            self.note_socket();
            self.reading_took = FIRST_READING;
            return Ok(());
        }
        // Its errors go to a file: the process that stays in the background would keep a pipe open.
        let mut errors = tempfile::tempfile()?;
        let mut child = Command::new(this_program()?)
            .args(["device", "--log-to-stdin"])
            .args(arguments)
            .stdin(log()?)
            .stdout(Stdio::null())
            .stderr(errors.try_clone()?)
            .spawn()?;
        let status = wait(&mut child)?;
        if status.success() {
            self.note_socket();
            self.reading_took = FIRST_READING;
            return Ok(());
        }
        let mut message = String::new();
        errors.rewind()?;
        errors.read_to_string(&mut message)?;
        Err(Cause::Transient(format!(
            "`wireloom device {}` failed ({status}): {}",
            self.interface,
            message.trim()
        )))
    }

    fn change(&mut self, changes: &[Change<'_>]) -> Result<(), Cause> {
        if let Some(silence) = self.silence() {
            return Err(Cause::Silent(silence));
        }
        let thousands = u32::try_from(changes.len() / 1_000).unwrap_or(u32::MAX);
        let limit = CHANGE_TIMEOUT.saturating_mul(1 + thousands);
        match self.ask(&uapi::set(changes), 1, limit, false)? {
            Some(reply) => uapi::parse_set_reply(&reply).map_err(|error| match error {
                ReplyError::Refused(errno) => Cause::from(Errno::from_raw(errno)),
                other => Cause::Transient(other.to_string()),
            }),
            None => Err(Cause::Transient("the device process is gone".into())),
        }
    }

    fn end(&mut self) -> Result<(), Cause> {
        let is_silent = self.unanswered.take().is_some();
        let own_socket = SocketFile::at(&self.socket);
        let deadline = Instant::now() + if is_silent { POLL_INTERVAL } else { END_TIMEOUT };
        loop {
            match Conversation::begin(&self.socket, b"", 0, GLANCE) {
                Ok(None) => return Ok(()),
                // Another device has taken the socket, in another network namespace.
                Ok(Some(_)) if SocketFile::at(&self.socket) != own_socket => return Ok(()),
                Ok(Some(conversation)) if Instant::now() > deadline => {
                    if !self.stop_supervised()? {
                        kill_process(&conversation)?;
                    }
                    return Ok(state::remove_if_there(&self.socket)?);
                }
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                _ => thread::sleep(POLL_INTERVAL),
            }
        }
    }
}

/// Kills the process at the other end, unless it has ended.
fn kill_process(conversation: &Conversation) -> Result<(), Cause> {
    let hidden = || Cause::Permanent("it is in another PID namespace; end it there".into());
    match kill(conversation.process().ok_or_else(hidden)?, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process serves this control socket.
pub(crate) fn is_served(socket: &Path) -> bool {
    !matches!(Conversation::begin(socket, b"", 0, GLANCE), Ok(None))
}

/// Where a device logs to: our standard error, which it keeps when we end. Not if that is a pipe, whose reader would
/// wait for the device's end then: it gets what the device logs from us.
fn log() -> io::Result<Stdio> {
    let ours = io::stderr().as_fd().try_clone_to_owned()?;
    if !File::from(ours.try_clone()?).metadata()?.file_type().is_fifo() {
        return Ok(ours.into());
    }
    let (mut reader, writer) = io::pipe()?;
    thread::Builder::new()
        .name("device-log".into())
        .spawn(move || io::copy(&mut reader, &mut io::stderr()))?;
    Ok(writer.into())
}

/// Our own program; after an upgrade of the file, the version that runs.
fn this_program() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    Ok(if path.exists() { path } else { "/proc/self/exe".into() })
}

/// Waits until the device is ready: the command then goes to the background by itself.
fn wait(child: &mut std::process::Child) -> Result<ExitStatus, Cause> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(Cause::Unfinished(format!(
                "`wireloom device` was not ready within {} s",
                START_TIMEOUT.as_secs()
            )));
        }
        thread::sleep(POLL_INTERVAL);
    }
}
