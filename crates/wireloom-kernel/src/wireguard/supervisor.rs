//! The supervisor, `wireloom engine`: what it is asked, what it answers, and its client.
//!
//! It starts `wireloom device`, starts it again when it ends unasked, and keeps its descriptors meanwhile. A client
//! connects, sends one [`Request`] as a line of JSON, and reads one [`Reply`], a line too.

use std::{
    env,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};

use crate::{error::Cause, local_socket::connect_at_once};

/// The environment variable that names the socket, for the supervisor and its clients.
pub const SOCKET_VARIABLE: &str = "WIRELOOM_ENGINE_SOCKET";

/// Where the socket is otherwise.
const SOCKET: &str = "/run/wireloom/engine.sock";

/// The longest request and the longest reply, in bytes.
pub const LONGEST: usize = 64 << 10;

/// How long the device may take to be ready. It takes milliseconds, but a booting machine may take longer.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How long it may take to end after SIGTERM. It takes milliseconds, and longer on a loaded machine. Then it is killed.
pub const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reply is waited for: a start that fails takes as long as a start and an end may take, which is 25 s.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a supervisor is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Starts the device. Answered when it is ready, or has failed. While the supervisor's own device runs, the new
    /// one takes over from it; if that fails, the old one stays.
    Run {
        /// What follows `wireloom device` on its command line, without `--foreground` and `--take-over`.
        arguments: Vec<String>,
        /// Whether it takes over from a device of another supervisor, or of none, that has the interface.
        #[serde(default)]
        take_over: bool,
    },
    /// Ends the device. Answered when it has ended.
    Stop {},
    /// The device goes on, but is not started again when it ends, because another instance takes over from it: the
    /// descriptors are dropped then. The next `Run` ends this.
    Release {},
    /// Asks for the state only.
    Status {},
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done, and this is how things are.
    Ok(Status),
    /// Another request is being carried out; ask again.
    Busy(String),
    /// Why it could not be done.
    Error(String),
}

/// How a supervisor and its device are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What the device does.
    pub state: State,
    /// The device's process, in the supervisor's PID namespace.
    #[serde(default)]
    pub process: Option<u32>,
    /// The arguments of the device.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// How many descriptors are kept for it.
    #[serde(default)]
    pub descriptors: usize,
    /// The device is not started again when it ends ([`Request::Release`]).
    #[serde(default)]
    pub released: bool,
    /// How often it was started again because it had ended unasked, since the supervisor's start.
    #[serde(default)]
    pub restarts: u64,
    /// Why a device ended last, or did not start.
    #[serde(default)]
    pub last_end: Option<String>,
    /// The version of the supervisor's program.
    #[serde(default)]
    pub version: String,
}

impl Status {
    /// Whether the supervisor has a device and starts it again when it ends.
    #[must_use]
    pub fn keeps_a_device(&self) -> bool {
        self.state != State::Idle && !self.released
    }
}

/// What the device of a supervisor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is none, and none is wanted.
    #[default]
    Idle,
    /// It is not ready yet.
    Starting,
    /// It is ready.
    Running,
    /// It has ended, and is started again after a pause.
    Waiting,
    /// It was told to end.
    Ending,
}

/// Why a supervisor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// Nobody listens. A retry helps once a supervisor runs.
    #[error("no supervisor listens on {0}; start `wireloom engine`")]
    Absent(PathBuf),
    /// It carries out another request. A retry helps.
    #[error("the supervisor is busy: {0}")]
    Busy(String),
    /// It could not do it, or the device could not. A retry may help.
    #[error("{0}")]
    Failed(String),
    /// It did not answer in time. It may still do what it was asked.
    #[error("the supervisor has not answered on {path} within {seconds} s", seconds = REPLY_TIMEOUT.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// Another user serves the socket, or the answer is not one. A retry does not help.
    #[error("{path} is not the socket of a supervisor: {what}")]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system refused. A retry may help.
    #[error("cannot talk to the supervisor on {path}: {cause}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
}

impl From<SupervisorError> for Cause {
    fn from(error: SupervisorError) -> Self {
        match error {
            SupervisorError::Foreign { .. } => Self::Permanent(error.to_string()),
            SupervisorError::TimedOut { .. } => Self::Unfinished(error.to_string()),
            _ => Self::Transient(error.to_string()),
        }
    }
}

/// A client of the supervisor that listens on one socket.
#[derive(Clone, Debug)]
pub struct Supervisor {
    path: PathBuf,
}

/// The path of the supervisor's socket: `$WIRELOOM_ENGINE_SOCKET`, or `/run/wireloom/engine.sock`.
#[must_use]
pub fn socket_path() -> PathBuf {
    let given = env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    given.map_or_else(|| SOCKET.into(), PathBuf::from)
}

impl Supervisor {
    /// The one at [`socket_path`], whether it runs or not.
    #[must_use]
    pub fn locate() -> Self {
        Self::at(&socket_path())
    }

    /// The one with this socket, whether it runs or not.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Asks for a device with these arguments, and waits until it is ready ([`Request::Run`]): at most 25 s.
    ///
    /// # Errors
    /// [`SupervisorError`]; `Failed` has the device's own words when it did not start.
    pub fn run(&self, arguments: &[String], take_over: bool) -> Result<Status, SupervisorError> {
        self.ask(&Request::Run { arguments: arguments.to_vec(), take_over })
    }

    /// Ends the device and waits for its end ([`Request::Stop`]): at most 5 s.
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn stop(&self) -> Result<Status, SupervisorError> {
        self.ask(&Request::Stop {})
    }

    /// Has the device not started again when it ends ([`Request::Release`]).
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn release(&self) -> Result<Status, SupervisorError> {
        self.ask(&Request::Release {})
    }

    /// How it is.
    ///
    /// # Errors
    /// [`SupervisorError`].
    pub fn status(&self) -> Result<Status, SupervisorError> {
        self.ask(&Request::Status {})
    }

    fn ask(&self, request: &Request) -> Result<Status, SupervisorError> {
        let path = || self.path.clone();
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => SupervisorError::Absent(path()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => SupervisorError::TimedOut { path: path() },
            _ => SupervisorError::Io { path: path(), cause },
        };
        let foreign = |what: String| SupervisorError::Foreign { path: path(), what };
        let stream = connect_at_once(&self.path).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => SupervisorError::Busy("too many wait for its answer".into()),
            _ => failed(cause),
        })?;
        if !is_ours(&stream).map_err(failed)? {
            return Err(foreign("another user serves it".into()));
        }
        let mut line = serde_json::to_vec(request).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        if line.len() > LONGEST {
            return Err(SupervisorError::Failed(format!("a request has at most {LONGEST} bytes")));
        }
        let reply = exchange(&stream, &line).map_err(failed)?;
        if reply.is_empty() {
            return Err(SupervisorError::Busy("it closed the connection without an answer".into()));
        }
        match serde_json::from_slice(&reply) {
            Ok(Reply::Ok(status)) => Ok(status),
            Ok(Reply::Busy(what)) => Err(SupervisorError::Busy(what)),
            Ok(Reply::Error(what)) => Err(SupervisorError::Failed(what)),
            Err(error) => Err(foreign(format!("its answer cannot be read ({error})"))),
        }
    }
}

/// Sends a line and reads the answer to its end.
fn exchange(mut stream: &UnixStream, line: &[u8]) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + REPLY_TIMEOUT;
    stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
    stream.write_all(line)?;
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while reply.len() <= LONGEST && !reply.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => reply.extend_from_slice(&piece[..length]),
        }
    }
    Ok(reply)
}

/// Whether the process at the other end belongs to our user or to root.
///
/// # Errors
/// The operating system's error.
pub fn is_ours(stream: &UnixStream) -> io::Result<bool> {
    let other = getsockopt(stream, PeerCredentials)?.uid();
    Ok(other == 0 || other == geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixListener,
        thread,
    };

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    /// Serves one connection with this answer, and returns the request.
    fn served(
        answer: &str,
        ask: impl FnOnce(&Supervisor) -> Result<Status, SupervisorError>,
    ) -> (String, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let answer = answer.to_owned();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            line
        });
        let outcome = ask(&Supervisor::at(&path));
        let said = match outcome {
            Ok(status) => format!("{:?}", status.state),
            Err(error) => error.to_string().replace(&path.display().to_string(), "PATH"),
        };
        (server.join().unwrap(), said)
    }

    #[test]
    fn requests_and_replies_are_lines_of_json() {
        let running = r#"{"ok":{"state":"running","process":7,"later":"field"}}"#.to_owned() + "\n";
        let (request, said) = served(&running, |engine| engine.run(&["wg0".into()], true));
        assert_eq!(request, "{\"run\":{\"arguments\":[\"wg0\"],\"take_over\":true}}\n");
        assert_eq!(said, "Running");
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"run":{"arguments":["wg0"]}}"#).unwrap(),
            Request::Run { arguments: vec!["wg0".into()], take_over: false }
        );
        // One of a version before does not say whether the device is released.
        for (more, keeps) in [("", true), (",\"released\":false", true), (",\"released\":true", false)] {
            let status: Status = serde_json::from_str(&format!("{{\"state\":\"running\"{more}}}")).unwrap();
            assert_eq!(status.keeps_a_device(), keeps, "{more}");
        }
        assert!(!Status::default().keeps_a_device());
        let (request, said) = served("{\"error\":\"no /dev/net/tun\"}\n", Supervisor::stop);
        assert_eq!((request.as_str(), said.as_str()), ("{\"stop\":{}}\n", "no /dev/net/tun"));
        let (request, said) = served("{\"busy\":\"it starts\"}\n", Supervisor::release);
        assert_eq!(request, "{\"release\":{}}\n");
        assert_eq!(said, "the supervisor is busy: it starts");
        let (request, said) = served("", Supervisor::status);
        assert_eq!(request, "{\"status\":{}}\n");
        assert!(said.contains("without an answer"), "{said}");
        let (_, said) = served("errno=0\n", Supervisor::status);
        assert!(said.starts_with("PATH is not the socket of a supervisor"), "{said}");
    }

    #[test]
    fn without_a_supervisor_the_error_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.sock");
        assert!(matches!(Supervisor::at(&path).status(), Err(SupervisorError::Absent(_))));
        let hangs = UnixListener::bind(&path).unwrap();
        listen(&hangs, Backlog::new(0).unwrap()).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        assert!(matches!(Supervisor::at(&path).status(), Err(SupervisorError::Busy(_))));
        drop(hangs);
        assert!(matches!(Supervisor::at(&path).status(), Err(SupervisorError::Absent(_))));
    }
}
