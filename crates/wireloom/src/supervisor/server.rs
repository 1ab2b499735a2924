//! The socket on which the supervisor is asked: one request and one reply for each connection.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::FileTypeExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use wireloom_kernel::{
    connect_at_once,
    state::{create_directory, remove_if_there},
    supervisor::{LONGEST, Reply, Request, is_ours},
};

use super::state_machine::Call;

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many clients are served at once. Others wait.
const CLIENTS_MAX: usize = 16;

/// The listening socket and its clients. Its file is removed on drop.
pub(super) struct Server {
    path: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
    calls: u64,
}

struct Client {
    call: Call,
    stream: UnixStream,
    received: Vec<u8>,
    /// When its request must be whole; `None` when it is.
    deadline: Option<Instant>,
}

impl Server {
    /// Opens the socket. The process's umask is to forbid all others its use.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            create_directory(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file there is not a socket"));
            }
            Ok(_) if is_served(path) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another supervisor serves it"));
            }
            // A killed process left it behind.
            _ => remove_if_there(path)?,
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.into(), listener, clients: Vec::new(), calls: 0 })
    }

    /// What has to become readable before there is something to do.
    pub(super) fn awaited(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listener = (self.clients.len() < CLIENTS_MAX).then(|| self.listener.as_fd());
        let unfinished = self.clients.iter().filter(|client| client.deadline.is_some());
        listener.into_iter().chain(unfinished.map(|client| client.stream.as_fd()))
    }

    /// How long until a client has taken too long.
    pub(super) fn until_late(&self) -> Option<Duration> {
        let first = self.clients.iter().filter_map(|client| client.deadline).min();
        first.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// The requests that are whole now. Each is to be answered. Clients that ask for nonsense are answered here, and
    /// those that take too long are disconnected.
    pub(super) fn requests(&mut self) -> Vec<(Call, Request)> {
        self.accept();
        let mut requests = Vec::new();
        let mut refused = Vec::new();
        self.clients.retain_mut(|client| {
            if client.deadline.is_none() {
                return true;
            }
            match client.read() {
                Ok(Some(Ok(request))) => requests.push((client.call, request)),
                Ok(Some(Err(error))) => refused.push((client.call, error)),
                Ok(None) => return client.deadline.is_none_or(|deadline| Instant::now() < deadline),
                Err(error) => {
                    tracing::debug!("the connection to a client has failed: {error}");
                    return false;
                }
            }
            client.deadline = None;
            true
        });
        for (call, error) in refused {
            tracing::warn!("a request was refused: {error}");
            self.answer(call, &Reply::Error(error));
        }
        requests
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // A shortage of descriptors or memory, which may pass. The pause avoids a tight loop.
                    tracing::warn!("cannot accept a client: {error}");
                    return thread::sleep(Duration::from_millis(50));
                }
            };
            if !is_ours(&stream).unwrap_or(false) || stream.set_nonblocking(true).is_err() {
                tracing::warn!("a client of another user was disconnected");
                continue;
            }
            self.calls += 1;
            self.clients.push(Client {
                call: Call(self.calls),
                stream,
                received: Vec::new(),
                deadline: Some(Instant::now() + PATIENCE),
            });
        }
    }

    /// Answers a request, if the client is still there, and disconnects it.
    pub(super) fn answer(&mut self, call: Call, reply: &Reply) {
        let Some(index) = self.clients.iter().position(|client| client.call == call) else { return };
        let mut client = self.clients.swap_remove(index);
        let mut line = serde_json::to_vec(reply).unwrap_or_default();
        line.push(b'\n');
        // A reply is shorter than the buffer of a socket, so this does not have to wait.
        if let Err(error) = client.stream.write_all(&line) {
            tracing::debug!("a client did not take its answer: {error}");
        }
    }
}

/// Whether a process listens there, even one that hangs.
fn is_served(path: &Path) -> bool {
    let connected = connect_at_once(path);
    connected.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true)
}

impl Client {
    /// The request, once it is whole, or what is wrong with it.
    fn read(&mut self) -> io::Result<Option<Result<Request, String>>> {
        let mut piece = [0; 4096];
        loop {
            let length = match self.stream.read(&mut piece) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            self.received.extend_from_slice(&piece[..length]);
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let request = serde_json::from_slice(&self.received[..end]);
                return Ok(Some(request.map_err(|error| format!("the request cannot be read: {error}"))));
            }
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if self.received.len() > LONGEST {
                return Ok(Some(Err(format!("a request has at most {LONGEST} bytes"))));
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = remove_if_there(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use wireloom_kernel::supervisor::Status;

    use super::*;

    /// Opens a server in a new directory.
    fn server() -> (tempfile::TempDir, PathBuf, Server) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/engine.sock");
        let server = Server::open(&path).unwrap();
        (directory, path, server)
    }

    fn say(path: &Path, text: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(text).unwrap();
        stream
    }

    fn heard(mut stream: UnixStream) -> String {
        let mut text = String::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn requests_come_whole_and_each_gets_its_own_answer() {
        let (_directory, path, mut server) = server();
        let mut one = say(&path, b"{\"stop\"");
        let two = say(&path, b"{\"status\":{}}\n");
        let requests = server.requests();
        assert_eq!(requests, [(Call(2), Request::Status {})]);
        assert_eq!(server.awaited().count(), 2, "the listener, and who has not said all");
        assert!(server.until_late().is_some());
        one.write_all(b":{}}\nmore").unwrap();
        assert_eq!(server.requests(), [(Call(1), Request::Stop {})]);
        assert_eq!(server.until_late(), None);
        server.answer(Call(1), &Reply::Busy("later".into()));
        server.answer(Call(2), &Reply::Ok(Status::default()));
        server.answer(Call(2), &Reply::Ok(Status::default()));
        assert_eq!(heard(one), "{\"busy\":\"later\"}\n");
        assert!(heard(two).starts_with("{\"ok\":{\"state\":\"idle\""));
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn nonsense_is_answered_and_who_leaves_or_takes_too_long_is_forgotten() {
        let (_directory, path, mut server) = server();
        let nonsense = say(&path, b"get=1\n\n");
        let unknown = say(&path, b"{\"run\":{\"arguments\":[],\"more\":1}}\n");
        drop(say(&path, b"{"));
        let slow = say(&path, b"{");
        assert!(server.requests().is_empty());
        assert!(heard(nonsense).starts_with("{\"error\":\"the request cannot be read"));
        assert!(heard(unknown).contains("unknown field `more`"));
        assert_eq!(server.clients.len(), 1);
        server.clients[0].deadline = Some(Instant::now());
        assert!(server.requests().is_empty() && server.clients.is_empty());
        assert_eq!(heard(slow), "");
        // As long as they like to make it.
        let path_of_long = path.clone();
        let long = std::thread::spawn(move || {
            let mut stream = UnixStream::connect(path_of_long).unwrap();
            let _ = stream.write_all(&vec![b'x'; 2 * LONGEST]);
            stream
        });
        while server.calls < 5 || !server.clients.is_empty() {
            assert!(server.requests().is_empty());
        }
        drop(long.join().unwrap());
    }

    #[test]
    fn a_served_socket_is_refused_and_one_that_was_left_is_replaced() {
        let (_directory, path, server) = server();
        let refused = |path: &Path| Server::open(path).err().map(|error| error.to_string());
        assert_eq!(refused(&path).as_deref(), Some("another supervisor serves it"));
        drop(server);
        drop(UnixListener::bind(&path).unwrap());
        drop(Server::open(&path).unwrap());
        fs::write(&path, "precious").unwrap();
        assert_eq!(refused(&path).as_deref(), Some("the file there is not a socket"));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
