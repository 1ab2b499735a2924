//! The data path of one queue: packets between the interface and the peers, by the batch.
//!
//! ```text
//!   outbound:  Tun ──▶ decide ──▶ segment ──▶ lay out ──▶ seal ──▶ Udp
//!   inbound:   Tun ◀── coalesce ◀── admit ◀── accept ◀── decrypt ◀── Udp
//! ```
//!
//! It holds what every packet needs: the shared [`Transport`], the memory of one batch in each direction, the counters.
//! What only few packets need (handshakes, packets without a session, timers) goes through the [`SlowPath`] to the
//! device.

mod forwarder;
mod inbound;
mod outbound;

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use wireloom_proto::{Now, Transport};

pub(crate) use self::{
    forwarder::{Forwarder, PublishedTable},
    outbound::RoutingLoops,
};
use self::{inbound::Inbound, outbound::Outbound};
use crate::{
    batch::CryptoJob,
    drops::Drops,
    link::Link,
    offload::virtio::VirtioHeader,
    punt::SlowPath,
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
pub(crate) struct Turn<'a, S, T, U> {
    pub(crate) now: Now,
    /// The interface's MTU, in bytes.
    pub(crate) mtu: usize,
    pub(crate) slow_path: &'a mut S,
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

    pub(crate) fn routing_loops(&self) -> &Arc<RoutingLoops> {
        self.outbound.routing_loops()
    }

    /// The link, in link mode, if this is the data path that owns it.
    pub(crate) fn link(&self) -> Option<&Link> {
        match &self.forwarder {
            Forwarder::Link(link) => Some(link),
            Forwarder::AllowedIps(_) | Forwarder::Neighbours { .. } => None,
        }
    }

    /// The same, to change it.
    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.forwarder {
            Forwarder::Link(link) => Some(link),
            Forwarder::AllowedIps(_) | Forwarder::Neighbours { .. } => None,
        }
    }

    /// Sets whether the peers' allowed-IPs decide which source addresses they may use.
    pub(crate) fn check_sources(&mut self, check: bool) {
        self.inbound.check_sources(check);
    }

    /// Tells the network stack about addresses that have moved to another peer, after changes of peers and allowed-IPs.
    pub(crate) fn announce(&mut self, tun: &mut impl TunQueue) {
        if let Forwarder::Link(link) = &mut self.forwarder {
            link.announce(&self.outbound.routes(), |frame| tell_stack(tun, frame));
        }
    }

    /// Whether a super-packet was sent in part, so that [`Self::send`] has something to do even if the interface has
    /// nothing.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outbound.has_unsent()
    }

    /// Receives from the peers.
    pub(crate) fn receive(&mut self, turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>) -> Backlog {
        self.inbound.receive(&self.forwarder, &mut self.outbound, turn)
    }

    /// Sends what the network stack routed into the interface.
    ///
    /// # Errors
    /// When the interface cannot be read any more.
    pub(crate) fn send(
        &mut self,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> io::Result<Backlog> {
        self.outbound.send(&mut self.forwarder, turn)
    }

    /// Sends the device's datagrams: handshake messages, keepalives, packets that waited for a session.
    pub(crate) fn transmit(&mut self, turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>) {
        self.outbound.transmit(turn);
    }

    /// Deals with a frame that another queue's data path punted to the owner of the link. Returns how many packets'
    /// worth of work that was.
    pub(crate) fn handle_frame(
        &mut self,
        header: VirtioHeader,
        frame: Box<[u8]>,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> usize {
        self.outbound.send_frame(header, frame, &mut self.forwarder, turn)
    }
}

/// Sends a packet of our own to the network stack, in link mode a frame. While the interface is down, the stack refuses
/// it and does not need it.
fn tell_stack(tun: &mut impl TunQueue, frame: &[u8]) {
    let header = VirtioHeader::default().to_bytes();
    let _ = tun.send(&[IoSlice::new(&header), IoSlice::new(frame)]);
}
