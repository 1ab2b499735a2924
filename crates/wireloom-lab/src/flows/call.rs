//! One request to `wireloom-workload`, and its answer.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{column::Protocol, mark::Mark};
use crate::{Result, Space};

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The name of the pod.
    pub(super) server: String,
    /// The client's address, as the server saw it.
    pub(super) client: IpAddr,
}

/// How long the answer to a datagram is waited for before the request is sent again.
const AGAIN: Duration = Duration::from_millis(300);

/// Makes the call of this index of a cell, and returns the answer; `None` when there is none within `patience`, or
/// when the network refuses.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) when the socket cannot be made.
pub(super) fn call(
    from: &Space,
    to: SocketAddr,
    mark: Mark,
    call: usize,
    patience: Duration,
) -> Result<Option<Answer>> {
    let kind = match mark.protocol() {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let local = match to.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let local = SocketAddr::new(local, mark.port(call));
    let socket = from.network_only().open(&format!("bind a socket to port {}", local.port()), || {
        let socket = Socket::new(Domain::for_address(to), kind, None)?;
        socket.bind(&local.into())?;
        Ok::<_, io::Error>(socket)
    })?;
    let mut request = vec![b'.'; mark.payload()];
    request[mark.payload() - 1] = b'\n';
    let deadline = Instant::now() + patience;
    let answer = match mark.protocol() {
        Protocol::Tcp => by_tcp(&socket, to, &request, deadline),
        // The kernel chooses the source of a datagram at another moment where a socket is not connected.
        Protocol::Udp if call.is_multiple_of(2) => by_connected_udp(&socket, to, &request, deadline),
        Protocol::Udp => by_udp(&socket.into(), to, &request, deadline),
    };
    // What the network refuses is an outcome, not an error.
    Ok(answer.ok().and_then(|line| parse(&line)))
}

fn by_tcp(mut socket: &Socket, to: SocketAddr, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    // Closing it resets the connection: nothing of it is sent again while others are measured.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), left(deadline))?;
    socket.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        socket.set_read_timeout(Some(left(deadline)))?;
        match socket.read(&mut buffer)? {
            0 => return Ok(answer),
            length => answer.extend(&buffer[..length]),
        }
    }
}

fn by_connected_udp(
    mut socket: &Socket,
    to: SocketAddr,
    request: &[u8],
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    socket.connect(&to.into())?;
    let mut buffer = [0; 2048];
    loop {
        socket.set_write_timeout(Some(AGAIN))?;
        socket.write_all(request)?;
        socket.set_read_timeout(Some(left(deadline).min(AGAIN)))?;
        match socket.read(&mut buffer) {
            Ok(length) => return Ok(buffer[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

fn by_udp(socket: &UdpSocket, to: SocketAddr, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 2048];
    loop {
        socket.set_write_timeout(Some(AGAIN))?;
        socket.send_to(request, to)?;
        socket.set_read_timeout(Some(left(deadline).min(AGAIN)))?;
        match socket.recv_from(&mut buffer) {
            // Whoever sends from such a socket looks at the source of the answer.
            Ok((length, from)) if from == to => return Ok(buffer[..length].to_vec()),
            Ok(_) if Instant::now() < deadline => {}
            Ok(_) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
    }
}

/// The time until the deadline, but at least a millisecond: to a socket, zero means no limit.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// The words of `NAME CLIENT-ADDRESS`.
fn parse(line: &[u8]) -> Option<Answer> {
    let mut words = str::from_utf8(line).ok()?.split_whitespace();
    Some(Answer { server: words.next()?.to_owned(), client: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_name_and_an_address() {
        let client = "fd00:10:161:1::2".parse().unwrap();
        assert_eq!(parse(b"pod-b fd00:10:161:1::2    \n"), Some(Answer { server: "pod-b".into(), client }));
        assert_eq!(parse(b"pod-b"), None);
        assert_eq!(parse(b"HTTP/1.1 400 Bad Request"), None);
    }
}
