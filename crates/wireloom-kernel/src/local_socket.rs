//! Connections to processes on this machine.

use std::{
    io,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// Connects to a socket without waiting. [`UnixStream::connect`] waits for as long as the listener's queue is full, as
/// with a process that hangs.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when the queue is full, [`io::ErrorKind::NotFound`] or
/// [`io::ErrorKind::ConnectionRefused`] when nobody listens; otherwise the operating system's error.
pub fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(descriptor);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use nix::sys::socket::{Backlog, listen};

    use super::*;

    #[test]
    fn a_process_that_accepts_nobody_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert_eq!(connect_at_once(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        // The kernel lets one more wait.
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let _waits = connect_at_once(&path).unwrap();
        assert_eq!(connect_at_once(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(listener);
        assert_eq!(connect_at_once(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
