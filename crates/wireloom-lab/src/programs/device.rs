//! `wireloom device` on a node: configuring it through its control socket.

use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use base64ct::{Base64, Encoding as _};
use wireloom_types::interface::control_socket;

use crate::{Error, Result, Space};

/// Sends a `set=1` request (<https://www.wireguard.com/xplatform/>) to a userspace WireGuard interface.
///
/// # Errors
/// When nobody answers, or the answer is not `errno=0`.
pub(crate) fn configure(space: &Space, interface: &str, request: &str) -> Result<()> {
    let answer = space.open(&format!("configure {interface}"), || {
        let mut socket = UnixStream::connect(control_socket(interface))?;
        write!(socket, "set=1\n{request}\n")?;
        socket.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map(|_| answer)
    })?;
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
