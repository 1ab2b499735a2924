//! What monitoring reads: `/metrics`, `/livez` and `/readyz`, and what `wireloom health` says.
//!
//! ```text
//!                  ┌─ Snapshot ─▶ Board ─▶ scrape ─▶ server ─▶ Prometheus, probes
//!  agent's thread ─┤                ▲
//!                  └─ Pulse ────────┴─▶ run file ─▶ `wireloom health`
//! ```
//!
//! A scrape reads what the agent's thread wrote down last, and never the kernel or the device: however often it comes,
//! it costs the agent nothing.

mod growth;
mod listen;
mod pulse;
mod refused;
mod scrape;
mod server;
mod snapshot;
#[cfg(test)]
mod tests;
mod timing;

use std::sync::{Arc, Mutex, PoisonError};

pub(crate) use self::{
    growth::Growth,
    listen::Listen,
    pulse::Pulse,
    refused::Refused,
    server::Server,
    snapshot::{Counts, Device, Judged, Membership, Peer, Snapshot, Traffic, Warnings, tally},
    timing::Timing,
};

/// How many nodes have series of their own. Above that there are sums: with series for each pair, 5,000 agents would
/// make 25 million.
pub(crate) const NODES_MAX: usize = 100;

/// What the agent's thread wrote down last.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pulse: Mutex<Pulse>,
    snapshot: Mutex<Arc<Snapshot>>,
    pub(crate) timing: Timing,
}

impl Board {
    /// Writes down that the agent's loop turned.
    pub(crate) fn beat(&self, pulse: Pulse) {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = pulse;
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
    }

    fn pulse(&self) -> Pulse {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
