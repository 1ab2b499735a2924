//! The sieve: which handshake messages a queue passes on.
//!
//! To answer one costs a hundred times what it costs to send one. A flood from forged sources must neither take the
//! control thread's time, and on a machine with one core that of the packets, nor crowd out the peers. So peers'
//! addresses have a lane of their own. Whoever forges one of these, too, gets no more of that lane than one peer needs:
//! what is beyond the budget of an address goes with the strangers' messages. It may be a flood, or many peers that
//! share the address of a NAT gateway.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use wireloom_proto::Instant;

use crate::runtime::limiter::Limiter;

/// The addresses of the peers' endpoints, as the control thread published them last.
pub(crate) type KnownAddresses = Arc<ArcSwap<HashSet<IpAddr>>>;

/// How many messages of a lane may wait at a time. A device answers about 5,000 a second, in turn from all lanes of all
/// queues, so the last one of a full lane waits for a tenth of a second for each lane that is full.
pub(super) const LANE: usize = 512;

/// The rate of each lane in the long run, 10,000 a second: twice what a device answers, so that answers and cookie
/// replies, which take less, pass beside that.
const INTERVAL: Duration = Duration::from_micros(100);

/// How many budgets there are. Addresses share them at random.
const BUDGETS: usize = 1024;
/// The rate of each budget in the long run, 50 a second, and its bursts: a peer sends an initiation every five seconds,
/// and an answer to each of ours.
const BUDGET_INTERVAL: Duration = Duration::from_millis(20);
const BUDGET_BURST: u32 = 20;

/// Whose messages pass together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Of addresses at which peers have been, as long as these keep to their budgets.
    Known,
    /// All others.
    Strangers,
}

#[derive(Debug)]
pub(super) struct Sieve {
    known: KnownAddresses,
    limiters: [Limiter; 2],
    /// Of the known addresses, by their hashes.
    budgets: Box<[Limiter]>,
    /// Nobody knows whose budget an address shares.
    hasher: RandomState,
}

impl Sieve {
    pub(super) fn new(known: KnownAddresses) -> Self {
        let budget = || Limiter::new(BUDGET_INTERVAL, BUDGET_BURST);
        Self {
            known,
            limiters: [(); 2].map(|()| Limiter::new(INTERVAL, LANE as u32)),
            budgets: std::iter::repeat_with(budget).take(BUDGETS).collect(),
            hasher: RandomState::new(),
        }
    }

    /// The lane of a message from this address. `None` when it is one too many.
    pub(super) fn lane(&mut self, now: Instant, from: IpAddr) -> Option<Lane> {
        let is_known = self.known.load().contains(&from) && self.budget(from).allows(now);
        let lane = if is_known { Lane::Known } else { Lane::Strangers };
        self.limiters[lane as usize].allows(now).then_some(lane)
    }

    /// The budget of this address.
    fn budget(&mut self, address: IpAddr) -> &mut Limiter {
        let place = self.hasher.hash_one(address) % self.budgets.len() as u64;
        &mut self.budgets[place as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_of_strangers_leaves_room_for_peers() {
        let peer = IpAddr::from([192, 0, 2, 1]);
        let known = KnownAddresses::default();
        let mut sieve = Sieve::new(Arc::clone(&known));
        known.store(Arc::new(HashSet::from([peer])));
        // 100,000 a second for a second.
        let mut passed = 0;
        for number in 0..100_000_u32 {
            let now = Instant::from_origin(Duration::from_micros(5_000_000 + 10 * u64::from(number)));
            passed += u32::from(sieve.lane(now, Ipv4Addr::from_bits(number).into()) == Some(Lane::Strangers));
            if number % 5000 == 0 {
                assert_eq!(sieve.lane(now, peer), Some(Lane::Known));
            }
        }
        assert!((10_000..=10_000 + LANE as u32).contains(&passed), "{passed}");
    }
    #[test]
    fn a_flood_from_the_address_of_one_peer_leaves_room_for_the_others() {
        let peers: Vec<IpAddr> = (1..=9).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        let known = KnownAddresses::default();
        let mut sieve = Sieve::new(Arc::clone(&known));
        known.store(Arc::new(peers.iter().copied().collect()));
        // Of these, at least one shares no budget with the first.
        let shares = |sieve: &mut Sieve, peer| std::ptr::eq(sieve.budget(peer), sieve.budget(peers[0]));
        let others: Vec<_> = peers.iter().copied().filter(|peer| !shares(&mut sieve, *peer)).collect();
        assert!(!others.is_empty(), "one in ten to the 24 times");
        // 100,000 a second for a second. Its rest is treated like that of strangers.
        let mut passed = [0; 2];
        for number in 0..100_000 {
            let now = Instant::from_origin(Duration::from_micros(5_000_000 + 10 * number));
            if let Some(lane) = sieve.lane(now, peers[0]) {
                passed[lane as usize] += 1;
            }
            if number % 25_000 == 0 {
                others.iter().for_each(|peer| assert_eq!(sieve.lane(now, *peer), Some(Lane::Known)));
            }
        }
        let [of_peers, of_strangers] = passed;
        assert!((50..=50 + BUDGET_BURST).contains(&of_peers), "{of_peers}");
        assert!((10_000..=10_000 + LANE as u32).contains(&of_strangers), "{of_strangers}");
    }
}
