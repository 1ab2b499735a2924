//! The question for the agent's lock, on the socket `/run/wireloom/agent.sock`: one line of JSON there, one back.
//!
//! ```text
//! {"take_over":{"device":64769,"inode":131}}     which lock is asked for
//! {"promise":{}}                                 it is free in a moment
//! {"refusal":{"why":"…"}}                        it is not
//! ```
//!
//! Later versions may add fields and questions: unknown fields are ignored, an unknown question is refused.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, recv};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wireloom_kernel::{connect_at_once, state, supervisor};

use super::{NAP, waiting::Answer};

const PATH: &str = "/run/wireloom/agent.sock";

/// Bytes of a line.
const LINE_MAX: u64 = 4096;

/// How long a question may take to come whole. It is one short line, sent at once; other askers wait behind it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer is awaited: the agent ends its pass first, which may start a device (25 s).
const ANSWER_PATIENCE: Duration = Duration::from_secs(40);

/// The file of a lock: what an instance means that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LockId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    TakeOver(LockId),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Promise {},
    Refusal { why: String },
}

/// Asks the instance that serves for its lock. `None` when this instance is to `stop` before there is an answer.
pub(super) fn ask(lock: LockId, stop: &AtomicBool) -> Option<Answer> {
    ask_at(Path::new(PATH), lock, stop)
}

fn ask_at(path: &Path, lock: LockId, stop: &AtomicBool) -> Option<Answer> {
    let asked = || -> io::Result<Option<Reply>> {
        let mut stream = connect_at_once(path)?;
        check_peer(&stream)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write_line(&mut stream, &Question::TakeOver(lock))?;
        await_reply(&stream, stop)
    };
    Some(match asked() {
        Ok(None) => return None,
        Ok(Some(Reply::Promise {})) => Answer::Promise,
        Ok(Some(Reply::Refusal { why })) => Answer::Refusal(why),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Answer::Nobody
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Answer::Silence("too many wait for its answer".into())
        }
        Err(error) => Answer::Silence(error.to_string()),
    })
}

/// Waits for the answer; `None` when this instance is to stop.
fn await_reply(stream: &UnixStream, stop: &AtomicBool) -> io::Result<Option<Reply>> {
    let deadline = Instant::now() + ANSWER_PATIENCE;
    stream.set_read_timeout(Some(NAP))?;
    let mut reader = BufReader::new(stream.take(LINE_MAX));
    let mut line = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match reader.read_until(b'\n', &mut line) {
            Ok(_) => return parse(&line).map(Some),
            // What has come is in the line.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its answer is not there in time"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Where other instances are listened for.
#[derive(Debug)]
pub(in crate::agent) struct Listener {
    path: PathBuf,
    /// The socket's file. Who serves next puts another one in its place.
    file: (u64, u64),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.file) {
            let _ = state::remove_if_there(&self.path);
        }
    }
}

/// Removes the socket of an agent that was killed. Only who holds the agent's lock may.
///
/// # Errors
/// The operating system's error.
pub(crate) fn remove_socket() -> io::Result<()> {
    state::remove_if_there(Path::new(PATH))
}

/// Calls `asked` from another thread whenever another instance asks for this lock, for as long as the process lives.
///
/// # Errors
/// The socket cannot be made, or the thread not be started.
pub(super) fn listen(lock: LockId, asked: impl Fn(Asker) + Send + 'static) -> io::Result<Listener> {
    listen_at(Path::new(PATH), lock, asked)
}

fn listen_at(path: &Path, lock: LockId, asked: impl Fn(Asker) + Send + 'static) -> io::Result<Listener> {
    path.parent().map_or(Ok(()), state::create_directory)?;
    // Whoever connects reaches either the one before or this one.
    let unfinished = path.with_extension(format!("{}.unfinished", std::process::id()));
    state::remove_if_there(&unfinished)?;
    let listener = UnixListener::bind(&unfinished)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))?;
    fs::rename(&unfinished, path)?;
    let file = identity(path)?;
    thread::Builder::new().name("instances".into()).spawn(move || {
        for stream in listener.incoming() {
            match stream.and_then(|stream| take(stream, lock)) {
                Ok(Some(asker)) => asked(asker),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("a question for the agent's lock failed: {error}");
                    // There may be too many open files.
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    })?;
    Ok(Listener { path: path.to_owned(), file })
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Reads a question; `None` when it was refused.
fn take(mut stream: UnixStream, lock: LockId) -> io::Result<Option<Asker>> {
    check_peer(&stream)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let why = match read_line(&stream) {
        Ok(Question::TakeOver(meant)) if meant == lock => return Ok(Some(Asker { stream })),
        Ok(Question::TakeOver(_)) => "it has another state directory".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            format!("it is of an older version ({error})")
        }
        Err(error) => return Err(error),
    };
    write_line(&mut stream, &Reply::Refusal { why })?;
    Ok(None)
}

/// Another instance, which waits for the lock.
#[derive(Debug)]
pub(in crate::agent) struct Asker {
    stream: UnixStream,
}

impl Asker {
    /// Whether it has given up, or died.
    pub(in crate::agent) fn is_gone(&self) -> bool {
        use std::os::fd::AsRawFd as _;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        matches!(recv(self.stream.as_raw_fd(), &mut [0], flags), Ok(0))
    }

    /// Promises the lock.
    ///
    /// # Errors
    /// It has gone.
    pub(in crate::agent) fn give(mut self) -> io::Result<()> {
        write_line(&mut self.stream, &Reply::Promise {})
    }
}

/// Only root and the user of this process have a say.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    match supervisor::is_ours(stream)? {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user")),
    }
}

fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not understood; otherwise the operating system's error.
fn read_line<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    parse(&line)
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    if line.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
    }
    serde_json::from_slice(line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const LOCK: LockId = LockId { device: 1, inode: 2 };

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn the_lock_is_promised_to_whoever_means_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        assert_eq!(ask_at(&path, LOCK, &GOES_ON), Some(Answer::Nobody));
        let (sender, asked) = channel();
        let listener = listen_at(&path, LOCK, move |asker| sender.send(asker).unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let other = LockId { device: 1, inode: 3 };
        let refusal = Answer::Refusal("it has another state directory".into());
        assert_eq!(ask_at(&path, other, &GOES_ON), Some(refusal));
        let path_there = path.clone();
        let asker = thread::spawn(move || ask_at(&path_there, LOCK, &GOES_ON));
        let question = asked.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!question.is_gone());
        question.give().unwrap();
        assert_eq!(asker.join().unwrap(), Some(Answer::Promise));
        // An older one's end does not take the place of the one that serves next.
        let next = listen_at(&path, LOCK, drop).unwrap();
        drop(listener);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    #[test]
    fn an_asker_obeys_a_signal_while_it_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let (sender, asked) = channel();
        let _listener = listen_at(&path, LOCK, move |asker| sender.send(asker).unwrap()).unwrap();
        static STOP: AtomicBool = AtomicBool::new(false);
        let begun = Instant::now();
        let asker = thread::spawn(move || ask_at(&path, LOCK, &STOP));
        let question = asked.recv_timeout(Duration::from_secs(10)).unwrap();
        STOP.store(true, Ordering::Relaxed);
        assert_eq!(asker.join().unwrap(), None);
        assert!(begun.elapsed() < ANSWER_PATIENCE);
        assert!(question.is_gone());
    }

    #[test]
    fn one_that_has_gone_gets_no_promise() {
        let (asker, stream) = UnixStream::pair().unwrap();
        let question = Asker { stream };
        assert!(!question.is_gone());
        drop(asker);
        assert!(question.is_gone());
        question.give().unwrap_err();
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_questions_refused() {
        for (line, refusal) in [
            ("{\"take_over\":{\"device\":1,\"inode\":2,\"later\":[]},\"x\":1}\n", Some("older version")),
            ("{\"take_over\":{\"device\":1,\"inode\":2,\"later\":[]}}\n", None),
            ("{\"sing\":{}}\n", Some("older version")),
            ("nonsense\n", Some("older version")),
        ] {
            let (mut asker, stream) = UnixStream::pair().unwrap();
            asker.write_all(line.as_bytes()).unwrap();
            let taken = take(stream, LOCK).unwrap();
            assert_eq!(taken.is_some(), refusal.is_none(), "{line}");
            if let Some(refusal) = refusal {
                let Reply::Refusal { why } = read_line(&asker).unwrap() else { panic!("{line}") };
                assert!(why.contains(refusal), "{why}");
            }
        }
    }
}
