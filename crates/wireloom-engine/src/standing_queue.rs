//! Keeps the interface's queue from standing: CoDel (RFC 8289) for a queue that cannot be looked into.
//!
//! The kernel queues up to 500 packets for us, which may be super-packets of 62 KB: 31 MB, and a ping
//! waits behind all of it. CoDel tells a good queue, which absorbs bursts and empties again, from a
//! standing one, which delays everything and helps nobody, by the shortest stay of a packet in 100 ms.
//! These packets do not tell how long they stayed. But a queue that was found empty has no standing part,
//! and one that was not found empty for 100 ms has: so emptiness takes the place of the shortest stay.
//! The response is CoDel's: one packet is dropped, then others in ever shorter intervals, until the
//! senders have slowed down so far that the queue empties.

use std::time::Duration;

use wireloom_proto::Instant;

/// How long a queue may take to empty (`INTERVAL` of RFC 8289, section 4.3: of the order of the longest
/// round trips).
const INTERVAL: Duration = Duration::from_millis(100);

/// The most that the time between two reads counts. This process works for a millisecond between them, and
/// waits 20 ms at most, for the network to take what is sent; what is longer, others had the processor. The
/// queue may have grown meanwhile, but whether it empties was not tried.
const PAUSE: Duration = Duration::from_millis(20);

/// What is known of one queue.
#[derive(Debug, Default)]
pub(crate) struct StandingQueue {
    /// Absent while it was found empty and nothing was read since.
    standing: Option<Standing>,
    /// Drops since the queue last emptied, and some of those before.
    drops: u32,
}

#[derive(Debug)]
struct Standing {
    read_at: Instant,
    /// For how much longer it may stand before the next packet is dropped.
    left: Duration,
}

impl StandingQueue {
    /// Notes that the queue was found empty.
    pub(crate) fn emptied(&mut self) {
        if self.standing.take().is_some() {
            // A queue that stands again soon needs no less than what was enough before.
            self.drops /= 2;
        }
    }

    /// Whether the packet that was read now is to be dropped.
    pub(crate) fn must_drop(&mut self, now: Instant) -> bool {
        let Some(standing) = &mut self.standing else {
            self.standing = Some(Standing { read_at: now, left: INTERVAL });
            return false;
        };
        let pause = now.since(standing.read_at).min(PAUSE);
        standing.read_at = now;
        standing.left = standing.left.saturating_sub(pause);
        if !standing.left.is_zero() {
            return false;
        }
        self.drops += 1;
        // The control law (section 3.3): a TCP's rate goes with the inverse square root of its losses.
        standing.left = INTERVAL.div_f64(f64::from(self.drops).sqrt());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Drops in each second of a queue that is read each millisecond and found empty when told.
    fn drops(seconds: u64, is_empty: impl Fn(u64) -> bool) -> Vec<usize> {
        let mut queue = StandingQueue::default();
        let mut drops = Vec::new();
        for second in 0..seconds {
            let reads = second * 1000..(second + 1) * 1000;
            let dropped = reads.filter(|now| {
                if is_empty(*now) {
                    queue.emptied();
                }
                queue.must_drop(at(*now))
            });
            drops.push(dropped.count());
        }
        drops
    }

    #[test]
    fn a_queue_that_empties_in_time_loses_nothing() {
        assert_eq!(drops(10, |now| now % 99 == 0), [0; 10]);
    }

    #[test]
    fn a_standing_queue_loses_more_and_more() {
        let drops = drops(4, |_| false);
        // The nth after 100 ms / sqrt(n): 24 in the first second.
        assert!((20..30).contains(&drops[0]), "{drops:?}");
        assert!(drops.is_sorted() && drops[3] > 2 * drops[0], "{drops:?}");
    }

    #[test]
    fn one_that_stands_now_and_then_loses_a_little() {
        // For 150 ms of every 200.
        assert!(drops(5, |now| now % 200 >= 150).iter().all(|drops| (5..=20).contains(drops)));
    }

    #[test]
    fn an_idle_moment_is_not_a_standing_queue() {
        let mut queue = StandingQueue::default();
        assert!(!queue.must_drop(at(0)));
        queue.emptied();
        assert!(!queue.must_drop(at(5000)));
    }

    #[test]
    fn a_process_that_does_not_run_leaves_no_standing_queue() {
        let mut queue = StandingQueue::default();
        // Read again only after two seconds, in a second's bursts of three.
        let reads = [0, 2000, 2001, 3000, 3001];
        assert!(reads.iter().all(|now| !queue.must_drop(at(*now))));
        // It is overloaded all the same, should the queue never empty.
        assert!((4..9).any(|second| queue.must_drop(at(second * 1000))));
    }
}
