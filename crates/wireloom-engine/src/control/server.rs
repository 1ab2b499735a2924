//! The socket and its clients. Each client has a thread of its own, so a slow one does not hold up others, least of all
//! the data path: only complete, parsed requests reach the engine.

use std::{
    fs::{self, DirBuilder},
    io::{self, BufRead, Read, Write},
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        socket::{Shutdown, shutdown},
        stat::{Mode, umask},
    },
};
use zeroize::Zeroizing;

use super::{
    Errno, MAX_LINE, Parser, Reply, Request, RequestError, RequestErrorKind,
    inbox::{Inbox, Outbox, inbox},
};

/// The most clients at a time.
const MAX_CLIENTS: usize = 32;
/// How long a client may take for a request, and wait before the next one.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest request, in bytes: about 100,000 peers.
const MAX_REQUEST: u64 = 64 << 20;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenControlError {
    /// Another process serves it.
    #[error("another process already serves {0}: end it, or choose another interface name")]
    InUse(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {path}: {cause}")]
    Failed {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
}

/// The listening socket. Its file is removed on drop.
pub(crate) struct Server {
    path: PathBuf,
    /// The device and inode of the socket's file. Another process may put a file of the same name in its place.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    watch: Inotify,
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
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(None);
        }
        match fs::symlink_metadata(path) {
            // Nobody listens to it: a killed process left it behind.
            Ok(stale) if stale.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the file there is not a socket; move it away, or give the interface another name",
                ));
            }
            Err(_) => {}
        }
        // Only its owner has access to the socket, from the moment it exists.
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = Arc::new(listener?);
        let metadata = fs::symlink_metadata(path)?;
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // IN_ATTRIB, because the inode of a bound socket outlives its removal, which IN_DELETE_SELF would wait for.
        let gone = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        watch.add_watch(path, gone)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Some(Self { path: path.into(), identity, listener, watch }))
    }

    /// Begins to serve clients, on threads with the privileges of this one. Their requests arrive in the inbox.
    pub(crate) fn start(&self) -> io::Result<Inbox> {
        let (inbox, outbox) = inbox()?;
        let listener = Arc::clone(&self.listener);
        thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &outbox))?;
        Ok(inbox)
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
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
        // This wakes the accepting thread, which then ends.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

/// Accepts clients until the socket is shut down.
fn accept(listener: &UnixListener, outbox: &Outbox) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            Err(error) => {
                // A shortage of descriptors or memory, which may pass. The pause avoids a tight loop.
                tracing::warn!("cannot accept a control client: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let Some(slot) = Slot::take(&clients) else {
            tracing::warn!("a control client was turned away: {MAX_CLIENTS} others are connected");
            continue;
        };
        let outbox = outbox.clone();
        let serve = move || {
            let _slot = slot;
            if let Err(error) = serve(&stream, &outbox) {
                tracing::debug!("the connection to a control client has failed: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("control-client".into()).spawn(serve) {
            tracing::warn!("cannot serve a control client: {error}");
        }
    }
}

/// One of [`MAX_CLIENTS`] slots.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(clients));
        (slot.0.fetch_add(1, Ordering::Relaxed) < MAX_CLIENTS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one client until it disconnects, fails or takes too long.
fn serve(stream: &UnixStream, outbox: &Outbox) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = WipedReader::new(stream);
    while let Some((to_a_set, outcome)) = read_request(&mut reader)? {
        let hopeless = matches!(
            &outcome,
            Err(error) if matches!(error.kind, RequestErrorKind::UnknownOperation | RequestErrorKind::Unfinished)
        );
        let reply = match outcome {
            Ok(request) => outbox.call(request),
            Err(error) => {
                tracing::warn!("a control request was refused: {error}");
                Reply::Refused(Errno::EINVAL)
            }
        };
        (&*stream).write_all(reply.into_text(to_a_set).as_bytes())?;
        if hopeless {
            break;
        }
    }
    Ok(())
}

/// Reads one request to its end even if it is refused, because the client reads the reply only then. Returns whether it
/// is a `set`, and `None` when the client has no more requests.
fn read_request(
    reader: &mut WipedReader<&UnixStream>,
) -> io::Result<Option<(bool, Result<Request, RequestError>)>> {
    let scope = |name: &str| if_nametoindex(name).ok();
    reader.deadline = Instant::now() + PATIENCE;
    let mut rest = reader.take(MAX_REQUEST);
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE + 2));
    let mut parser = Parser::default();
    let mut to_a_set = true;
    let mut refused = None;
    loop {
        line.clear();
        let read = rest.by_ref().take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line)?;
        if read == 0 {
            let cut_off = parser.is_unfinished().then(|| parser.unfinished());
            return Ok(refused.or(cut_off).map(|error| (to_a_set, Err(error))));
        }
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        if !parser.is_unfinished() && refused.is_none() {
            to_a_set = !line.starts_with(b"get");
        }
        match refused {
            // The request is refused already: discard its lines up to the empty one.
            Some(error) if whole && line.is_empty() => return Ok(Some((to_a_set, Err(error)))),
            Some(_) => {}
            None => match parser.line(&line, &scope) {
                Ok(Some(request)) => return Ok(Some((to_a_set, Ok(request)))),
                Ok(None) if !whole => refused = Some(parser.unfinished()),
                Ok(None) => {}
                Err(error) if error.kind == RequestErrorKind::UnknownOperation => {
                    return Ok(Some((to_a_set, Err(error))));
                }
                Err(error) => refused = Some(error),
            },
        }
    }
}

/// A reader whose buffer is wiped when it is dropped, because keys pass through it.
struct WipedReader<R> {
    inner: R,
    buffer: Zeroizing<[u8; 4096]>,
    unread: Range<usize>,
    /// When reading fails, even if the client sends a little at a time.
    deadline: Instant,
}

impl<R: Read> WipedReader<R> {
    fn new(inner: R) -> Self {
        Self { inner, buffer: Zeroizing::new([0; 4096]), unread: 0..0, deadline: Instant::now() }
    }
}

impl<R: Read> BufRead for WipedReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.unread.is_empty() {
            if Instant::now() > self.deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
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
