//! One line in, one line out, and the connection is closed.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv6Addr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::answer;

/// How long a client may take for its line. One that says nothing is answered after this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest request, in bytes.
const LONGEST: u64 = 1 << 16;

/// Listens on a port of all addresses: a socket of `::` takes IPv4 as well (ipv6(7), `net.ipv6.bindv6only`).
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
}

/// Answers every connection, each in a thread of its own.
pub(super) fn serve(listener: &TcpListener, name: &str) {
    for connection in listener.incoming().flatten() {
        let name = name.to_owned();
        thread::spawn(move || converse(&connection, &name));
    }
}

/// Reads a line and answers it. A client that breaks the connection gets no answer.
fn converse(mut connection: &TcpStream, name: &str) -> io::Result<()> {
    let client = connection.peer_addr()?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    // A timeout is no reason to say nothing.
    let _ = BufReader::new(connection.take(LONGEST)).read_until(b'\n', &mut request);
    connection.write_all(answer(name, client.ip(), request.len()).as_bytes())
}
