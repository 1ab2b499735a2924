//! The engine's counters of dropped packets.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::uapi;
use crate::error::Cause;

/// The counters are only told: nobody waits for them as for the device itself.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Packets that the device behind a control socket dropped since it started, by the reason's name; `None` when nobody
/// listens there.
pub(crate) fn read(socket: &Path) -> Result<Option<BTreeMap<String, u64>>, Cause> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(uapi::GET_DROPS.as_bytes())?;
    let mut reply = Vec::new();
    let mut piece = [0; 4096];
    while !reply.ends_with(b"\n\n") {
        match stream.read(&mut piece)? {
            0 => break,
            length => reply.extend_from_slice(&piece[..length]),
        }
    }
    let text = String::from_utf8_lossy(&reply);
    uapi::parse_drops_reply(&text).map(Some).map_err(|error| Cause::Transient(error.to_string()))
}
