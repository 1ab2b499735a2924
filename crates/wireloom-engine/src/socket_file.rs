//! The files of listening sockets: how a process that opens one makes way for its own.

use std::{
    fs, io,
    os::unix::fs::FileTypeExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::directory::create_directory;

/// How long another process with the interface or the socket may take to end. Its interface is gone before its socket,
/// and the kernel then takes tens of milliseconds (`synchronize_net` in net/core/dev.c).
pub(crate) const ENDING: Duration = Duration::from_millis(500);

/// Makes way for a socket of this type: creates its directory, waits for the end of a process that is ending, and
/// removes the file of one that was killed. False when another process serves the socket.
///
/// # Errors
/// When the system refuses, others can put files in the directory, or the file there is not a socket.
pub(crate) fn make_way(path: &Path, kind: Type) -> io::Result<bool> {
    if let Some(directory) = path.parent() {
        create_directory(directory)?;
    }
    let begun = Instant::now();
    while is_served(path, kind)? {
        if begun.elapsed() > ENDING {
            return Ok(false);
        }
        thread::sleep(ENDING / 50);
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
    Ok(true)
}

/// Whether a process listens on the socket. It may hang, and its queue may be full: nobody waits for it.
fn is_served(path: &Path, kind: Type) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, kind.nonblocking(), None)?;
    Ok(match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    })
}
