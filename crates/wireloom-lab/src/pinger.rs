//! Pings that go on while something changes, and the count of those lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wireloom_plan::routing::Family;

use super::{Place, Result, at_this_pace, probe::Ping};

/// For the last replies, after the last request.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// Bytes after the ICMP header.
const PAYLOAD: usize = 56;

/// The first identifier of a pinger, above those of the probes, and how many there are.
const PINGERS: u16 = 1 << 15;

/// Pings that go on until [`Pinger::stop`].
#[derive(Debug)]
pub struct Pinger {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<Result<PingReport>>,
}

/// What became of a [`Pinger`]'s requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// Requests.
    pub sent: usize,
    /// Requests without a reply.
    pub lost: usize,
    /// The longest time in which no request was answered, to the precision of the interval.
    pub outage: Duration,
}

impl Pinger {
    /// Starts to ping, one request each `interval`, [at this pace](at_this_pace).
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn start(from: &Place, to: &Place, family: Family, interval: Duration) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let interval = at_this_pace(interval);
        let id = PINGERS + NEXT.fetch_add(1, Ordering::Relaxed) % PINGERS;
        let ping = Ping::open(&from.space, to.addresses.of(family), id)?;
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let count = Arc::new(AtomicUsize::new(0));
        let answers = Arc::clone(&count);
        let thread = thread::spawn(move || {
            let mut answered = BTreeSet::new();
            let mut sent = 0;
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                ping.send(sent, PAYLOAD)?;
                sent += 1;
                next += interval;
                while let Some(seq) = ping.reply(next)? {
                    answered.insert(seq);
                    answers.store(answered.len(), Ordering::Relaxed);
                }
            }
            let deadline = Instant::now() + at_this_pace(STRAGGLERS);
            while answered.len() < usize::from(sent)
                && let Some(seq) = ping.reply(deadline)?
            {
                answered.insert(seq);
            }
            let lost: Vec<bool> = (0..sent).map(|seq| !answered.contains(&seq)).collect();
            let longest = lost.split(|lost| !lost).map(<[bool]>::len).max().unwrap_or(0);
            Ok(PingReport {
                sent: sent.into(),
                lost: usize::from(sent) - answered.len(),
                outage: interval * u32::try_from(longest).expect("sequence numbers have 16 bits"),
            })
        });
        Ok(Self { over, answered: count, thread })
    }

    /// Requests that have been answered so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends the requests; replies to them are still waited for.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Ends the requests, waits for the last replies, and reports.
    ///
    /// # Errors
    /// When the socket failed on the way.
    pub fn stop(self) -> Result<PingReport> {
        self.end();
        self.thread.join().expect("the pinger does not panic")
    }
}
