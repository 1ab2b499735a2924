//! From the peers to the interface: receive, decrypt, admit, coalesce, write.

mod admission;
mod deliver;
mod path_reports;

use std::{io::IoSlice, mem, sync::Arc};

use wireloom_proto::{Outcome, Transport};

use self::{admission::Admission, deliver::deliver, path_reports::PathReports};
use super::{BATCHES_IN_A_ROW, Forwarder, Turn};
use crate::{
    batch::{CryptoJob, InboundBatch},
    drops::{Drops, EngineDrop},
    offload::coalesce::Coalescer,
    runtime::{
        crypto_pool::{IN_POOL_MAX, InPool},
        turn::Backlog,
    },
    tun::TunQueue,
    udp::Udp,
};

pub(super) struct Inbound {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    batch: InboundBatch,
    /// Batches that the crypto pool decrypts, if there is a pool.
    in_pool: Option<InPool<InboundBatch, CryptoJob>>,
    check_sources: bool,
    path_reports: PathReports,
}

impl Inbound {
    pub(super) fn new(transport: &Arc<Transport>, drops: &Arc<Drops>, check_sources: bool) -> Self {
        Self {
            transport: Arc::clone(transport),
            drops: Arc::clone(drops),
            batch: InboundBatch::default(),
            in_pool: None,
            check_sources,
            path_reports: PathReports::default(),
        }
    }

    pub(super) fn set_pool(&mut self, in_pool: InPool<InboundBatch, CryptoJob>) {
        self.in_pool = Some(in_pool);
    }

    pub(super) fn check_sources(&mut self, check: bool) {
        self.check_sources = check;
    }

    /// Receives from the peers. Full batches go to the crypto pool while further ones are received; all are delivered
    /// before it returns.
    pub(super) fn receive(
        &mut self,
        forwarder: &Forwarder,
        turn: &mut Turn<'_, impl TunQueue, impl Udp>,
    ) -> Backlog {
        // Also when datagrams never stop: what the error queue holds takes room from them (`sock_queue_err_skb`).
        self.path_reports.take(turn);
        let mut bytes = 0;
        let mut opened_here = 0;
        for _ in 0..IN_POOL_MAX {
            turn.udp.receive(&mut self.batch);
            if self.batch.is_empty() {
                self.deliver_from_pool(forwarder, turn);
                return Backlog::after(bytes);
            }
            bytes += self.batch.bytes();
            if self.submit() {
                continue;
            }
            self.deliver_from_pool(forwarder, turn);
            self.deliver(forwarder, turn);
            opened_here += 1;
            if opened_here == BATCHES_IN_A_ROW {
                return Backlog::More;
            }
        }
        self.deliver_from_pool(forwarder, turn);
        Backlog::More
    }

    /// Has the pool decrypt the present batch, if there is a pool and another batch probably waits.
    fn submit(&mut self) -> bool {
        let Some(in_pool) = &mut self.in_pool else { return false };
        if !self.batch.is_worth_a_job() {
            return false;
        }
        let limit = self.batch.next_limit();
        self.batch.decrypt_with(&self.transport);
        let submitted = in_pool.submit(&mut self.batch);
        if submitted {
            self.batch.begin(limit);
        }
        submitted
    }

    /// Delivers the batches that are in the pool.
    fn deliver_from_pool(&mut self, forwarder: &Forwarder, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        while let Some(mut batch) = self.in_pool.as_mut().and_then(InPool::take_back) {
            mem::swap(&mut self.batch, &mut batch);
            self.deliver(forwarder, turn);
            mem::swap(&mut self.batch, &mut batch);
            if let Some(in_pool) = &mut self.in_pool {
                in_pool.recycle(batch);
            }
        }
    }

    /// Gives the packets of the present batch to the network stack, and punts handshake messages and signals.
    fn deliver(&mut self, forwarder: &Forwarder, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        let drops = &self.drops;
        let routes = self.transport.routes();
        let neighbours = forwarder.neighbours();
        let mut admission =
            Admission::new(&routes, neighbours.as_deref().map(Arc::as_ref), self.check_sources);
        let mut coalescer = Coalescer::new(turn.tun.joinable());
        let mut write = |packets: u64, parts: &[IoSlice<'_>]| {
            drops.count_many(EngineDrop::NotDelivered, deliver(turn.tun, packets, parts));
        };
        self.batch.open(turn.now.monotonic, &self.transport, |outcome, ecn| match outcome {
            Outcome::Opened { path, payload } => match admission.admit(path, payload, ecn) {
                Ok(Some(packet)) => coalescer.push(packet.ethernet, packet.ip, &mut write),
                Ok(None) => {}
                Err(reason) => drops.count(reason),
            },
            Outcome::Handshake(from, datagram) => {
                turn.punter.punt_handshake(turn.now.monotonic, from, datagram);
            }
            Outcome::Dropped(reason) => drops.count(reason),
            Outcome::Signal(signal) => turn.punter.signal(Some(signal)),
        });
        coalescer.flush(&mut write);
    }
}
