//! Finds how long packets may be on a path that does not report it, as RFC 8899 describes it (there: *black hole*,
//! *probe packet*, *search*). The probe packets are echo requests through the tunnel.
//!
//! ```text
//!  due ─▶ control and full ─┬─ full answered ──────────▶ passed ──10 min──▶ due
//!                           ├─ neither ────────────────▶ unanswered ──1 s, 2 s, … 10 min──▶ due
//!                           └─ control only ─▶ usual lengths ─▶ lengths in between ─▶ narrowed ──10 min──▶ due
//! ```
//!
//! All lengths of a step are sent at once: those that are too long do no harm, and a step takes no longer than one
//! round trip more than the wait for them.
//!
//! Times are those of any clock that is never set back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use wireloom_types::PublicKey;

use super::{PADDING, Target, overhead};
use crate::routing::Family;

/// How often a length is tried before it counts as too long (`MAX_PROBES` of RFC 8899, section 5.1.2).
const TRIES: u8 = 3;

/// The time between two tries.
const BETWEEN: Duration = Duration::from_millis(200);

/// The time after the last one (`PROBE_TIMER` of RFC 8899, section 5.1.1, at least a second after the first), unless
/// the path is known to be quicker than [`BETWEEN`].
const LAST_WAIT: Duration = Duration::from_millis(600);

/// How long a result holds (`PMTU_RAISE_TIMER` of RFC 8899, section 5.1.1).
const RAISE: Duration = Duration::from_secs(600);

/// What is added to that, up to this much, so that a fleet does not stay in step.
const SPREAD: Duration = Duration::from_secs(60);

/// How long after an unanswered control the next one is sent. It doubles, up to [`RAISE`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How many peers' probing begins in a second, at most.
const RATE: usize = 50;

const SECOND: Duration = Duration::from_secs(1);

/// The length of the control, bytes: every path carries it.
const CONTROL: u32 = 128;

/// The MTUs that underlays usually have, bytes: Ethernet, PPPoE, tunnels of all kinds, and what their operators
/// configure to be safe (section 7.1 of RFC 1191 has the idea).
const USUAL: [u32; 17] =
    [1500, 1492, 1480, 1472, 1460, 1450, 1440, 1430, 1420, 1400, 1380, 1368, 1340, 1300, 1280, 1006, 576];

/// An echo request to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// The source address.
    pub from: IpAddr,
    /// The destination address.
    pub to: IpAddr,
    /// The whole packet with its headers, bytes.
    pub length: u32,
}

/// What probing says about a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// It has not been probed: there is no session, or one end has no address inside of the tunnel.
    #[default]
    None,
    /// The peer answers no echo requests.
    Unanswered,
    /// It carries what it should.
    Passed,
    /// It does not, and no router says so.
    Narrowed,
}

/// Probes the paths to all peers.
#[derive(Debug, Clone, Default)]
pub struct Prober {
    seed: u64,
    peers: BTreeMap<PublicKey, Peer>,
    /// What an earlier prober found about peers that have not been there since.
    remembered: BTreeMap<PublicKey, u32>,
    /// The second that the rate is about, and how many began in it.
    second: Duration,
    begun: usize,
    /// How often something was found.
    found: u64,
}

#[derive(Debug, Clone)]
struct Peer {
    target: Target,
    /// Whether it can be probed now.
    present: bool,
    /// When to probe next.
    due: Duration,
    retry: Duration,
    check: Check,
    /// The longest packet that is not lost, if longer ones are.
    narrow: Option<u32>,
    probing: Option<Probing>,
}

/// A step that is under way.
#[derive(Debug, Clone)]
struct Probing {
    step: Step,
    lengths: BTreeSet<u32>,
    answered: BTreeSet<u32>,
    tries: u8,
    /// Whether an answer came before the second try.
    quick: bool,
    /// When the next try is due, or the last wait is over.
    next: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Full,
    Usual,
    Between,
}

impl Prober {
    /// Starts from what an earlier prober [found](Self::narrow). Probers with different seeds begin in different
    /// orders.
    pub fn new(seed: u64, remembered: BTreeMap<PublicKey, u32>) -> Self {
        Self { seed, remembered, ..Self::default() }
    }

    /// Takes the peers that can be probed now, and lets time pass. Returns what to send. A peer that was absent is
    /// probed soon; so is one whose endpoint or whose longest packet is another one now.
    pub fn turn(&mut self, targets: &BTreeMap<PublicKey, Target>, now: Duration) -> Vec<Echo> {
        self.take(targets, now);
        self.begin(now);
        let mut echoes = Vec::new();
        for (key, peer) in &mut self.peers {
            self.found += peer.go_on(now, scatter(self.seed, *key), &mut echoes);
        }
        echoes
    }

    /// Takes a reply of this whole length in bytes.
    pub fn note_reply(&mut self, from: IpAddr, length: u32) {
        let sent_there = self.peers.values_mut().filter(|peer| peer.target.to == from);
        for probing in sent_there.filter_map(|peer| peer.probing.as_mut()) {
            if probing.lengths.contains(&length) {
                probing.answered.insert(length);
            }
        }
    }

    /// How long until something is to be sent or decided; `None` while there is nobody to probe.
    pub fn due(&self, now: Duration) -> Option<Duration> {
        let next = |peer: &Peer| match &peer.probing {
            Some(probing) => probing.next,
            None if self.begun < RATE => peer.due,
            None => peer.due.max(self.second + SECOND),
        };
        let present = self.peers.values().filter(|peer| peer.present);
        present.map(next).min().map(|next| next.saturating_sub(now))
    }

    /// The longest packets that are not lost on their way to peers, where longer ones are. Bytes.
    pub fn narrow(&self) -> BTreeMap<PublicKey, u32> {
        let found = self.peers.iter().filter_map(|(key, peer)| Some((*key, peer.narrow?)));
        self.remembered.iter().map(|(key, narrow)| (*key, *narrow)).chain(found).collect()
    }

    /// How often probing has said something about a path.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// What probing says about the path to a peer.
    pub fn check(&self, key: PublicKey) -> Check {
        self.peers.get(&key).map_or(Check::None, |peer| peer.check)
    }

    fn take(&mut self, targets: &BTreeMap<PublicKey, Target>, now: Duration) {
        for (key, peer) in &mut self.peers {
            // What was found stays until the peer is back, as long as it is where it was.
            peer.present = targets.contains_key(key);
            if !peer.present {
                peer.probing = None;
                peer.due = now;
                peer.retry = FIRST_RETRY;
            }
        }
        for (key, target) in targets {
            match self.peers.get_mut(key) {
                Some(peer) if peer.target == *target => {}
                Some(peer) => {
                    let moved = peer.target.endpoint != target.endpoint;
                    peer.narrow = peer.narrow.filter(|narrow| !moved && *narrow < target.full);
                    peer.target = *target;
                    peer.probing = None;
                    peer.due = now;
                }
                None => {
                    let narrow = self.remembered.remove(key).filter(|narrow| *narrow < target.full);
                    self.peers.insert(*key, Peer::new(*target, narrow, now));
                }
            }
        }
        self.peers.retain(|_, peer| peer.present || peer.narrow.is_some());
    }

    fn begin(&mut self, now: Duration) {
        if now >= self.second + SECOND {
            (self.second, self.begun) = (now, 0);
        }
        let seed = self.seed;
        let is_due = |peer: &Peer| peer.present && peer.probing.is_none() && peer.due <= now;
        let mut due: Vec<_> = self.peers.iter_mut().filter(|(_, peer)| is_due(peer)).collect();
        due.sort_by_key(|(key, peer)| (peer.due, scatter(seed, **key)));
        due.truncate(RATE - self.begun);
        self.begun += due.len();
        for (_, peer) in due {
            peer.probing = Some(Probing::new(Step::Full, [CONTROL, peer.target.full].into(), false, now));
        }
    }
}

impl Peer {
    fn new(target: Target, narrow: Option<u32>, now: Duration) -> Self {
        Self {
            target,
            present: true,
            due: now,
            retry: FIRST_RETRY,
            check: Check::None,
            narrow,
            probing: None,
        }
    }

    /// Sends what is due, or goes to the next step. Returns how many results there were.
    fn go_on(&mut self, now: Duration, scattered: Duration, echoes: &mut Vec<Echo>) -> u64 {
        let mut found = 0;
        while let Some(probing) = &mut self.probing {
            if !probing.is_over(now) {
                probing.send(&self.target, now, echoes);
                break;
            }
            let target = self.target;
            let longest = probing.answered.last().copied();
            let next = match (probing.step, longest) {
                (Step::Full, Some(longest)) if longest == target.full => {
                    self.end(Check::Passed, None, now + RAISE + scattered);
                    found += 1;
                    continue;
                }
                (Step::Full, None) => {
                    // What was found before may still be so.
                    let (narrow, retry) = (self.narrow, self.retry);
                    self.end(Check::Unanswered, narrow, now + retry);
                    self.retry = (retry * 2).min(RAISE);
                    found += 1;
                    continue;
                }
                (Step::Full, Some(_)) => Probing::new(Step::Usual, usual(&target), probing.quick, now),
                (Step::Usual, longest) => {
                    let longest = longest.unwrap_or(CONTROL);
                    let too_long = probing.lengths.range(longest + 1..).next().copied();
                    let between = (longest + 1..too_long.unwrap_or(target.full))
                        .filter(|length| length.is_multiple_of(PADDING));
                    let mut next = Probing::new(Step::Between, between.collect(), probing.quick, now);
                    // Answered before.
                    next.answered.insert(longest);
                    next
                }
                (Step::Between, longest) => {
                    self.end(Check::Narrowed, longest, now + RAISE + scattered);
                    found += 1;
                    continue;
                }
            };
            self.probing = Some(next);
        }
        found
    }

    fn end(&mut self, check: Check, narrow: Option<u32>, due: Duration) {
        self.check = check;
        self.narrow = narrow;
        self.due = due;
        self.retry = FIRST_RETRY;
        self.probing = None;
    }
}

impl Probing {
    fn new(step: Step, lengths: BTreeSet<u32>, quick: bool, now: Duration) -> Self {
        Self { step, lengths, answered: BTreeSet::new(), tries: 0, quick, next: now }
    }

    /// Whether nothing more is to be learnt, or the last wait is over.
    fn is_over(&self, now: Duration) -> bool {
        self.answered.last() >= self.lengths.last() || (self.tries == TRIES && now >= self.next)
    }

    fn send(&mut self, target: &Target, now: Duration, echoes: &mut Vec<Echo>) {
        if now < self.next || self.tries == TRIES {
            return;
        }
        // The answer that `Between` begins with is none to its own lengths.
        self.quick |= self.tries == 1 && !self.answered.is_disjoint(&self.lengths);
        self.tries += 1;
        self.next = now + if self.tries == TRIES && !self.quick { LAST_WAIT } else { BETWEEN };
        let Target { from, to, .. } = *target;
        let unanswered = self.lengths.difference(&self.answered);
        echoes.extend(unanswered.map(|length| Echo { from, to, length: *length }));
    }
}

/// The lengths below the full one that fill paths of usual MTUs.
fn usual(target: &Target) -> BTreeSet<u32> {
    let inner = |mtu: &u32| (mtu - overhead(Family::of(target.endpoint))) / PADDING * PADDING;
    USUAL.iter().map(inner).filter(|length| *length < target.full).collect()
}

/// A time up to [`SPREAD`] that looks random.
fn scatter(seed: u64, key: PublicKey) -> Duration {
    let mixed = key.as_bytes().iter().fold(seed, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31)
    });
    SPREAD.mul_f64(mixed as f64 / u64::MAX as f64)
}
