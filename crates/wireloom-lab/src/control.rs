//! The control socket of a userspace WireGuard interface (<https://www.wireguard.com/xplatform/>).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use wireloom_types::interface::control_socket;

use super::{PATIENCE, Result, Space, at_this_pace};

/// Sends a request to the control socket of an interface, and returns the whole answer. It is empty, or cut,
/// where the other end hangs up before it has read everything.
///
/// # Errors
/// When nobody listens, or nobody answers in time.
pub fn request(space: &Space, interface: &str, request: &[u8]) -> Result<String> {
    let patience = Some(at_this_pace(PATIENCE));
    space.open(&format!("hear from the control socket of {interface}"), || {
        let mut socket = UnixStream::connect(control_socket(interface))?;
        socket.set_write_timeout(patience)?;
        socket.set_read_timeout(patience)?;
        let _ = socket.write_all(request);
        let _ = socket.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match socket.read_to_end(&mut answer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        }
    })
}
