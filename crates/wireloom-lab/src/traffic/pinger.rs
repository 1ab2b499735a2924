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

use wireloom_plan::routing::Family;

use super::probe::Ping;
use crate::{PATIENCE, Place, Result, at_this_pace};

/// How many requests without a reply make a pinger slow down, and how many times longer its interval is then. While a
/// process on the way has no processor, the packets of several pingers then fit into the shortest queue, a TUN
/// interface's 500 packets; those that do not fit would be lost to the machine's load.
const UNANSWERED: u16 = 25;
const SLOWER: u32 = 20;

/// How long to wait for late replies once a later request was answered.
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
    /// The longest time in which no request was answered.
    pub outage: Duration,
    /// The longest round trip.
    pub slowest: Duration,
}

impl Pinger {
    /// Starts to send one request every `interval` ([scaled](at_this_pace) to this machine), or fewer while none is
    /// answered.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the kernel refuses the socket.
    pub fn start(from: &Place, to: &Place, family: Family, interval: Duration) -> Result<Self> {
        Self::begin(from, to, family, interval, true)
    }

    /// As [`Pinger::start`], but at the same pace while none is answered: for paths on which packets are refused, so
    /// that each of them counts, and none waits in a queue.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the kernel refuses the socket.
    pub fn steady(from: &Place, to: &Place, family: Family, interval: Duration) -> Result<Self> {
        Self::begin(from, to, family, interval, false)
    }

    fn begin(from: &Place, to: &Place, family: Family, interval: Duration, slows: bool) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let interval = at_this_pace(interval);
        let id = PINGERS + NEXT.fetch_add(1, Ordering::Relaxed) % PINGERS;
        let ping = Ping::open(&from.space, to.addresses.of(family), id)?;
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let thread = thread::spawn({
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            move || run(&ping, interval, slows, &over, &answered)
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

    /// Sends no more requests, waits for late replies, and reports.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) when the socket failed meanwhile.
    pub fn stop(self) -> Result<PingReport> {
        self.end();
        self.thread.join().expect("the pinger does not panic")
    }
}

/// Pings until it is `over`, and keeps the count of replies in `count`.
/// It `slows` down while no request is answered, or keeps its pace.
fn run(
    ping: &Ping,
    interval: Duration,
    slows: bool,
    over: &AtomicBool,
    count: &AtomicUsize,
) -> Result<PingReport> {
    let mut answered = BTreeSet::new();
    let mut sent_at = Vec::new();
    let mut slowest = Duration::ZERO;
    // One more than the last request that was answered.
    let mut heard = 0;
    let mut next = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let sent = sequence_number(sent_at.len());
        sent_at.push(Instant::now());
        ping.send(sent, PAYLOAD)?;
        let is_slow = slows && sent - heard >= UNANSWERED;
        next = Instant::now().max(next + if is_slow { SLOWER * interval } else { interval });
        while let Some(seq) = ping.reply(next)? {
            answered.insert(seq);
            slowest = slowest.max(sent_at.get(usize::from(seq)).map_or(Duration::ZERO, Instant::elapsed));
            count.store(answered.len(), Ordering::Relaxed);
            heard = heard.max(seq + 1);
            if is_slow {
                next = Instant::now();
            }
        }
    }
    let ended = Instant::now();
    let on_time = answered.len();
    wait_for_late_replies(ping, sequence_number(sent_at.len()), interval, &mut answered)?;
    if answered.len() > on_time {
        slowest = slowest.max(ended.elapsed());
    }
    let outage = longest_outage(&sent_at, &answered, ended);
    Ok(PingReport { sent: sent_at.len(), lost: sent_at.len() - answered.len(), outage, slowest })
}

/// Waits for replies to the first `sent` requests that are still on the way.
///
/// A late reply is not lost: a process on its way may have been without a processor for seconds. So further requests,
/// which do not count, are sent until one of them is answered. Packets stay in order, so whatever was sent before has
/// arrived by then, arrives soon, or is lost.
fn wait_for_late_replies(
    ping: &Ping,
    sent: u16,
    interval: Duration,
    answered: &mut BTreeSet<u16>,
) -> Result<()> {
    let mut deadline = Instant::now() + at_this_pace(PATIENCE);
    let mut later = sent;
    let mut later_one_was_answered = false;
    while answered.len() < usize::from(sent) && Instant::now() < deadline {
        if !later_one_was_answered {
            ping.send(later, PAYLOAD)?;
            later = later.saturating_add(1);
        }
        let next = (Instant::now() + SLOWER * interval).min(deadline);
        while let Some(seq) = ping.reply(next)? {
            if seq < sent {
                answered.insert(seq);
            } else if !later_one_was_answered {
                later_one_was_answered = true;
                deadline = Instant::now() + at_this_pace(LATE_REPLIES);
            }
            if answered.len() == usize::from(sent) {
                break;
            }
        }
    }
    Ok(())
}

/// The longest time from a request without a reply to the next one with a reply, or to the end.
fn longest_outage(sent_at: &[Instant], answered: &BTreeSet<u16>, ended: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    let mut lost_since = None;
    for (seq, at) in sent_at.iter().enumerate() {
        if !answered.contains(&sequence_number(seq)) {
            lost_since.get_or_insert(*at);
        } else if let Some(since) = lost_since.take() {
            longest = longest.max(*at - since);
        }
    }
    longest.max(lost_since.map_or(Duration::ZERO, |since| ended - since))
}

fn sequence_number(requests: usize) -> u16 {
    u16::try_from(requests).expect("a pinger sends fewer than 65,536 requests")
}
