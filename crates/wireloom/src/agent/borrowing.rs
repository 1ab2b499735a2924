//! Finds which addresses pods here have borrowed from other nodes' blocks, for this node's own record. Their peers
//! refuse them until they have read it there, so it is done at once.

use std::time::{Duration, Instant};

use wireloom_plan::borrowed::Borrowable;

use super::Agent;

/// How often the routes are read even if nobody has announced a change: of IPv4 routes that go with their interface,
/// the kernel says nothing.
const INTERVAL: Duration = Duration::from_secs(5);

/// The most of the agent's time that reading takes: a table may have a million routes.
const SHARE: u32 = 10;

/// What is known of borrowed addresses.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    borrowable: Borrowable,
    /// Routes may have changed since they were read.
    is_news: bool,
    /// When they were read last, and how long that took.
    read: Option<(Instant, Duration)>,
}

impl Borrowing {
    /// The kernel has announced a change.
    pub(super) fn note_change(&mut self) {
        self.is_news = true;
    }

    /// When to read the routes; `None` if nothing can be borrowed.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let rest = if self.is_news { Duration::ZERO } else { INTERVAL };
        let next = |(read, took): (Instant, Duration)| read + rest.max(took * SHARE);
        (!self.borrowable.is_empty()).then(|| self.read.map_or(now, next))
    }
}

impl Agent {
    /// Reads the borrowed addresses if it is time to.
    pub(super) fn read_borrowed(&mut self) {
        let found = &self.publishing.found;
        let own = self.config.declared.workloads.as_ref().or(found.workloads.as_ref());
        // Without workloads there is no record.
        let borrowable = own.map(|own| Borrowable::new(found.pools.clone(), own.clone())).unwrap_or_default();
        if borrowable != self.borrowing.borrowable {
            self.borrowing = Borrowing { borrowable: borrowable.clone(), ..Borrowing::default() };
            self.interest.borrowable = borrowable;
            self.monitor.set_interest(self.interest.clone());
        }
        let now = Instant::now();
        match self.borrowing.due(now) {
            None => self.publishing.found.borrowed.clear(),
            Some(due) if due > now => {}
            Some(_) => {
                match self.reconciler.kernel_mut().borrowed(&self.borrowing.borrowable) {
                    Ok(borrowed) => self.publishing.found.borrowed = borrowed,
                    Err(error) => {
                        tracing::warn!("{error}; the borrowed addresses in this node's record stay");
                    }
                }
                self.borrowing.is_news = false;
                self.borrowing.read = Some((now, now.elapsed()));
            }
        }
    }
}
