//! A small HTTP server. It answers three paths, one request a connection.

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    Board,
    scrape::{Format, Scrape},
};
use crate::run_file::monotonic_time;

/// The longest head of a request, bytes. Prometheus sends some 300.
const HEAD_MAX: usize = 8192;

/// The most header fields of a request.
const FIELDS_MAX: usize = 64;

/// How long one request may take, from the first byte to the last of the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most connections at a time; further ones are closed at once.
const CONNECTIONS_MAX: usize = 16;

/// How long after a failed attempt to listen the next one follows: the address may not be there yet.
const RETRY: Duration = Duration::from_secs(10);

/// The same where another process has the port: the agent before this one, which is about to end.
const RETRY_TAKEN: Duration = Duration::from_millis(100);

/// A server on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Nothing is sent through it: its end is what the thread notices.
    _alive: UnixStream,
}

impl Server {
    /// Serves what is on the board at this address. An address that cannot be listened on is logged, and tried again.
    ///
    /// # Errors
    /// The operating system's, when the thread cannot be started.
    pub(crate) fn start(address: SocketAddr, board: Arc<Board>) -> io::Result<Self> {
        let (alive, ended) = UnixStream::pair()?;
        let scrape = Arc::new(Scrape::of(&board));
        thread::Builder::new().name("metrics".into()).spawn(move || {
            let mut is_logged = false;
            while let Err(error) = TcpListener::bind(address).and_then(|listener| {
                tracing::info!("metrics are served at http://{address}/metrics");
                serve(&listener, &ended, &board, &scrape)
            }) {
                let is_taken = error.kind() == io::ErrorKind::AddrInUse;
                let retry = if is_taken { RETRY_TAKEN } else { RETRY };
                if !std::mem::replace(&mut is_logged, true) {
                    tracing::error!(
                        "cannot serve metrics at {address}: {error}; it is tried again every {retry:?}"
                    );
                }
                if wait(&[ended.as_fd()], Some(retry)) != Ok(None) {
                    return;
                }
            }
        })?;
        Ok(Self { _alive: alive })
    }
}

/// Waits until one of these can be read or has ended: which one, or none when the time is over.
fn wait(files: &[BorrowedFd<'_>], patience: Option<Duration>) -> Result<Option<usize>, Errno> {
    let mut polled: Vec<_> = files.iter().map(|file| PollFd::new(*file, PollFlags::POLLIN)).collect();
    let patience = patience.map_or(PollTimeout::NONE, |time| time.try_into().unwrap_or(PollTimeout::MAX));
    match poll(&mut polled, patience) {
        // A signal is handled elsewhere.
        Err(Errno::EINTR) => Ok(None),
        Err(error) => Err(error),
        Ok(_) => Ok(polled.iter().position(|file| file.any().unwrap_or(true))),
    }
}

/// Answers connections until the other end of `ended` is gone.
fn serve(
    listener: &TcpListener,
    ended: &UnixStream,
    board: &Arc<Board>,
    scrape: &Arc<Scrape>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let open = Arc::new(());
    loop {
        match wait(&[ended.as_fd(), listener.as_fd()], None)? {
            Some(0) => return Ok(()),
            Some(_) => {}
            None => continue,
        }
        let Ok((stream, _)) = listener.accept() else {
            // It is gone again, or there are too many open files.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if Arc::strong_count(&open) > CONNECTIONS_MAX {
            continue;
        }
        let (board, scrape, counted) = (Arc::clone(board), Arc::clone(scrape), Arc::clone(&open));
        let started = thread::Builder::new().name("scrape".into()).spawn(move || {
            let _counted = counted;
            if let Err(error) = answer(stream, &board, &scrape, PATIENCE) {
                tracing::debug!("a request for metrics failed: {error}");
            }
        });
        if let Err(error) = started {
            tracing::warn!("cannot answer a request for metrics: {error}");
        }
    }
}

/// Reads one request and answers it.
pub(super) fn answer(
    mut stream: TcpStream,
    board: &Board,
    scrape: &Scrape,
    patience: Duration,
) -> io::Result<()> {
    // The listener's non-blocking mode is not inherited on Linux, but nothing says so everywhere.
    stream.set_nonblocking(false)?;
    let until = Instant::now() + patience;
    let answer = match read_request(&mut stream, until)? {
        Ok(request) => request.answer(board, scrape),
        Err(status) => Answer::plain(status, format!("{status}\n")),
    };
    let mut rest = &answer.bytes()[..];
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        let written = stream.write(rest)?;
        rest = &rest[written..];
    }
    Ok(())
}

/// The time that is left, never zero.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLong,
    InternalError,
    Unavailable,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeadTooLong => "431 Request Header Fields Too Large",
            Self::InternalError => "500 Internal Server Error",
            Self::Unavailable => "503 Service Unavailable",
        })
    }
}

struct Request {
    path: String,
    /// Only the head of the answer is wanted.
    head_only: bool,
    format: Format,
}

/// Reads the head of a request; a body is not expected. The inner error is what to answer.
fn read_request(stream: &mut TcpStream, until: Instant) -> io::Result<Result<Request, Status>> {
    let mut head = [0; HEAD_MAX];
    let mut len = 0;
    loop {
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut head[len..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => len += more,
        }
        match parse(&head[..len]) {
            Some(request) => return Ok(request),
            None if len == head.len() => return Ok(Err(Status::HeadTooLong)),
            None => {}
        }
    }
}

/// A request, or what to answer; `None` when there is more to come.
fn parse(head: &[u8]) -> Option<Result<Request, Status>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Some(Err(Status::HeadTooLong)),
        Err(_) => return Some(Err(Status::BadRequest)),
    }
    let head_only = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Some(Err(Status::MethodNotAllowed)),
    };
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let accept = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("accept"));
    let accept = accept.and_then(|field| std::str::from_utf8(field.value).ok()).unwrap_or_default();
    Some(Ok(Request { path, head_only, format: Format::accepted(accept) }))
}

impl Request {
    fn answer(&self, board: &Board, scrape: &Scrape) -> Answer {
        let now = monotonic_time().unwrap_or_default();
        let probe = |outcome: Result<(), String>| match outcome {
            Ok(()) => Answer::plain(Status::Ok, "ok\n".into()),
            Err(why) => Answer::plain(Status::Unavailable, format!("{why}\n")),
        };
        let answer = match self.path.as_str() {
            "/livez" => probe(board.pulse().live(now)),
            "/readyz" => probe(board.pulse().ready(now)),
            "/metrics" => match scrape.text(self.format) {
                Ok(body) => {
                    Answer { status: Status::Ok, kind: self.format.content_type(), body, head_only: false }
                }
                Err(fmt::Error) => Answer::plain(Status::InternalError, "cannot write the metrics\n".into()),
            },
            _ => Answer::plain(Status::NotFound, "there are /metrics, /livez and /readyz\n".into()),
        };
        Answer { head_only: self.head_only, ..answer }
    }
}

struct Answer {
    status: Status,
    kind: &'static str,
    body: String,
    head_only: bool,
}

impl Answer {
    fn plain(status: Status, body: String) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body, head_only: false }
    }

    fn bytes(&self) -> Vec<u8> {
        let allow = if self.status == Status::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n",
            self.status,
            self.kind,
            self.body.len(),
        );
        if !self.head_only {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}
