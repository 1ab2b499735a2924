//! The socket and its clients. Each client has a thread of its own, so a slow one does not hold up others, least of all
//! the data path: only complete, parsed requests reach the engine.

use std::{
    fs,
    io::{self, BufRead, Read, Write},
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            fs::MetadataExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        socket::{Backlog, Shutdown, listen, shutdown},
        stat::{Mode, umask},
    },
};
use socket2::Type;
use wireloom_proto::on_wiped_stack;
use zeroize::Zeroizing;

use super::{
    MAX_LINE, Parser, Reply, Request, RequestError, RequestErrorKind,
    clients::{Client, Clients},
    gate::{self, Gate},
    inbox::{Inbox, Outbox, inbox},
};
use crate::socket_file::make_way;

/// How long a client may take for a request, counted from its connection or the last reply, and to read a reply.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest request, in bytes: 50,000 peers with a preshared key, an endpoint and three allowed-IPs each.
const MAX_REQUEST: u64 = 16 << 20;
/// After a request longer than this, in bytes, its memory is given back to the system.
const LONG_REQUEST: u64 = 1 << 20;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenControlError {
    /// Another process serves it.
    #[error("another process already serves {0}: end it, or choose another interface name")]
    InUse(PathBuf),
    /// The system refused, or others can put files in its directory ([`wireloom_types::DirectoryError`]).
    #[error("cannot make the control socket {path}: {cause}")]
    Failed {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
}

/// The listening socket. Its file is removed on drop, unless it is [another process's](Self::leave).
pub(crate) struct Server {
    path: PathBuf,
    /// The device and inode of the socket's file. Another process may put a file of the same name in its place.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    watch: Inotify,
    /// Of the thread that accepts clients, once there is one.
    gate: Option<Arc<Gate>>,
    is_ours: bool,
}

impl Server {
    /// Opens the socket. Clients may connect, and are served after [`Self::start`].
    pub(crate) fn open(path: PathBuf) -> Result<Self, OpenControlError> {
        match Self::try_open(&path) {
            Ok(Some(server)) => Ok(server),
            Ok(None) => Err(OpenControlError::InUse(path)),
            Err(cause) => Err(OpenControlError::Failed { path, cause }),
        }
    }

    /// Returns `None` when another process serves the socket.
    fn try_open(path: &Path) -> io::Result<Option<Self>> {
        if !make_way(path, Type::STREAM)? {
            return Ok(None);
        }
        // Only its owner has access to the socket, from the moment it exists.
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let mut server = Self::of_another(path, listener?)?;
        server.is_ours = true;
        Ok(Some(server))
    }

    /// Takes over the listening socket of another process, whose file is at `path`. It stays that process's until
    /// [`Self::start`].
    pub(crate) fn take_over(path: &Path, listener: OwnedFd) -> io::Result<Self> {
        Self::of_another(path, listener.into())
    }

    fn of_another(path: &Path, listener: UnixListener) -> io::Result<Self> {
        // It is polled, and another process may be the one to accept.
        listener.set_nonblocking(true)?;
        let metadata = fs::symlink_metadata(path)?;
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // IN_ATTRIB, because the inode of a bound socket outlives its removal, which IN_DELETE_SELF would wait for.
        let gone = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        watch.add_watch(path, gone)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self {
            path: path.into(),
            identity,
            listener: Arc::new(listener),
            watch,
            gate: None,
            is_ours: false,
        })
    }

    /// Begins to serve clients, on threads with the privileges of this one. Their requests arrive in the inbox.
    pub(crate) fn start(&mut self) -> io::Result<Inbox> {
        let inbox = self.prepare()?;
        self.serve();
        Ok(inbox)
    }

    /// Does all of [`Self::start`] that may fail. Clients wait in the socket's queue until [`Self::serve`].
    pub(crate) fn prepare(&mut self) -> io::Result<Inbox> {
        let (inbox, outbox) = inbox()?;
        let (listener, gate) = (Arc::clone(&self.listener), Arc::new(Gate::new()?));
        self.gate = Some(Arc::clone(&gate));
        let accept = move || accept(&listener, &gate, &outbox);
        thread::Builder::new().name("control".into()).spawn(accept)?;
        Ok(inbox)
    }

    /// Serves clients after [`Self::prepare`]: the socket is ours.
    pub(crate) fn serve(&mut self) {
        self.is_ours = true;
        // Clients learn by it who serves them: of a socket that was taken over, this process from now on
        // (`init_peercred` in `unix_listen`, net/unix/af_unix.c).
        if let Err(error) = listen(&self.listener, Backlog::MAXCONN) {
            tracing::warn!(
                "those who connect to the control socket are not told that this process serves it: {error}"
            );
        }
        self.resume();
    }

    /// Accepts no more clients: they wait in the socket's queue, for whoever accepts next.
    pub(crate) fn pause(&self) {
        self.tell(gate::State::Closed);
    }

    /// Accepts clients again after [`Self::pause`].
    pub(crate) fn resume(&self) {
        self.tell(gate::State::Open);
    }

    fn tell(&self, state: gate::State) {
        if let Some(gate) = &self.gate {
            gate.set(state);
        }
    }

    /// Leaves the socket and its file to the process that has taken them over.
    pub(crate) fn leave(&mut self) {
        self.pause();
        self.is_ours = false;
    }

    /// Readable when [`Self::is_in_place`] may have changed.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Whether the socket's file is still where it was made. Users remove it to end a device.
    pub(crate) fn is_in_place(&self) -> bool {
        // The events themselves do not matter.
        let _ = self.watch.read_events();
        fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_ours {
            if self.is_in_place() {
                let _ = fs::remove_file(&self.path);
            }
            // Those who connect are refused from now on.
            let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        }
        // Nobody waits for the thread: it may wait for a client to go.
        self.tell(gate::State::Ended);
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Accepts clients until it is told to end, or the socket is shut down.
fn accept(listener: &UnixListener, gate: &Gate, outbox: &Outbox) {
    let clients = Arc::<Clients>::default();
    while let Some(accepted) = gate.accept(listener) {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // A shortage of descriptors or memory, which may pass. The pause avoids a tight loop.
                tracing::warn!("cannot accept a control client: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let client = clients.admit(stream);
        let outbox = outbox.clone();
        let serve = move || match serve(&client, &outbox) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!("a control client was disconnected: {error}");
            }
            Err(error) => tracing::debug!("the connection to a control client has failed: {error}"),
            Ok(()) => {}
        };
        if let Err(error) = thread::Builder::new().name("control-client".into()).spawn(serve) {
            tracing::warn!("cannot serve a control client: {error}");
        }
    }
}

/// Serves one client until it disconnects, fails, takes too long or gives way to another one.
fn serve(client: &Client, outbox: &Outbox) -> io::Result<()> {
    let mut reader = WipedReader::new(Timed::new(client.stream()));
    loop {
        reader.inner.begin(PATIENCE);
        // A thread's stack is kept for the next thread.
        let received = on_wiped_stack(|| read_request(&mut reader))?;
        let Some(Received { to_a_set, outcome, len }) = received else { return Ok(()) };
        let kind = outcome.as_ref().err().map(|error| error.kind.clone());
        if !client.is_served() {
            return Ok(());
        }
        let reply = match outcome {
            Ok(request) => match outbox.call(request) {
                Some(reply) => reply,
                None => return Ok(()),
            },
            Err(error) => {
                tracing::warn!("a control request was refused: {error}");
                Reply::Refused(error.kind.errno())
            }
        };
        client.reads();
        reader.inner.begin(PATIENCE);
        reader.inner.write_all(reply.into_text(to_a_set).as_bytes())?;
        client.waits();
        if len > LONG_REQUEST {
            return_memory();
        }
        if matches!(kind, Some(RequestErrorKind::UnknownOperation | RequestErrorKind::Unfinished)) {
            return Ok(());
        }
    }
}

/// Gives the memory that a request took back to the system. The allocator keeps what is freed in small pieces.
fn return_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "neither nix nor the standard library have this function")]
    // SAFETY: it only looks at memory that is free (malloc_trim(3)), and has no other preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
    // This leaves the end of the thread's own arena, which freeing a piece of at least 64 KiB gives back
    // (`FASTBIN_CONSOLIDATION_THRESHOLD` in malloc/malloc.c, `heap_trim` in malloc/arena.c).
    drop(std::hint::black_box(Vec::<u8>::with_capacity(100 << 10)));
}

/// A request that has come.
struct Received {
    to_a_set: bool,
    outcome: Result<Request, RequestError>,
    /// Its length in bytes.
    len: u64,
}

/// Reads one request to its end even if it is refused, because the client reads the reply only then. `None` when the
/// client has no more requests.
fn read_request(reader: &mut WipedReader<Timed<'_>>) -> io::Result<Option<Received>> {
    let scope = |name: &str| if_nametoindex(name).ok();
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE + 2));
    let mut parser = Parser::default();
    let mut to_a_set = true;
    let mut refused = None;
    let mut len = 0;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line)?;
        len += read as u64;
        if !parser.is_unfinished() && refused.is_none() {
            to_a_set = !line.starts_with(b"get");
        }
        let received = |outcome| Some(Received { to_a_set, outcome, len });
        if read == 0 {
            let cut_off = parser.is_unfinished().then(|| parser.unfinished());
            return Ok(refused.or(cut_off).and_then(|error| received(Err(error))));
        }
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        match refused {
            // The request is refused already: discard its lines up to the empty one.
            Some(error) if whole && line.is_empty() => return Ok(received(Err(error))),
            Some(_) => {}
            None if len > MAX_REQUEST && whole && line.is_empty() => {
                return Ok(received(Err(parser.too_long())));
            }
            None if len > MAX_REQUEST => refused = Some(parser.too_long()),
            None => match parser.line(&line, &scope) {
                Ok(Some(request)) => return Ok(received(Ok(request))),
                Ok(None) if !whole => refused = Some(parser.unfinished()),
                Ok(None) => {}
                Err(error) if error.kind == RequestErrorKind::UnknownOperation => {
                    return Ok(received(Err(error)));
                }
                Err(error) => refused = Some(error),
            },
        }
    }
}

/// A connection with a limit for each request, and for each reply, however they are cut into pieces.
struct Timed<'a> {
    stream: &'a UnixStream,
    patience: Duration,
    deadline: Instant,
}

impl<'a> Timed<'a> {
    /// The time is up until the first [`Self::begin`].
    fn new(stream: &'a UnixStream) -> Self {
        Self { stream, patience: Duration::ZERO, deadline: Instant::now() }
    }

    /// Gives what follows this much time.
    fn begin(&mut self, patience: Duration) {
        (self.patience, self.deadline) = (patience, Instant::now() + patience);
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.too_late()) } else { Ok(left) }
    }

    /// A read or write that waited as long as it may fails with `WouldBlock`.
    fn timed<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => self.too_late(),
            _ => error,
        })
    }

    fn too_late(&self) -> io::Error {
        let seconds = self.patience.as_secs();
        let message = format!("it has {seconds} s for a request, and as much to read the reply");
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        let read = stream.read(into);
        self.timed(read)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let mut stream = self.stream;
        let written = stream.write(from);
        self.timed(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader whose buffer is wiped when it is dropped, because keys pass through it.
struct WipedReader<R> {
    inner: R,
    buffer: Zeroizing<[u8; 4096]>,
    unread: Range<usize>,
}

impl<R: Read> WipedReader<R> {
    fn new(inner: R) -> Self {
        Self { inner, buffer: Zeroizing::new([0; 4096]), unread: 0..0 }
    }
}

impl<R: Read> BufRead for WipedReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() {
            self.unread = 0..self.inner.read(&mut *self.buffer)?;
        }
        Ok(&self.buffer[self.unread.clone()])
    }

    fn consume(&mut self, amount: usize) {
        self.unread.start += amount;
    }
}

impl<R: Read> Read for WipedReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let amount = self.fill_buf()?.read(into)?;
        self.consume(amount);
        Ok(amount)
    }
}

#[cfg(test)]
mod tests;
