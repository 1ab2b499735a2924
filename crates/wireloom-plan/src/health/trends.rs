//! What only watching over time shows: who does not answer, and what is being dropped.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

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

/// Bytes of a handshake initiation (section 5.4.2). Data messages have multiples of 16.
const INITIATION: u64 = 148;

/// Bytes of a keepalive, which is not answered: header and tag of an empty data message.
const KEEPALIVE: u64 = 32;

/// What the device shows at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// All of its peers.
    pub peers: &'a BTreeMap<PublicKey, PeerFacts>,
    /// Packets that it dropped since its start, by the reason's name; `None` when it does not count them, or they could
    /// not be read.
    pub drops: Option<&'a BTreeMap<String, u64>>,
}

/// What an agent has seen of its device. Times are since 1970 on a clock that nobody sets while the agent runs, and are
/// to be compared with each other only.
///
/// What the run file has of it is small: only who does not answer, and what was dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trends {
    /// When the last sample was taken.
    pub at: Duration,
    /// The peers to which something was sent and from which nothing came since, and when that was first seen.
    pub unanswered: BTreeMap<PublicKey, Duration>,
    /// By the reason's name; reasons for which nothing was dropped are left out.
    pub drops: BTreeMap<String, DropTrend>,
    /// What only the next sample needs.
    #[serde(skip)]
    last: Last,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Last {
    /// Bytes received from each peer and sent to it.
    peers: BTreeMap<PublicKey, (u64, u64)>,
    /// By how much each counter of drops grew lately, and when.
    growths: BTreeMap<String, VecDeque<(Duration, u64)>>,
    sampled: bool,
}

/// How a counter of dropped packets grows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropTrend {
    /// Since the device started.
    pub total: u64,
    /// Of these, in the last minute while the agent watched.
    pub last_minute: u64,
    /// When it was last seen to grow.
    pub grown_at: Option<Duration>,
}

impl Trends {
    /// Takes what the device shows now. Call it about every two seconds. The cost is linear in the number of peers.
    pub fn sample(&mut self, now: Duration, device: &Sample<'_>) {
        let elapsed = now.saturating_sub(self.at);
        self.unanswered.retain(|key, _| device.peers.contains_key(key));
        for (key, peer) in device.peers {
            // A peer that is new, or whose device was started anew, has sent what it has sent since then.
            let (received, sent) = match self.last.peers.get(key) {
                Some(last) if peer.sent >= last.1 && peer.received >= last.0 => *last,
                Some(_) => (0, 0),
                None if self.last.sampled => (0, 0),
                None => (peer.received, peer.sent),
            };
            if is_answer(peer.received - received, elapsed) {
                self.unanswered.remove(key);
            } else if peer.sent - sent > keepalives(peer, elapsed) {
                self.unanswered.entry(*key).or_insert(now);
            }
        }
        self.last.peers = device.peers.iter().map(|(key, peer)| (*key, (peer.received, peer.sent))).collect();
        self.sample_drops(now, device.drops);
        self.last.sampled = true;
        self.at = now;
    }

    fn sample_drops(&mut self, now: Duration, drops: Option<&BTreeMap<String, u64>>) {
        let Some(drops) = drops else { return };
        self.drops.retain(|reason, _| drops.contains_key(reason));
        for (reason, total) in drops.iter().filter(|(_, total)| **total > 0) {
            // What was dropped before the first sample may be old.
            let before = match self.drops.get(reason) {
                // The device was started anew.
                Some(trend) if trend.total > *total => 0,
                Some(trend) => trend.total,
                None if self.last.sampled => 0,
                None => *total,
            };
            let trend = self.drops.entry(reason.clone()).or_default();
            trend.total = *total;
            let growths = self.last.growths.entry(reason.clone()).or_default();
            if *total > before {
                growths.push_back((now, total - before));
                trend.grown_at = Some(now);
            }
            while growths.front().is_some_and(|(at, _)| at.saturating_add(RECENT) < now) {
                growths.pop_front();
            }
            trend.last_minute = growths.iter().fold(0, |sum, (_, packets)| sum.saturating_add(*packets));
        }
    }

    /// How long nothing has come from a peer although something was sent to it; `None` when it has answered, or nothing
    /// was sent that asks for an answer.
    pub fn unanswered_for(&self, key: PublicKey) -> Option<Duration> {
        self.unanswered.get(&key).map(|since| self.at.saturating_sub(*since))
    }

    /// The same, if that is longer than an answer may take.
    pub fn silence(&self, key: PublicKey) -> Option<Duration> {
        self.unanswered_for(key).filter(|lasted| *lasted > PATIENCE)
    }

    /// Packets that were dropped for this reason in the last minute.
    pub fn dropped_lately(&self, reason: &str) -> u64 {
        self.drops.get(reason).map_or(0, |trend| trend.last_minute)
    }

    /// How many peers are silent, and for how many reasons packets were dropped in the last minute: when it changes, it
    /// is time to look closer.
    pub fn abnormal(&self) -> (usize, usize) {
        let silent = self.unanswered.keys().filter(|key| self.silence(**key).is_some()).count();
        let rising = self.drops.values().filter(|trend| trend.last_minute > 0).count();
        (silent, rising)
    }

    /// What the run file says: without what only the next sample needs.
    #[must_use]
    pub fn reported(&self) -> Self {
        Self {
            at: self.at,
            unanswered: self.unanswered.clone(),
            drops: self.drops.clone(),
            last: Last::default(),
        }
    }
}

/// Whether so many more received bytes show that the peer hears us. Its initiations do not: one that hears nothing asks
/// for a handshake again and again.
fn is_answer(received: u64, elapsed: Duration) -> bool {
    let initiations = 1 + elapsed.as_secs() / REKEY_TIMEOUT.as_secs();
    received > 0 && !(received.is_multiple_of(INITIATION) && received / INITIATION <= initiations)
}

/// The most bytes that keepalives can account for: persistent ones, and one after data was received.
fn keepalives(peer: &PeerFacts, elapsed: Duration) -> u64 {
    let interval = u64::from(peer.persistent_keepalive);
    KEEPALIVE.saturating_mul(1 + elapsed.as_secs().checked_div(interval).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PublicKey = PublicKey::from_bytes([1; 32]);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Samples of one peer, every two seconds from 1000 s on: what was received and sent.
    fn after(persistent_keepalive: u16, samples: &[(u64, u64)]) -> Trends {
        let mut trends = Trends::default();
        for (place, (received, sent)) in samples.iter().enumerate() {
            let peer =
                PeerFacts { received: *received, sent: *sent, persistent_keepalive, ..PeerFacts::default() };
            let peers = [(A, peer)].into();
            trends.sample(seconds(1000 + 2 * place as u64), &Sample { peers: &peers, drops: None });
        }
        trends
    }

    #[test]
    fn a_peer_is_silent_when_nothing_answers_for_longer_than_an_answer_takes() {
        let mut samples = vec![(500, 500), (500, 628)];
        samples.extend([(500, 776); 7]);
        let trends = after(0, &samples);
        assert_eq!(trends.unanswered_for(A), Some(seconds(14)));
        assert_eq!(trends.silence(A), None, "a keepalive may take 10 s, and a handshake 5 s");
        samples.push((500, 776));
        assert_eq!(after(0, &samples).silence(A), Some(seconds(16)));
        assert_eq!((trends.abnormal(), after(0, &samples).abnormal()), ((0, 0), (1, 0)));
        samples.push((532, 776));
        assert_eq!(after(0, &samples).unanswered_for(A), None, "it answers");
    }

    #[test]
    fn a_peer_to_which_nothing_or_only_keepalives_are_sent_is_not_silent() {
        assert!(after(0, &[(500, 500); 30]).unanswered.is_empty());
        let keepalives: Vec<_> = (0..30).map(|place| (500, 500 + 32 * (2 * place / 3))).collect();
        assert!(after(3, &keepalives).unanswered.is_empty());
        assert!(after(0, &[(0, 0), (0, 96)]).unanswered.contains_key(&A), "the least packet of TCP");
        assert!(after(1, &[(0, 0), (0, 148)]).unanswered.contains_key(&A), "a handshake");
    }

    #[test]
    fn a_peer_that_only_begins_handshakes_is_silent() {
        let samples: Vec<_> = (0..10).map(|place| (148 * (place / 2), 500 + 92 * place)).collect();
        assert_eq!(after(0, &samples).silence(A), Some(seconds(16)));
        assert!(after(0, &[(0, 0), (0, 148), (148, 240), (148 + 32, 240)]).unanswered.is_empty());
    }

    #[test]
    fn what_was_sent_before_the_first_sample_is_not_judged_and_a_new_device_is() {
        assert!(after(0, &[(0, 148), (0, 148)]).unanswered.is_empty());
        let again = after(0, &[(900, 900), (0, 148), (0, 148)]);
        assert_eq!(again.unanswered_for(A), Some(seconds(2)));
    }

    #[test]
    fn a_peer_that_is_removed_is_forgotten() {
        let mut trends = after(0, &[(0, 0), (0, 148)]);
        trends.sample(seconds(1004), &Sample { peers: &BTreeMap::new(), drops: None });
        assert!(trends.unanswered.is_empty());
    }

    #[test]
    fn drops_count_while_they_are_recent() {
        let mut trends = Trends::default();
        let mut sample = |now, total: u64| {
            let drops = [("bad-mac1".to_owned(), total), ("replayed".to_owned(), 0)].into();
            trends.sample(seconds(now), &Sample { peers: &BTreeMap::new(), drops: Some(&drops) });
            assert!(!trends.drops.contains_key("replayed"));
            trends.dropped_lately("bad-mac1")
        };
        assert_eq!(sample(1000, 70), 0, "they may be old");
        assert_eq!(sample(1002, 73), 3);
        assert_eq!(sample(1030, 75), 5);
        assert_eq!(sample(1064, 75), 2);
        assert_eq!(sample(1100, 75), 0);
        assert_eq!(sample(1102, 1), 1, "of a device that was started anew");
    }

    #[test]
    fn the_run_file_has_what_status_needs() {
        let trends = after(0, &[(0, 0), (0, 148)]);
        let text = serde_json::to_string(&trends).unwrap();
        assert_eq!(serde_json::from_str::<Trends>(&text).unwrap(), trends.reported());
        assert!(!text.contains("last\""), "{text}");
    }
}
