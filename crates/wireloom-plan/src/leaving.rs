//! How a node leaves the mesh without losing a packet.
//!
//! ```text
//!  Member ──leave──▶ Announcing: the record says encrypt = false ──20 s──▶ Removing: no record ──▶ Out
//!    ▲                                                                                              │
//!    └──────────────────────────────────────── join ◀───────────────────────────────────────────────┘
//! ```
//!
//! A peer that reads `encrypt = false` takes plaintext at once and sends it after [`PATIENCE`]. The record goes only
//! then: a record that merely vanishes stays in force at the peers. Times are durations on a clock that nobody sets.

use std::time::Duration;

use crate::proofs::PATIENCE;

/// How long after the store has the announcement all peers have heard of it.
const SPREAD: Duration = Duration::from_secs(5);

/// How long the store is given to take notice of what it is asked, before what it says counts.
const ASKED: Duration = Duration::from_secs(1);

/// Whether this node is in the mesh, and how far it is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    phase: Phase,
    /// Since when the phase has lasted; `None` before the first [`go_on`](Leaving::go_on).
    since: Option<Duration>,
    /// Since when the store has had the announcement.
    announced: Option<Duration>,
}

/// What of this node is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its record.
    Member,
    /// Its record with `encrypt = false`.
    Announcing,
    /// Nothing; the store may still have the record.
    Removing,
    /// Nothing.
    Out,
}

impl Leaving {
    /// Starts where an earlier agent was.
    #[must_use]
    pub fn new(phase: Phase) -> Self {
        Self { phase, since: None, announced: None }
    }

    /// What is published now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes whether this node is to be out of the mesh.
    pub fn set(&mut self, out: bool) {
        match (out, self.phase) {
            (true, Phase::Member) => *self = Self::new(Phase::Announcing),
            (false, Phase::Announcing | Phase::Removing | Phase::Out) => *self = Self::new(Phase::Member),
            _ => {}
        }
    }

    /// Lets time pass. `is_published` says whether the store has what was published last, and `has_record` whether this
    /// node has ever had a record to publish. Returns whether the phase is another one now.
    pub fn go_on(&mut self, is_published: bool, has_record: bool, now: Duration) -> bool {
        let since = *self.since.get_or_insert(now);
        let is_taken = is_published && now >= since + ASKED;
        let next = match self.phase {
            Phase::Announcing if !has_record => Phase::Removing,
            Phase::Announcing if is_taken => {
                let announced = *self.announced.get_or_insert(now);
                if now < announced + PATIENCE + SPREAD {
                    return false;
                }
                Phase::Removing
            }
            Phase::Removing if is_taken => Phase::Out,
            Phase::Member | Phase::Announcing | Phase::Removing | Phase::Out => return false,
        };
        *self = Self { phase: next, since: Some(now), announced: None };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second at which the phase changes, looked at every second.
    fn changes(leaving: &mut Leaving, begin: u64, is_published: impl Fn(u64) -> bool) -> Option<u64> {
        (begin..begin + 100).find(|now| leaving.go_on(is_published(*now), true, Duration::from_secs(*now)))
    }

    #[test]
    fn the_record_goes_once_the_peers_have_gone_direct() {
        let mut leaving = Leaving::new(Phase::Member);
        assert_eq!(changes(&mut leaving, 0, |_| true), None);
        leaving.set(true);
        assert_eq!(leaving.phase(), Phase::Announcing);
        // The store takes it after 7 s.
        assert_eq!(changes(&mut leaving, 100, |now| now >= 107), Some(127));
        assert_eq!(leaving.phase(), Phase::Removing);
        assert_eq!(changes(&mut leaving, 127, |now| now >= 140), Some(140));
        assert_eq!(leaving.phase(), Phase::Out);
        assert_eq!(changes(&mut leaving, 141, |_| true), None);
        leaving.set(false);
        assert_eq!(leaving.phase(), Phase::Member);
    }

    #[test]
    fn without_the_store_nobody_leaves() {
        let mut leaving = Leaving::new(Phase::Member);
        leaving.set(true);
        assert_eq!(changes(&mut leaving, 0, |_| false), None);
        // What the store says in the first second is about the record before.
        assert_eq!(changes(&mut leaving, 1000, |now| now < 1000), None);
        leaving.set(true);
        assert_eq!(leaving.phase(), Phase::Announcing);
    }

    #[test]
    fn a_node_without_a_record_has_nothing_to_announce() {
        let mut leaving = Leaving::new(Phase::Announcing);
        assert!(leaving.go_on(false, false, Duration::ZERO));
        assert_eq!(leaving.phase(), Phase::Removing);
        assert!(!leaving.go_on(true, false, Duration::ZERO));
        assert!(leaving.go_on(true, false, ASKED));
    }
}
