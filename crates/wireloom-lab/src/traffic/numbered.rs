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

use crate::{Error, Place, Result, at_this_pace};

/// How often the sender looks at the clock and sends what is due, as a burst.
const TICK: Duration = Duration::from_micros(200);
/// The longest burst. A sender that falls further behind leaves out what it cannot send in time: a machine that is busy
/// must not fill a queue at once.
const BURST: u64 = 100;
/// When all have come and nothing more for this long, nothing comes twice.
const SILENCE: Duration = Duration::from_millis(500);
/// When some are missing and nothing has come for this long, they are lost: a process on the way may be without a
/// processor for seconds.
const LATE: Duration = Duration::from_secs(5);
/// In place of how many were sent, while more are.
const SENDING: u64 = u64::MAX;
/// Bytes of the receiver's buffer: the tunnel is measured, not how fast the receiver wakes up.
const BUFFER: usize = 8 << 20;

/// Datagrams that are sent until [`Numbered::stop`].
#[derive(Debug)]
pub struct Numbered {
    over: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
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
        let sent = Arc::new(AtomicU64::new(SENDING));
        let received = Arc::new(AtomicU64::new(0));
        let sender = thread::spawn({
            let over = Arc::clone(&over);
            move || send(&sender, &vec![0; length], rate, &over)
        });
        let receiver = thread::spawn({
            let (sent, received) = (Arc::clone(&sent), Arc::clone(&received));
            move || receive(&receiver, &sent, &received)
        });
        Ok(Self { over, sent, received, sender, receiver })
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
        self.sent.store(sent, Ordering::Relaxed);
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

/// Receives until all that were `sent` are there, or those that are missing count as lost.
fn receive(socket: &UdpSocket, sent: &AtomicU64, count: &AtomicU64) -> IoResult<Received> {
    let mut so_far = Received::default();
    let mut number = [0; 8];
    let mut last: Option<Instant> = None;
    let mut deadline: Option<Instant> = None;
    loop {
        match socket.recv(&mut number) {
            Ok(_) => {
                let now = Instant::now();
                let silence = last.replace(now).map_or(Duration::ZERO, |last| now - last);
                so_far.longest_silence = so_far.longest_silence.max(silence);
                so_far.add(u64::from_le_bytes(number));
                count.store(so_far.count, Ordering::Relaxed);
                deadline = None;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => match sent.load(Ordering::Relaxed) {
                SENDING => {}
                sent if sent == so_far.count => return Ok(so_far),
                _ => {
                    let now = Instant::now();
                    if now >= *deadline.get_or_insert(now + at_this_pace(LATE)) {
                        return Ok(so_far);
                    }
                }
            },
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

    #[test]
    fn what_is_away_for_a_while_after_the_last_one_was_sent_is_not_lost() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(SILENCE)).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let late = thread::spawn(move || {
            for number in 0..2_u64 {
                sender.send(&number.to_le_bytes()).unwrap();
                thread::sleep(3 * SILENCE);
            }
        });
        let received = receive(&receiver, &AtomicU64::new(2), &AtomicU64::new(0)).unwrap();
        assert_eq!(received.count, 2);
        late.join().unwrap();
    }
}
