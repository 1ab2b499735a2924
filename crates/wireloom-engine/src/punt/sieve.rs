//! The sieve: which handshake messages a queue passes on.
//!
//! To answer one costs a hundred times what it costs to send one. A flood from forged sources must neither take the
//! control thread's time, and on a machine with one core that of the packets, nor crowd out the peers. So peers'
//! addresses have a lane of their own. Whoever forges these, too, gets no more than that lane.

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

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

/// Whose messages pass together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Of addresses at which peers have been.
    Known,
    /// Of all others.
    Strangers,
}

#[derive(Debug)]
pub(super) struct Sieve {
    known: KnownAddresses,
    limiters: [Limiter; 2],
}

impl Sieve {
    pub(super) fn new(known: KnownAddresses) -> Self {
        Self { known, limiters: [(); 2].map(|()| Limiter::new(INTERVAL, LANE as u32)) }
    }

    /// The lane of a message from this address. `None` when it is one too many.
    pub(super) fn lane(&mut self, now: Instant, from: IpAddr) -> Option<Lane> {
        let lane = if self.known.load().contains(&from) { Lane::Known } else { Lane::Strangers };
        self.limiters[lane as usize].allows(now).then_some(lane)
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
            if number % 1000 == 0 {
                assert_eq!(sieve.lane(now, peer), Some(Lane::Known));
            }
        }
        assert!((10_000..=10_000 + LANE as u32).contains(&passed), "{passed}");
    }
}
