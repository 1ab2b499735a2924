//! One connection to the control socket: the requests that were sent, and what has come back so far.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};
use zeroize::Zeroizing;

use super::secret::SecretBytes;
use crate::local_socket::connect_at_once;

/// A timeout of zero would mean none (setsockopt(2), `SO_RCVTIMEO`).
const LEAST_TIMEOUT: Duration = Duration::from_millis(1);

/// A connection on which replies are awaited.
pub(super) struct Conversation {
    stream: UnixStream,
    /// How many replies have not come whole. Each ends with an empty line; the device keeps the connection open.
    awaited: usize,
    /// What has come of them. It may hold the private key.
    received: SecretBytes,
}

impl Conversation {
    /// Sends requests, and waits no longer than `limit` until they are sent. `None` when nobody listens.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: the device takes no more connections or requests.
    pub(super) fn begin(
        path: &Path,
        requests: &[u8],
        replies: usize,
        limit: Duration,
    ) -> io::Result<Option<Self>> {
        let stream = match connect_at_once(path) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            stream => stream?,
        };
        stream.set_write_timeout(Some(limit))?;
        (&stream).write_all(requests)?;
        Ok(Some(Self { stream, awaited: replies, received: SecretBytes::default() }))
    }

    /// Waits for the replies until then. `None` when they have not come whole.
    pub(super) fn listen(&mut self, until: Instant) -> io::Result<Option<Zeroizing<String>>> {
        let mut piece = Zeroizing::new([0; 16 << 10]);
        while self.awaited > 0 {
            let left = until.saturating_duration_since(Instant::now()).max(LEAST_TIMEOUT);
            self.stream.set_read_timeout(Some(left))?;
            match (&self.stream).read(&mut *piece) {
                Ok(0) => break,
                Ok(length) => self.take(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let text = str::from_utf8(&self.received).map_err(invalid)?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    /// The process at the other end; `None` when it is in a PID namespace that we cannot see.
    pub(super) fn process(&self) -> Option<Pid> {
        let credentials = getsockopt(&self.stream, PeerCredentials).ok()?;
        (credentials.pid() > 0).then(|| Pid::from_raw(credentials.pid()))
    }

    fn take(&mut self, piece: &[u8]) {
        // The first of the two line ends may have come before.
        let from = self.received.len().saturating_sub(1);
        self.received.append(piece);
        let whole = self.received[from..].windows(2).filter(|pair| pair == b"\n\n").count();
        self.awaited = self.awaited.saturating_sub(whole);
    }
}
