//! Keeps the kernel's queue for the interface from standing: CoDel (RFC 8289) for a queue that we cannot look into.
//!
//! The kernel queues up to 500 packets for us. They may be super-packets of 62 KB, 31 MB in all, and a ping waits
//! behind all of it. CoDel distinguishes a good queue, which absorbs bursts and empties again, from a standing one,
//! which only adds delay, by the shortest sojourn time of a packet in 100 ms. We do not know how long a packet waited.
//! But when nothing is queued, nothing stands; and a queue that has held packets for 100 ms has a standing part. So the
//! time since the queue was last empty takes the place of the shortest sojourn time.
//!
//! The response is CoDel's: drop one packet, then others at ever shorter intervals, until the senders have slowed down
//! so far that the queue empties.

use std::time::Duration;

use wireloom_proto::Instant;

/// How long a queue may take to empty: `INTERVAL` of RFC 8289, section 4.3, which is of the order of the longest
/// round-trip times.
const INTERVAL: Duration = Duration::from_millis(100);

/// The most that the time between two reads counts. Between two reads, this process works for about a millisecond and
/// waits for the network for 20 ms at most. If more time passed, other processes had the processor: the queue may have
/// grown, but nobody tried to empty it.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The state of one queue.
#[derive(Debug, Default)]
pub(super) struct StandingQueue {
    /// `None` from the moment that nothing is queued until the next packet is read.
    standing: Option<Standing>,
    /// Drops since the queue last emptied, and a part of the earlier ones.
    drops: u32,
}

#[derive(Debug)]
struct Standing {
    read_at: Instant,
    /// For how much longer the queue may stand before the next packet is dropped.
    left: Duration,
}

impl StandingQueue {
    /// Records that nothing is queued.
    pub(super) fn emptied(&mut self) {
        if self.standing.take().is_some() {
            // A queue that soon stands again starts near the drop rate that was enough before.
            self.drops /= 2;
        }
    }

    /// Whether the packet that was just read has to be dropped.
    pub(super) fn must_drop(&mut self, now: Instant) -> bool {
        let Some(standing) = &mut self.standing else {
            self.standing = Some(Standing { read_at: now, left: INTERVAL });
            return false;
        };
        let pause = now.since(standing.read_at).min(PAUSE_MAX);
        standing.read_at = now;
        standing.left = standing.left.saturating_sub(pause);
        if !standing.left.is_zero() {
            return false;
        }
        self.drops += 1;
        // The control law (section 3.3): TCP's rate is proportional to the inverse square root of its losses.
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

    /// The drops in each second, for a queue that is read every millisecond and is empty when `is_empty` says so.
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
    fn a_queue_that_empties_every_99_ms_loses_nothing() {
        assert_eq!(drops(10, |now| now % 99 == 0), [0; 10]);
    }

    #[test]
    fn a_standing_queue_loses_packets_at_a_rising_rate() {
        let drops = drops(4, |_| false);
        // The nth drop follows the one before after 100 ms / sqrt(n): 24 in the first second.
        assert!((20..30).contains(&drops[0]), "{drops:?}");
        assert!(drops.is_sorted() && drops[3] > 2 * drops[0], "{drops:?}");
    }

    #[test]
    fn a_queue_that_stands_at_times_loses_a_few_packets() {
        // It stands for 150 ms of every 200 ms.
        assert!(drops(5, |now| now % 200 >= 150).iter().all(|drops| (5..=20).contains(drops)));
    }

    #[test]
    fn an_idle_queue_does_not_count_as_standing() {
        let mut queue = StandingQueue::default();
        assert!(!queue.must_drop(at(0)));
        queue.emptied();
        assert!(!queue.must_drop(at(5000)));
    }

    #[test]
    fn time_without_the_processor_does_not_make_a_queue_stand() {
        let mut queue = StandingQueue::default();
        // The first read is followed by a pause of two seconds, and later ones by pauses of one.
        let reads = [0, 2000, 2001, 3000, 3001];
        assert!(reads.iter().all(|now| !queue.must_drop(at(*now))));
        // A queue that never empties is overloaded all the same.
        assert!((4..9).any(|second| queue.must_drop(at(second * 1000))));
    }
}
