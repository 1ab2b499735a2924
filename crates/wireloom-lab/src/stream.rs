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

use super::{Error, PATIENCE, Place, Result, Space, at_this_pace, until};

/// Bytes, one write each [`INTERVAL`], [at this pace](at_this_pace): 1 MB/s, so that tests beside it are
/// not disturbed.
const CHUNK: usize = 10_000;
const INTERVAL: Duration = Duration::from_millis(10);

/// Bytes that may be on the way: on a machine that does not carry the pace the stream slows down, before
/// its backlog overflows some queue and is lost to that.
const ON_THE_WAY: u64 = 50_000;

/// For the receiver to say that what was sent again had arrived already.
const LATE_NEWS: Duration = Duration::from_millis(500);

/// A TCP stream at a steady pace, or as fast as it is carried, until [`Stream::stop`].
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

/// What became of a [`Stream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamReport {
    /// Bytes written.
    pub sent: u64,
    /// Bytes read, all of them as written when `intact`.
    pub received: u64,
    /// No byte differed.
    pub intact: bool,
    /// Segments that TCP had to send again, less those that had arrived already, as the receiver then
    /// says (RFC 2883): what is left was lost on the way.
    pub lost: u64,
    /// Between two reads.
    pub longest_silence: Duration,
}

impl Stream {
    /// Connects and starts to send.
    ///
    /// # Errors
    /// When no connection comes about.
    pub fn start(from: &Place, to: &Place, family: Family) -> Result<Self> {
        // A tail loss probe sends again what is merely late to be acknowledged: that is no loss.
        from.space.set_sysctls(&[("net/ipv4/tcp_early_retrans", "0")])?;
        let target = to.addresses.of(family);
        let listener = to.space.open("listen", || TcpListener::bind((target, 0)))?;
        let target = listener.local_addr().map_err(Error::io("see the port that is listened on"))?;
        let mut client = connect(&from.space, target)?;
        let patience = Some(at_this_pace(PATIENCE));
        // The client is connected when the server's answer arrives; that its own next segment arrives is
        // not said. The timeout of a listener is that of `accept` (socket(7), SO_RCVTIMEO).
        SockRef::from(&listener).set_read_timeout(patience).map_err(Error::io("set a timeout"))?;
        let (mut server, peer) = listener.accept().map_err(Error::io(format!("accept at {target}")))?;
        server.set_read_timeout(patience).map_err(Error::io("set a timeout"))?;
        client.set_write_timeout(patience).map_err(Error::io("set a timeout"))?;

        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let received = Arc::new(AtomicU64::new(0));
        let arrived = Arc::clone(&received);
        let sender = thread::spawn(move || {
            let mut sent = 0;
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                if sent - arrived.load(Ordering::Relaxed) >= ON_THE_WAY {
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
        });
        let count = Arc::clone(&received);
        let receiver = thread::spawn(move || {
            let mut so_far = Received { bytes: 0, longest_silence: Duration::ZERO, intact: true };
            let mut buffer = vec![0; 1 << 16];
            let mut last = Instant::now();
            loop {
                let length = match server.read(&mut buffer) {
                    // Stopped and continued, or frozen and thawed (signal(7)).
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    length => length.map_err(Error::io("read from the stream"))?,
                };
                if length == 0 {
                    return Ok(so_far);
                }
                so_far.longest_silence = so_far.longest_silence.max(last.elapsed());
                last = Instant::now();
                so_far.intact &=
                    buffer[..length].iter().zip(so_far.bytes..).all(|(byte, at)| *byte == byte_at(at));
                so_far.bytes += length as u64;
                count.store(so_far.bytes, Ordering::Relaxed);
            }
        });
        let ports = (peer.port(), target.port());
        Ok(Self { over, received, sender, receiver, from: from.space.clone(), ports })
    }

    /// Bytes that have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends the stream, waits until all of it has arrived, and reports.
    ///
    /// # Errors
    /// When the connection broke on the way, or does not deliver.
    pub fn stop(self) -> Result<StreamReport> {
        self.over.store(true, Ordering::Relaxed);
        let (client, sent) = self.sender.join().expect("the sender does not panic")?;
        let arrived = || (self.received.load(Ordering::Relaxed) == sent).then_some(());
        until(PATIENCE, "all of the stream to arrive", arrived)?;
        let mut lost = lost_segments(&self.from, self.ports)?;
        let deadline = Instant::now() + at_this_pace(LATE_NEWS);
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

/// `ss` shows `retrans:NOW/TOTAL` and `dsack_dups:SEGMENTS`, each when it is not 0.
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

/// Byte `at` of every stream: a sequence whose period is prime, so that whatever is missing shows.
fn byte_at(at: u64) -> u8 {
    (at % 251) as u8
}
