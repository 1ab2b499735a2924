//! The userspace engine: `wireloom device` in a process of its own, which its control socket identifies.

mod drops;
mod uapi;

use std::{
    env,
    io::{self, Read, Seek, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use wireloom_types::{PeerLookup, SourceCheck, interface::control_socket};
use zeroize::Zeroizing;

use self::uapi::ReplyError;
use super::{Change, DeviceState, WireguardDevice};
use crate::{error::Cause, state};

/// The device answers within milliseconds; one that stays silent this long hangs.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The device is ready within milliseconds of its start, but a booting machine may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How often an awaited state is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The device of one interface.
pub(crate) struct UserspaceDevice {
    interface: String,
}

impl UserspaceDevice {
    pub(crate) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned() }
    }

    fn socket(&self) -> PathBuf {
        control_socket(&self.interface)
    }

    /// `None` when nobody listens.
    fn connect(&self) -> io::Result<Option<UnixStream>> {
        match UnixStream::connect(self.socket()) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Ok(Some(stream))
            }
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a device process that hangs, and removes its socket.
    fn kill(&self, stream: &UnixStream) -> Result<(), Cause> {
        let pid = getsockopt(stream, PeerCredentials)?.pid();
        // 0: the process is in a PID namespace that we cannot see.
        if pid <= 0 {
            return Err(Cause::Permanent(
                "the device process outlives its interface and is in another PID namespace; end it there"
                    .into(),
            ));
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(state::remove_if_there(&self.socket())?)
    }

    /// Sends one request and returns the reply, which may hold the private key. `None` when nobody listens.
    fn ask(&self, request: &str) -> Result<Option<Zeroizing<String>>, Cause> {
        let Some(mut stream) = self.connect()? else { return Ok(None) };
        let reply = exchange(&mut stream, request);
        let silent =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        match reply {
            Err(error) if silent(&error) => {
                Err(Cause::Transient(format!("the device gave no answer within {} s", TIMEOUT.as_secs())))
            }
            reply => Ok(Some(reply?)),
        }
    }
}

impl WireguardDevice for UserspaceDevice {
    fn read(&mut self) -> Result<Option<DeviceState>, Cause> {
        match self.ask(uapi::GET)? {
            Some(reply) => {
                let unreadable = |error: ReplyError| Cause::Transient(error.to_string());
                let mut device = uapi::parse_get_reply(&reply).map_err(unreadable)?;
                device.source_check = match self.ask(uapi::GET_LINK)? {
                    Some(reply) => uapi::parse_link_reply(&reply).map_err(unreadable)?,
                    None => return Ok(None),
                };
                Ok(Some(device))
            }
            None => Ok(None),
        }
    }

    fn create(&mut self, peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<(), Cause> {
        // Its errors go to a file: the process that stays in the background would keep a pipe open.
        let mut errors = tempfile::tempfile()?;
        let mut child = Command::new(this_program()?)
            .args(["device", "--persistent", &self.interface])
            .args(["--peer-lookup", &peer_lookup.to_string()])
            .args(["--source-check", &source_check.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.try_clone()?)
            .spawn()?;
        let status = wait(&mut child)?;
        if status.success() {
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
        match self.ask(&uapi::set(changes))? {
            Some(reply) => uapi::parse_set_reply(&reply).map_err(|error| match error {
                ReplyError::Refused(errno) => Cause::from(Errno::from_raw(errno)),
                other => Cause::Transient(other.to_string()),
            }),
            None => Err(Cause::Transient("the device process is gone".into())),
        }
    }

    fn end(&mut self) -> Result<(), Cause> {
        let deadline = Instant::now() + TIMEOUT;
        while let Some(stream) = self.connect()? {
            if Instant::now() > deadline {
                return self.kill(&stream);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// Sends one request. The reply ends with an empty line; the device keeps the connection open.
fn exchange(stream: &mut UnixStream, request: &str) -> io::Result<Zeroizing<String>> {
    stream.write_all(request.as_bytes())?;
    let mut reply = Zeroizing::new(Vec::with_capacity(64 << 10));
    let mut piece = Zeroizing::new([0; 16 << 10]);
    while !reply.ends_with(b"\n\n") {
        match stream.read(&mut *piece)? {
            0 => break,
            length => reply.extend_from_slice(&piece[..length]),
        }
    }
    let text = str::from_utf8(&reply).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Zeroizing::new(text.to_owned()))
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
            return Err(Cause::Transient(format!(
                "`wireloom device` was not ready within {} s",
                START_TIMEOUT.as_secs()
            )));
        }
        thread::sleep(POLL_INTERVAL);
    }
}
