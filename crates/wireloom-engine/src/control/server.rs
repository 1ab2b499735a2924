//! The socket and its clients. Each client has a thread of its own, so that a slow one keeps nobody
//! else waiting, least of all the data path: only complete, parsed requests get there.

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

/// Clients at a time.
const MAX_CLIENTS: usize = 32;
/// How long a client may take for one request, and be silent between two.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest request in bytes: some 100,000 peers.
const MAX_REQUEST: u64 = 64 << 20;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum OpenControlError {
    /// Another process answers there.
    #[error("another process already serves {0}: end it, or choose another interface name")]
    InUse(PathBuf),
    /// The system refused.
    #[error("cannot make the control socket {path}: {source}")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket. Its file is removed on drop.
pub(crate) struct Server {
    path: PathBuf,
    /// Device and inode of the socket's file: a file of the same name may be somebody else's.
    identity: (u64, u64),
    listener: Arc<UnixListener>,
    watch: Inotify,
}

impl Server {
    /// Makes the socket; clients may connect, and wait for [`Self::start`].
    pub(crate) fn open(path: PathBuf) -> Result<Self, OpenControlError> {
        match Self::try_open(&path) {
            Ok(Some(server)) => Ok(server),
            Ok(None) => Err(OpenControlError::InUse(path)),
            Err(source) => Err(OpenControlError::Failed { path, source }),
        }
    }

    /// `None` when another process serves the socket.
    fn try_open(path: &Path) -> io::Result<Option<Self>> {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        if UnixStream::connect(path).is_ok() {
            return Ok(None);
        }
        match fs::symlink_metadata(path) {
            // A socket that nobody listens to is left over from a process that was killed.
            Ok(stale) if stale.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "there is a file that is no socket",
                ));
            }
            Err(_) => {}
        }
        // The socket is the owner's alone from its first moment.
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = Arc::new(listener?);
        let metadata = fs::symlink_metadata(path)?;
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // An unlinked socket that is still bound lives on, so that IN_DELETE_SELF never comes.
        let gone = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        watch.add_watch(path, gone)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Some(Self { path: path.into(), identity, listener, watch }))
    }

    /// Begins to serve clients, on threads that have the privileges of this one; their requests arrive
    /// in the inbox.
    pub(crate) fn start(&self) -> io::Result<Inbox> {
        let (inbox, outbox) = inbox()?;
        let listener = Arc::clone(&self.listener);
        thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &outbox))?;
        Ok(inbox)
    }

    /// Readable when [`Self::is_in_place`] should be asked.
    pub(crate) fn watch(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Whether the socket's file is where it was made. Removing it is how one ends a device.
    pub(crate) fn is_in_place(&self) -> bool {
        // Only that something happened is of interest.
        let _ = self.watch.read_events();
        fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
        // Wakes the accepting thread, which then ends.
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
                // Out of descriptors or memory, which may pass; never in a tight loop.
                tracing::warn!("cannot accept a control client: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let seat = Seat::take(&clients);
        let Some(seat) = seat else {
            tracing::warn!("a control client was turned away: there are {MAX_CLIENTS} already");
            continue;
        };
        let outbox = outbox.clone();
        let serve = move || {
            let _seat = seat;
            if let Err(error) = serve(&stream, &outbox) {
                tracing::debug!("a control client went away: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("control-client".into()).spawn(serve) {
            tracing::warn!("cannot serve a control client: {error}");
        }
    }
}

/// One client's place among [`MAX_CLIENTS`].
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        let seat = Self(Arc::clone(clients));
        (seat.0.fetch_add(1, Ordering::Relaxed) < MAX_CLIENTS).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one client until it goes away, fails or takes too long.
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

/// Reads one request to its end, also when it is wrong: the client hears of that when it has said
/// all it wanted. Returns whether it is a `set`, and `None` when there is none any more.
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
            let cut_off = parser.is_amid().then(|| parser.unfinished());
            return Ok(refused.or(cut_off).map(|error| (to_a_set, Err(error))));
        }
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        if !parser.is_amid() && refused.is_none() {
            to_a_set = !line.starts_with(b"get");
        }
        match refused {
            // Everything up to the empty line belongs to the request that is refused already.
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

/// A reader whose buffer is wiped in the end: keys pass through it.
struct WipedReader<R> {
    inner: R,
    buffer: Zeroizing<[u8; 4096]>,
    unread: Range<usize>,
    /// After this it reads no more, however little it is given at a time.
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
