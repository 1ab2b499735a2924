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

use super::{PATIENCE, Place, Result, at_this_pace, probe::Ping};

/// Requests without an answer after which a pinger slows down, and how many times longer it then waits. While a
/// process on the way has no processor, what several pingers have sent then still fits into the shortest queue, a TUN
/// interface's 500 packets; what did not fit would be lost to the machine's load.
const ON_THE_WAY: u16 = 25;
const SLOWER: u32 = 20;

/// For the last replies, once a later request was answered.
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
    /// The longest time in which no request was answered.
    pub outage: Duration,
}

impl Pinger {
    /// Starts to ping, one request each `interval`, [at this pace](at_this_pace), or fewer while none is answered.
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
            let mut sent_at = Vec::new();
            // One more than the last request that was answered.
            let mut heard = 0;
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let sent = sequence_number(sent_at.len());
                sent_at.push(Instant::now());
                ping.send(sent, PAYLOAD)?;
                let is_slow = sent - heard >= ON_THE_WAY;
                next = Instant::now().max(next + if is_slow { SLOWER * interval } else { interval });
                while let Some(seq) = ping.reply(next)? {
                    answered.insert(seq);
                    answers.store(answered.len(), Ordering::Relaxed);
                    heard = heard.max(seq + 1);
                    if is_slow {
                        next = Instant::now();
                    }
                }
            }
            let ended = Instant::now();
            wait_for_stragglers(&ping, sequence_number(sent_at.len()), interval, &mut answered)?;
            let mut outage = Duration::ZERO;
            let mut lost_since = None;
            for (seq, at) in sent_at.iter().enumerate() {
                if !answered.contains(&sequence_number(seq)) {
                    lost_since.get_or_insert(*at);
                } else if let Some(since) = lost_since.take() {
                    outage = outage.max(*at - since);
                }
            }
            outage = outage.max(lost_since.map_or(Duration::ZERO, |since| ended - since));
            Ok(PingReport { sent: sent_at.len(), lost: sent_at.len() - answered.len(), outage })
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

/// Waits for the replies to the first `sent` requests that are still on the way.
///
/// A reply may be late without being lost: a process on its way may not have had a processor for seconds. So more
/// requests follow, which do not count, until one is answered: packets stay in order, so what was sent before has
/// arrived by then, or soon does, or is lost.
fn wait_for_stragglers(
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
        let look = (Instant::now() + SLOWER * interval).min(deadline);
        while let Some(seq) = ping.reply(look)? {
            if seq < sent {
                answered.insert(seq);
            } else if !later_one_was_answered {
                later_one_was_answered = true;
                deadline = Instant::now() + at_this_pace(STRAGGLERS);
            }
            if answered.len() == usize::from(sent) {
                break;
            }
        }
    }
    Ok(())
}

fn sequence_number(requests: usize) -> u16 {
    u16::try_from(requests).expect("a pinger runs for less than 65,536 requests")
}
