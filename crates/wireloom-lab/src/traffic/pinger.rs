//! Pings that run while something changes, and how many of them were lost.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use wireloom_plan::kernel::Family;

use super::probe::Ping;
use crate::{Place, Result, at_this_pace};

/// How long to wait for late replies after the last request.
const LATE_REPLIES: Duration = Duration::from_secs(1);
/// The length of the payload, in bytes.
const PAYLOAD: usize = 56;

/// The first ICMP identifier of a pinger, and how many there are. Probes use the lower ones.
const PINGERS: u16 = 1 << 15;

/// Pings that are sent until [`Pinger::stop`], on a thread of their own.
#[derive(Debug)]
pub struct Pinger {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<Result<PingReport>>,
}

/// The outcome of a [`Pinger`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// How many requests were sent.
    pub sent: usize,
    /// How many requests got no reply.
    pub lost: usize,
    /// The longest run of requests without a reply, as a time: their number times the interval.
    pub outage: Duration,
}

impl Pinger {
    /// Starts to send one request every `interval` ([scaled](at_this_pace) to this machine).
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the kernel refuses the socket.
    pub fn start(from: &Place, to: &Place, family: Family, interval: Duration) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let interval = at_this_pace(interval);
        let id = PINGERS + NEXT.fetch_add(1, Ordering::Relaxed) % PINGERS;
        let ping = Ping::open(&from.space, to.addresses.of(family), id)?;
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let thread = thread::spawn({
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            move || run(&ping, interval, &over, &answered)
        });
        Ok(Self { over, answered, thread })
    }

    /// How many requests have been answered so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Sends no more requests; late replies still count.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Sends no more requests, waits up to a second for late replies, and reports.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the socket failed meanwhile.
    pub fn stop(self) -> Result<PingReport> {
        self.end();
        self.thread.join().expect("the pinger does not panic")
    }
}

/// Pings until it is `over`, and keeps the count of replies in `count`.
fn run(ping: &Ping, interval: Duration, over: &AtomicBool, count: &AtomicUsize) -> Result<PingReport> {
    let mut answered = BTreeSet::new();
    let mut sent: u16 = 0;
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        ping.send(sent, PAYLOAD)?;
        sent += 1;
        next += interval;
        while let Some(seq) = ping.reply(next)? {
            answered.insert(seq);
            count.store(answered.len(), Ordering::Relaxed);
        }
    }
    let deadline = Instant::now() + at_this_pace(LATE_REPLIES);
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
}
