//! The control socket of a userspace WireGuard interface (<https://www.wireguard.com/xplatform/>).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use base64ct::{Base64, Encoding as _};
use wireloom_types::interface::control_socket;

use crate::{Error, PATIENCE, Result, Space, at_this_pace};

/// Sends a request to the control socket of an interface, and returns the answer: all of it, or as much as arrived
/// before the other end closed the connection.
///
/// # Errors
/// [`Error::Io`] when nobody listens, or nobody answers within [`PATIENCE`].
pub fn request(space: &Space, interface: &str, request: &[u8]) -> Result<String> {
    let patience = Some(at_this_pace(PATIENCE));
    space.open(&format!("get an answer from the control socket of {interface}"), || {
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

/// Configures an interface: sends a `set=1` request with these lines.
pub(crate) fn configure(space: &Space, interface: &str, lines: &str) -> Result<()> {
    let answer = request(space, interface, format!("set=1\n{lines}\n").as_bytes())?;
    match answer.trim() {
        "errno=0" => Ok(()),
        _ => Err(Error::Output { what: format!("the control socket of {interface}"), output: answer }),
    }
}

/// A key as the control socket takes it: hexadecimal instead of base64.
pub(crate) fn hex(base64: &str) -> Result<String> {
    let bytes = Base64::decode_vec(base64)
        .map_err(|_| Error::Output { what: "the key generator".into(), output: base64.to_owned() })?;
    Ok(base16ct::lower::encode_string(&bytes))
}
