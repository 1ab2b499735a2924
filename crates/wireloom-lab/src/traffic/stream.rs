//! A TCP stream that runs while something changes.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use wireloom_plan::routing::Family;

use crate::{Error, PATIENCE, Place, Result, Space, at_this_pace, until};

/// Bytes in one write, once every [`INTERVAL`] ([scaled](at_this_pace) to this machine): 1 MB/s, which leaves
/// other tests undisturbed.
const CHUNK: usize = 10_000;
const INTERVAL: Duration = Duration::from_millis(10);

/// Bytes that may be in flight. A machine too slow for the rate above slows the stream down, instead of losing its
/// packets to a queue that overflows.
const IN_FLIGHT: u64 = 50_000;

/// How long to wait for the receiver to report duplicates, which means that a retransmission was unnecessary. A process
/// on the way may be without a processor for seconds.
const LATE_REPORTS: Duration = Duration::from_secs(5);

/// A TCP stream of 1 MB/s, or as fast as the path carries it, that runs until [`Stream::stop`].
#[derive(Debug)]
pub struct Stream {
    over: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<(TcpStream, u64)>>,
    receiver: JoinHandle<Result<Received>>,
    from: Space,
    ports: (u16, u16),
}

#[derive(Debug)]
struct Received {
    bytes: u64,
    longest_silence: Duration,
    intact: bool,
}

/// The outcome of a [`Stream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamReport {
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
    /// Whether every byte arrived as it was sent.
    pub intact: bool,
    /// Segments lost on the way: those that TCP retransmitted, less those that the receiver reported as duplicates
    /// (RFC 2883).
    pub lost: u64,
    /// The longest time between two reads.
    pub longest_silence: Duration,
}

impl Stream {
    /// Connects and starts to send.
    ///
    /// # Errors
    /// [`Error::Io`] when no connection can be made within [`PATIENCE`].
    pub fn start(from: &Place, to: &Place, family: Family) -> Result<Self> {
        // No tail loss probes: they retransmit segments whose acknowledgement is merely late.
        from.space.set_sysctls(&[("net/ipv4/tcp_early_retrans", "0")])?;
        let target = to.addresses.of(family);
        let listener = to.space.open("listen", || TcpListener::bind((target, 0)))?;
        let target = listener.local_addr().map_err(Error::io("read the listening port"))?;
        let client = connect(&from.space, target)?;
        let patience = Some(at_this_pace(PATIENCE));
        // A listener's timeout is that of `accept` (socket(7), SO_RCVTIMEO). It may have to wait: the client counts as
        // connected when the server's SYN-ACK arrives, the server only when the client's ACK does.
        SockRef::from(&listener).set_read_timeout(patience).map_err(Error::io("set a timeout"))?;
        let (server, peer) = listener.accept().map_err(Error::io(format!("accept at {target}")))?;
        server.set_read_timeout(patience).map_err(Error::io("set a timeout"))?;
        client.set_write_timeout(patience).map_err(Error::io("set a timeout"))?;

        let over = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sender = thread::spawn({
            let (over, received) = (Arc::clone(&over), Arc::clone(&received));
            move || send(client, &over, &received)
        });
        let receiver = thread::spawn({
            let received = Arc::clone(&received);
            move || receive(server, &received)
        });
        let ports = (peer.port(), target.port());
        Ok(Self { over, received, sender, receiver, from: from.space.clone(), ports })
    }

    /// How many bytes have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the stream, waits until all of it has arrived, and reports.
    ///
    /// # Errors
    /// [`Error::Io`] when the connection broke; [`Error::Timeout`] when not everything arrives within [`PATIENCE`].
    pub fn stop(self) -> Result<StreamReport> {
        self.over.store(true, Ordering::Relaxed);
        let (client, sent) = self.sender.join().expect("the sender does not panic")?;
        let arrived = || (self.received.load(Ordering::Relaxed) == sent).then_some(());
        until(PATIENCE, "all of the stream to arrive", arrived)?;
        let mut lost = lost_segments(&self.from, self.ports)?;
        let deadline = Instant::now() + at_this_pace(LATE_REPORTS);
        while lost > 0 && Instant::now() < deadline {
            thread::sleep(INTERVAL);
            lost = lost_segments(&self.from, self.ports)?;
        }
        drop(client);
        let Received { bytes: received, longest_silence, intact } =
            self.receiver.join().expect("the receiver does not panic")?;
        Ok(StreamReport { sent, received, intact, lost, longest_silence })
    }
}

/// Writes at the stream's rate until it is `over`, never more than [`IN_FLIGHT`] bytes ahead of `received`. Returns
/// the open socket, because `ss` must still see it, and the number of bytes written.
fn send(mut client: TcpStream, over: &AtomicBool, received: &AtomicU64) -> Result<(TcpStream, u64)> {
    let mut sent = 0;
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        if sent - received.load(Ordering::Relaxed) >= IN_FLIGHT {
            thread::sleep(INTERVAL);
            continue;
        }
        let chunk: Vec<u8> = (sent..sent + CHUNK as u64).map(byte_at).collect();
        client.write_all(&chunk).map_err(Error::io("write to the stream"))?;
        sent += CHUNK as u64;
        next = Instant::now().max(next + at_this_pace(INTERVAL));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok((client, sent))
}

/// Reads until the stream is closed, and keeps count in `received`.
fn receive(mut server: TcpStream, received: &AtomicU64) -> Result<Received> {
    let mut so_far = Received { bytes: 0, longest_silence: Duration::ZERO, intact: true };
    let mut buffer = vec![0; 1 << 16];
    let mut last = Instant::now();
    loop {
        let length = match server.read(&mut buffer) {
            // The process was stopped and continued, or frozen and thawed (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            length => length.map_err(Error::io("read from the stream"))?,
        };
        if length == 0 {
            return Ok(so_far);
        }
        so_far.longest_silence = so_far.longest_silence.max(last.elapsed());
        last = Instant::now();
        so_far.intact &= buffer[..length].iter().zip(so_far.bytes..).all(|(byte, at)| *byte == byte_at(at));
        so_far.bytes += length as u64;
        received.store(so_far.bytes, Ordering::Relaxed);
    }
}

/// Reads [`StreamReport::lost`] from `ss`, which shows `retrans:NOW/TOTAL` and `dsack_dups:SEGMENTS` unless they are 0.
fn lost_segments(from: &Space, (source, target): (u16, u16)) -> Result<u64> {
    let line = format!("ss -Htino sport = :{source} and dport = :{target}");
    let shown = from.run(&line)?;
    let unexpected = || Error::Output { what: line.clone(), output: shown.clone() };
    if !shown.contains("segs_out:") {
        return Err(unexpected());
    }
    let count = |name: &str| match shown.split_whitespace().find_map(|word| word.strip_prefix(name)) {
        None => Ok(0),
        Some(value) => value.rsplit('/').next().unwrap_or(value).parse::<u64>().map_err(|_| unexpected()),
    };
    Ok(count("retrans:")?.saturating_sub(count("dsack_dups:")?))
}

fn connect(from: &Space, target: SocketAddr) -> Result<TcpStream> {
    let socket = from.open("open a TCP socket", || {
        Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))
    })?;
    let patience = at_this_pace(PATIENCE);
    socket.connect_timeout(&target.into(), patience).map_err(Error::io(format!("connect to {target}")))?;
    Ok(socket.into())
}

/// Byte `at` of every stream. The sequence has a prime period, so a missing piece of any usual length shows.
fn byte_at(at: u64) -> u8 {
    (at % 251) as u8
}
