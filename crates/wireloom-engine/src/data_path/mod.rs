//! The data path of one queue: packets between the interface and the peers, by the batch.
//!
//! ```text
//!   outbound:  Tun ──▶ decide ──▶ segment ──▶ lay out ──▶ seal ──▶ Udp
//!   inbound:   Tun ◀── coalesce ◀── admit ◀── accept ◀── decrypt ◀── Udp
//! ```
//!
//! It holds what every packet needs: the shared [`Transport`], the memory of one batch in each direction, the counters.
//! What only few packets need (handshakes, multicast, timers) is [punted](crate::punt) to the control thread.

mod forwarder;
mod inbound;
mod outbound;

use std::{io, sync::Arc};

use wireloom_proto::{Now, Transport};

pub(crate) use self::{forwarder::Forwarder, outbound::RoutingLoops};
use self::{inbound::Inbound, outbound::Outbound};
use crate::{
    batch::CryptoJob,
    drops::Drops,
    punt::Punter,
    runtime::{
        crypto_pool::{CryptoPool, InPool},
        turn::Backlog,
    },
    tun::TunQueue,
    udp::{Patience, Udp},
};

/// The most batches in one direction before the other one has its turn. Together they take about a millisecond, which
/// is how long a packet of the other direction may have to wait.
const BATCHES_IN_A_ROW: usize = 2;

/// What a data path works with in one turn.
pub(crate) struct Turn<'a, T, U> {
    pub(crate) now: Now,
    /// The interface's MTU, in bytes.
    pub(crate) mtu: usize,
    pub(crate) punter: &'a mut Punter,
    pub(crate) tun: &'a mut T,
    pub(crate) udp: &'a mut U,
    pub(crate) patience: Patience,
}

/// Both directions of one queue.
pub(crate) struct DataPath {
    forwarder: Forwarder,
    inbound: Inbound,
    outbound: Outbound,
}

impl DataPath {
    /// A data path that seals and opens by itself. All data paths of an engine share `loops`. With `check_sources`, the
    /// peers' allowed-IPs decide which source addresses they may use.
    pub(crate) fn new(
        transport: &Arc<Transport>,
        drops: &Arc<Drops>,
        loops: &Arc<RoutingLoops>,
        forwarder: Forwarder,
        check_sources: bool,
    ) -> Self {
        Self {
            forwarder,
            inbound: Inbound::new(transport, drops, check_sources),
            outbound: Outbound::new(transport, drops, loops),
        }
    }

    /// Has the pool help with sealing and opening.
    pub(crate) fn set_crypto_pool(&mut self, pool: &CryptoPool<CryptoJob>) {
        self.inbound.set_pool(InPool::new(pool.clone()));
        self.outbound.set_pool(InPool::new(pool.clone()));
    }

    /// Sets whether the peers' allowed-IPs decide which source addresses they may use.
    pub(crate) fn check_sources(&mut self, check: bool) {
        self.inbound.check_sources(check);
    }

    /// Whether a super-packet was sent in part, so that [`Self::send`] has something to do even if the interface has
    /// nothing.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outbound.has_unsent()
    }

    /// Sends the rest of a super-packet that was sent in part.
    pub(crate) fn send_unsent(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        self.outbound.send_unsent(turn);
    }

    /// Receives from the peers.
    pub(crate) fn receive(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) -> Backlog {
        self.inbound.receive(&self.forwarder, turn)
    }

    /// Sends what the network stack routed into the interface.
    ///
    /// # Errors
    /// When the interface cannot be read any more.
    pub(crate) fn send(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) -> io::Result<Backlog> {
        self.outbound.send(&self.forwarder, turn)
    }
}
