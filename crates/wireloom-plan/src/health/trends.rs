//! What only watching over time shows: who does not answer, and what is being dropped.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use wireloom_types::{
    PublicKey,
    limits::{KEEPALIVE_TIMEOUT, REKEY_TIMEOUT},
};

use super::PeerFacts;

/// How long a peer may take to answer: it sends a keepalive after [`KEEPALIVE_TIMEOUT`] if it has nothing else to send,
/// and then a new handshake begins after [`REKEY_TIMEOUT`] (WireGuard paper, section 6.5).
const PATIENCE: Duration = KEEPALIVE_TIMEOUT.saturating_add(REKEY_TIMEOUT);

/// How long what happened counts as recent.
const RECENT: Duration = Duration::from_secs(60);

/// Bytes of a keepalive, which is not answered: header and tag of an empty data message.
const KEEPALIVE: u64 = 32;

/// What the device shows at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// All of its peers.
    pub peers: &'a BTreeMap<PublicKey, PeerFacts>,
    /// Packets that it dropped since its start, by the reason's name; `None` when it does not count them.
    pub drops: Option<&'a BTreeMap<String, u64>>,
}

/// What an agent has seen of its device. Times are since 1970 on a clock that nobody sets while the agent runs.
///
/// What is written to the run file is small: only who does not answer, and what was dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trends {
    /// The peers to which something was sent and from which nothing came since, and when that was first seen.
    pub unanswered: BTreeMap<PublicKey, Duration>,
    /// By the reason's name; reasons for which nothing was dropped are left out.
    pub drops: BTreeMap<String, DropTrend>,
    /// What the last sample showed.
    #[serde(skip)]
    last: Last,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Last {
    at: Option<Duration>,
    peers: BTreeMap<PublicKey, (u64, u64)>,
    drops: BTreeMap<String, u64>,
}

/// How a counter of dropped packets grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropTrend {
    /// Since the device started.
    pub total: u64,
    /// Of these, in about the last minute.
    pub last_minute: u64,
    /// When it was last seen to grow.
    pub grown_at: Option<Duration>,
}

impl Trends {
    /// Takes what the device shows now. Call it about every two seconds.
    pub fn sample(&mut self, now: Duration, device: &Sample<'_>) {
        let elapsed = self.last.at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        self.unanswered.retain(|key, _| device.peers.contains_key(key));
        for (key, peer) in device.peers {
            let Some((received, sent)) = self.last.peers.get(key).copied() else { continue };
            if peer.received != received {
                self.unanswered.remove(key);
            } else if peer.sent.saturating_sub(sent) > keepalives(peer, elapsed) {
                self.unanswered.entry(*key).or_insert(now);
            }
        }
        self.last.peers = device.peers.iter().map(|(key, peer)| (*key, (peer.received, peer.sent))).collect();
        self.last.at = Some(now);
        for (reason, total) in device.drops.into_iter().flatten().filter(|(_, total)| **total > 0) {
            let trend = self.drops.entry(reason.clone()).or_default();
            let before = self.last.drops.insert(reason.clone(), *total);
            if before.is_some_and(|before| before < *total) {
                trend.grown_at = Some(now);
                trend.last_minute += total - before.unwrap_or_default();
            } else if trend.grown_at.is_none_or(|at| now.saturating_sub(at) > RECENT) {
                trend.last_minute = 0;
            }
            trend.total = *total;
        }
    }

    /// Since when a peer has been silent, if it has been for longer than an answer may take.
    pub fn silent_since(&self, key: PublicKey, now: Duration) -> Option<Duration> {
        self.unanswered.get(&key).copied().filter(|since| now.saturating_sub(*since) > PATIENCE)
    }

    /// What the run file says: without what only the next sample needs.
    #[must_use]
    pub fn reported(&self) -> Self {
        Self { unanswered: self.unanswered.clone(), drops: self.drops.clone(), last: Last::default() }
    }
}

/// The most bytes that keepalives can account for.
fn keepalives(peer: &PeerFacts, elapsed: Duration) -> u64 {
    let interval = u64::from(peer.persistent_keepalive);
    KEEPALIVE * (1 + elapsed.as_secs().checked_div(interval).unwrap_or_default())
}
