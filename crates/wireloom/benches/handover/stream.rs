//! A TCP stream at full speed, and the longest time in which nothing of it arrived.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use wireloom_lab::{PATIENCE, Place};
use wireloom_plan::routing::Family;

/// Bytes of one write, and of one read at most.
const PIECE: usize = 1 << 17;

/// A stream that runs until [`FullStream::stop`].
pub(crate) struct FullStream {
    over: Arc<AtomicBool>,
    sender: JoinHandle<std::io::Result<()>>,
    receiver: JoinHandle<std::io::Result<Received>>,
    begun: Instant,
}

#[derive(Debug, Default, Clone, Copy)]
struct Received {
    bytes: u64,
    longest_gap: Duration,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamFigures {
    /// Whether the connection was reset, or stood still for longer than [`PATIENCE`].
    pub(crate) broken: bool,
    pub(crate) gigabits_a_second: f64,
    /// Between two reads, as the receiver's clock has it.
    pub(crate) longest_gap: Duration,
}

impl FullStream {
    pub(crate) fn start(from: &Place, to: &Place, family: Family) -> anyhow::Result<Self> {
        let listener = to.space.inside(|| TcpListener::bind((to.addresses.of(family), 0)))??;
        let target = listener.local_addr()?;
        let connect = |target: SocketAddr| TcpStream::connect_timeout(&target, PATIENCE);
        let mut client = from.space.inside(|| connect(target))?.context("cannot connect")?;
        let (mut server, _) = listener.accept()?;
        client.set_write_timeout(Some(PATIENCE))?;
        server.set_read_timeout(Some(PATIENCE))?;
        let over = Arc::new(AtomicBool::new(false));
        let sender = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let piece = vec![0x77; PIECE];
                while !over.load(Ordering::Relaxed) {
                    client.write_all(&piece)?;
                }
                Ok(())
            }
        });
        let receiver = thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            let mut so_far = Received::default();
            let mut last = Instant::now();
            loop {
                let length = server.read(&mut piece)?;
                if length == 0 {
                    return Ok(so_far);
                }
                let now = Instant::now();
                so_far.longest_gap = so_far.longest_gap.max(now - last);
                so_far.bytes += length as u64;
                last = now;
            }
        });
        Ok(Self { over, sender, receiver, begun: Instant::now() })
    }

    pub(crate) fn stop(self) -> StreamFigures {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        let received = self.receiver.join().expect("the receiver does not panic");
        let broken = sent.is_err() || received.is_err();
        let Received { bytes, longest_gap } = received.unwrap_or_default();
        let gigabits_a_second = bytes as f64 * 8e-9 / self.begun.elapsed().as_secs_f64();
        StreamFigures { broken, gigabits_a_second, longest_gap }
    }
}
