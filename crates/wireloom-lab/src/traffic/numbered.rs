//! Numbered datagrams at a steady rate, and which of them arrived, in which order.

use std::{
    io::{ErrorKind, Result as IoResult},
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use wireloom_plan::routing::Family;

use crate::{Error, Place, Result};

/// How often the sender looks at the clock and sends what is due, as a burst.
const TICK: Duration = Duration::from_micros(200);
/// The longest burst. A sender that falls further behind leaves out what it cannot send in time: a machine that is busy
/// must not fill a queue at once.
const BURST: u64 = 100;
/// When nothing has come for this long, nothing more will.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes of the receiver's buffer: the tunnel is measured, not how fast the receiver wakes up.
const BUFFER: usize = 8 << 20;

/// Datagrams that are sent until [`Numbered::stop`].
#[derive(Debug)]
pub struct Numbered {
    over: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<IoResult<Received>>,
}

/// The outcome of [`Numbered`] datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NumberedReport {
    /// How many were sent.
    pub sent: u64,
    /// How many never arrived.
    pub lost: u64,
    /// How many arrived once more.
    pub twice: u64,
    /// How many arrived after a later one.
    pub backwards: u64,
    /// The longest time between two that arrived.
    pub longest_silence: Duration,
}

/// What the receiver knows: bit `n` of word `k` is set when datagram `64 k + n` has arrived.
#[derive(Debug, Default)]
struct Received {
    words: Vec<u64>,
    count: u64,
    twice: u64,
    backwards: u64,
    next: u64,
    longest_silence: Duration,
}

impl Numbered {
    /// Starts to send `rate` datagrams of `length` bytes (at least 8) a second.
    ///
    /// # Errors
    /// [`Error::Io`] when a socket cannot be made.
    ///
    /// # Panics
    /// When `length` is too short for the number.
    pub fn start(from: &Place, to: &Place, family: Family, rate: u32, length: usize) -> Result<Self> {
        assert!(length >= 8, "{length} bytes do not hold a number");
        let target = to.addresses.of(family);
        let receiver = to.space.open("bind a UDP socket", || {
            let socket = UdpSocket::bind((target, 0))?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)
                .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
            socket.set_read_timeout(Some(SILENCE))?;
            Ok::<_, std::io::Error>(socket)
        })?;
        let target = receiver.local_addr().map_err(Error::io("read a socket's address"))?;
        let sender = from.space.open("bind a UDP socket", || {
            let socket = UdpSocket::bind((from.addresses.of(family), 0))?;
            socket.connect(target)?;
            // A tunnel that has stopped takes no more datagrams.
            socket.set_write_timeout(Some(SILENCE))?;
            Ok::<_, std::io::Error>(socket)
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let sender = thread::spawn({
            let over = Arc::clone(&over);
            move || send(&sender, &vec![0; length], rate, &over)
        });
        let receiver = thread::spawn({
            let (over, received) = (Arc::clone(&over), Arc::clone(&received));
            move || receive(&receiver, &over, &received)
        });
        Ok(Self { over, received, sender, receiver })
    }

    /// How many have arrived so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends no more, waits for those that are on the way, and reports.
    ///
    /// # Errors
    /// [`Error::Io`] when the receiver's socket failed.
    pub fn stop(self) -> Result<NumberedReport> {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        let received = self.receiver.join().expect("the receiver does not panic");
        let Received { count, twice, backwards, longest_silence, .. } =
            received.map_err(Error::io("receive numbered datagrams"))?;
        Ok(NumberedReport { sent, lost: sent.saturating_sub(count), twice, backwards, longest_silence })
    }
}

/// Sends until it is `over`. Returns how many there were: what the kernel refuses counts as lost.
fn send(socket: &UdpSocket, zeros: &[u8], rate: u32, over: &AtomicBool) -> u64 {
    let mut datagram = zeros.to_vec();
    let mut sent = 0_u64;
    let mut last = Instant::now();
    let mut due = 0.0;
    while !over.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let now = Instant::now();
        due = f64::min(due + (now - last).as_secs_f64() * f64::from(rate), BURST as f64);
        last = now;
        while due >= 1.0 {
            datagram[..8].copy_from_slice(&sent.to_le_bytes());
            let _ = socket.send(&datagram);
            sent += 1;
            due -= 1.0;
        }
    }
    sent
}

fn receive(socket: &UdpSocket, over: &AtomicBool, count: &AtomicU64) -> IoResult<Received> {
    let mut so_far = Received::default();
    let mut number = [0; 8];
    let mut last: Option<Instant> = None;
    loop {
        match socket.recv(&mut number) {
            Ok(_) => {
                let now = Instant::now();
                let silence = last.replace(now).map_or(Duration::ZERO, |last| now - last);
                so_far.longest_silence = so_far.longest_silence.max(silence);
                so_far.add(u64::from_le_bytes(number));
                count.store(so_far.count, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if over.load(Ordering::Relaxed) {
                    return Ok(so_far);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Received {
    fn add(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if self.words[word] & bit != 0 {
            self.twice += 1;
            return;
        }
        self.words[word] |= bit;
        self.count += 1;
        self.backwards += u64::from(number < self.next);
        self.next = self.next.max(number + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_twice_or_late_is_told_apart_from_what_is_lost() {
        let mut received = Received::default();
        [0, 1, 3, 2, 3, 200].into_iter().for_each(|number| received.add(number));
        let Received { count, twice, backwards, next, .. } = received;
        assert_eq!((count, twice, backwards, next), (5, 1, 1, 201));
    }
}
