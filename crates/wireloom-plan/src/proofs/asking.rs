//! Which unproven nodes to ask for a handshake, and when: at once, then again and again, spread over time.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use wireloom_types::PublicKey;

/// A device repeats an unanswered initiation every 5 seconds for 90 seconds by itself (REKEY_TIMEOUT and
/// REKEY_ATTEMPT_TIME, section 6.1 of the WireGuard paper).
const SHORTEST_INTERVAL: Duration = Duration::from_secs(90);

/// The intervals are spread over this much more, so that the agents of a fleet that was started at once do not stay in
/// step.
const SPREAD: Duration = Duration::from_secs(30);

/// How many nodes are asked in a second. A handshake costs each side a fraction of a millisecond.
const RATE: usize = 50;

const SECOND: Duration = Duration::from_secs(1);

/// A node that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// The key of its record.
    pub key: PublicKey,
    /// The endpoint of its record.
    pub endpoint: SocketAddr,
}

/// Remembers who was asked when.
#[derive(Debug, Clone)]
pub struct Asking {
    seed: u64,
    asked: BTreeMap<String, Asked>,
    /// The second that the rate is about, and how many were asked in it.
    second: Duration,
    used: usize,
}

#[derive(Debug, Clone)]
struct Asked {
    key: PublicKey,
    endpoint: SocketAddr,
    next: Duration,
    times: u64,
}

impl Asking {
    /// Starts with nobody asked. Agents with different seeds ask in different orders.
    pub fn new(seed: u64) -> Self {
        Self { seed, asked: BTreeMap::new(), second: Duration::ZERO, used: 0 }
    }

    /// Chooses whom to ask now. The others are forgotten.
    pub fn choose<'a>(
        &mut self,
        candidates: impl Iterator<Item = Candidate<'a>>,
        now: Duration,
    ) -> Vec<Candidate<'a>> {
        // Also when the clock was set back.
        if now < self.second || now >= self.second + SECOND {
            (self.second, self.used) = (now, 0);
        }
        let candidates: BTreeMap<&str, Candidate<'a>> = candidates.map(|it| (it.name, it)).collect();
        self.asked.retain(|name, asked| {
            asked.next = asked.next.min(now + SHORTEST_INTERVAL + SPREAD);
            let same = |it: &Candidate<'_>| it.key == asked.key && it.endpoint == asked.endpoint;
            candidates.get(name.as_str()).is_some_and(same)
        });
        let is_due = |it: &Candidate<'_>| self.asked.get(it.name).is_none_or(|asked| asked.next <= now);
        let mut due: Vec<_> = candidates.into_values().filter(is_due).collect();
        due.sort_by_key(|it| {
            let asked = self.asked.get(it.name);
            (asked.map(|asked| asked.next), scatter(self.seed, it.name, asked.map_or(0, |asked| asked.times)))
        });
        due.truncate(RATE - self.used);
        self.used += due.len();
        for it in &due {
            let times = self.asked.get(it.name).map_or(1, |asked| asked.times + 1);
            let extra = SPREAD.mul_f64(scatter(self.seed, it.name, times) as f64 / u64::MAX as f64);
            let next = now + SHORTEST_INTERVAL + extra;
            self.asked.insert(it.name.to_owned(), Asked { key: it.key, endpoint: it.endpoint, next, times });
        }
        due
    }
}

/// A number that looks random (SplitMix64 over the name's bytes).
pub(crate) fn scatter(seed: u64, name: &str, times: u64) -> u64 {
    let bytes = name.bytes().map(u64::from);
    [times].into_iter().chain(bytes).fold(seed, |state, byte| {
        let mut mixed = (state ^ byte).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn candidates(names: &[String]) -> impl Iterator<Item = Candidate<'_>> {
        names.iter().map(|name| Candidate {
            name,
            key: PublicKey::from_bytes([1; 32]),
            endpoint: "192.0.2.1:51820".parse().unwrap(),
        })
    }

    #[test]
    fn everybody_is_asked_soon_and_again_within_two_minutes_but_fifty_a_second() {
        let names: Vec<String> = (0..1000).map(|number| format!("node-{number}")).collect();
        let mut asking = Asking::new(7);
        let mut times: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for second in 0..240 {
            for half in [0, 500] {
                let now = Duration::from_millis(1_000_000 + second * 1000 + half);
                let chosen = asking.choose(candidates(&names), now);
                assert!(chosen.len() <= 50);
                assert!(half == 0 || second >= 20 || chosen.is_empty(), "the second's fifty are used up");
                chosen.iter().for_each(|it| times.entry(it.name).or_default().push(second));
            }
        }
        assert_eq!(times.len(), 1000);
        for times in times.values() {
            assert!(times[0] < 20);
            assert!((90..=121).contains(&(times[1] - times[0])), "{times:?}");
        }
        let intervals: BTreeSet<_> = times.values().map(|times| times[1] - times[0]).collect();
        assert!(intervals.len() > 20, "{intervals:?}");
    }

    #[test]
    fn a_new_key_and_a_new_endpoint_are_asked_at_once() {
        let now = Duration::from_secs(1_000_000);
        let mut asking = Asking::new(7);
        let names = ["a".to_owned()];
        let first = candidates(&names).next().unwrap();
        assert_eq!(asking.choose([first].into_iter(), now), [first]);
        assert_eq!(asking.choose([first].into_iter(), now + SECOND), []);
        let moved = Candidate { endpoint: "192.0.2.2:51820".parse().unwrap(), ..first };
        assert_eq!(asking.choose([moved].into_iter(), now + 2 * SECOND), [moved]);
        let renewed = Candidate { key: PublicKey::from_bytes([2; 32]), ..moved };
        assert_eq!(asking.choose([renewed].into_iter(), now + 3 * SECOND), [renewed]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_asking() {
        let mut asking = Asking::new(7);
        let names = ["a".to_owned()];
        let late = Duration::from_secs(2_000_000);
        assert_eq!(asking.choose(candidates(&names), late).len(), 1);
        let early = Duration::from_secs(1_000_000);
        assert_eq!(asking.choose(candidates(&names), early).len(), 0);
        assert_eq!(asking.choose(candidates(&names), early + Duration::from_secs(120)).len(), 1);
    }

    #[test]
    fn agents_ask_in_different_orders() {
        let names: Vec<String> = (0..200).map(|number| format!("node-{number}")).collect();
        let first = |seed| {
            let chosen = Asking::new(seed).choose(candidates(&names), SECOND);
            chosen.iter().map(|it| it.name).collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
