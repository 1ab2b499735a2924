//! Fills batches, has them sealed, and sends them.

use std::sync::Arc;

use wireloom_proto::{PeerPath, Reserved, Staged, Transport, message};

use super::super::Turn;
use crate::{
    batch::{CryptoJob, OutboundBatch, Pending},
    drops::{Drops, EngineDrop},
    offload::segment::Segments,
    path_mtu::{is_path_probe, outer_headers},
    runtime::crypto_pool::InPool,
    tun::TunQueue,
    udp::Udp,
};

pub(super) struct Batcher {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    batch: OutboundBatch,
    /// Batches that the crypto pool seals, if there is a pool.
    in_pool: Option<InPool<OutboundBatch, CryptoJob>>,
    run: PeerRun,
}

/// Adjacent messages for one peer, laid out in the free room of the batch: they are not part of it yet.
#[derive(Default)]
struct PeerRun {
    path: Option<Arc<PeerPath>>,
    /// The length of each message, in bytes.
    lengths: Vec<usize>,
    bytes: usize,
    /// The position and the length in bytes of the longest message.
    longest: (usize, usize),
    /// The positions of the agent's probes.
    lone_probes: Vec<usize>,
}

impl PeerRun {
    fn pending(&self) -> Pending {
        Pending { messages: self.lengths.len(), bytes: self.bytes }
    }

    fn is_for(&self, path: &Arc<PeerPath>) -> bool {
        self.path.as_ref().is_some_and(|own| Arc::ptr_eq(own, path))
    }
}

impl Batcher {
    pub(super) fn new(transport: Arc<Transport>, drops: Arc<Drops>) -> Self {
        Self { transport, drops, batch: OutboundBatch::default(), in_pool: None, run: PeerRun::default() }
    }

    pub(super) fn set_pool(&mut self, in_pool: InPool<OutboundBatch, CryptoJob>) {
        self.in_pool = Some(in_pool);
    }

    pub(super) fn has_pool(&self) -> bool {
        self.in_pool.is_some()
    }

    /// The length of the present batch, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.batch.bytes()
    }

    /// Lays out segments of a packet for a peer. Returns false when the batch is full before all of them are laid out.
    #[inline]
    pub(super) fn lay_out(
        &mut self,
        packet: &[u8],
        segments: &mut Segments,
        path: &Arc<PeerPath>,
        turn: &mut Turn<'_, impl TunQueue, impl Udp>,
    ) -> bool {
        loop {
            let Some(room) = self.batch.room(self.run.pending()) else { return false };
            let Some(len) = segments.write_next(packet, &mut room[message::DATA_HEADER_LEN..]) else {
                return true;
            };
            let framed = message::frame(room, len, turn.mtu).len();
            if !self.run.is_for(path) {
                self.begin_run(path, framed, turn);
            }
            if framed > self.run.longest.1 {
                self.run.longest = (self.run.lengths.len(), framed);
            }
            if is_path_probe(packet) {
                self.run.lone_probes.push(self.run.lengths.len());
            }
            self.run.lengths.push(framed);
            self.run.bytes += framed;
        }
    }

    /// Ends the run and begins one for another peer, with the message of `framed` bytes that stands behind it.
    fn begin_run(
        &mut self,
        path: &Arc<PeerPath>,
        framed: usize,
        turn: &mut Turn<'_, impl TunQueue, impl Udp>,
    ) {
        let behind = self.run.bytes;
        let used = self.end_run(turn);
        if used < behind {
            // The room of the last run is free again: the message moves to its start.
            self.batch.pending(behind + framed).copy_within(behind.., 0);
        }
        self.run.path = Some(Arc::clone(path));
    }

    /// Adds the run to the batch. Without a session, its packets have to wait for one. Returns how many bytes of the
    /// batch's room were used up.
    pub(super) fn end_run(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) -> usize {
        let Some(path) = self.run.path.take() else { return 0 };
        let used = match self.reserve_or_stage(&path, turn) {
            Ok(reserved) => {
                let lengths = self.run.lengths.iter().copied();
                let remote = reserved.endpoint.remote;
                turn.punter.signal(reserved.signal);
                self.batch.push_unsealed(lengths, reserved);
                let (position, longest) = self.run.longest;
                if path.probe_path_mtu(turn.now.monotonic, outer_headers(remote) + longest) {
                    self.batch.probe_with(self.run.lengths.len() - position);
                }
                for position in &self.run.lone_probes {
                    self.batch.only_probe_with(self.run.lengths.len() - position);
                }
                if self.in_pool.is_none() {
                    // While the messages are still in the cache.
                    self.batch.seal();
                }
                self.run.bytes
            }
            Err(staged) => {
                turn.punter.signal(staged.signal);
                if let Some((reason, packets)) = staged.dropped {
                    self.drops.count_many(reason, packets);
                }
                0
            }
        };
        self.run.lengths.clear();
        self.run.lone_probes.clear();
        (self.run.bytes, self.run.longest) = (0, (0, 0));
        used
    }

    /// Reserves what the messages of the run need, or stages them.
    fn reserve_or_stage(
        &mut self,
        path: &PeerPath,
        turn: &Turn<'_, impl TunQueue, impl Udp>,
    ) -> Result<Reserved, Staged> {
        let mut room = &*self.batch.pending(self.run.bytes);
        let messages = self.run.lengths.iter().map(|len| {
            let (message, rest) = room.split_at(*len);
            room = rest;
            message
        });
        self.transport.reserve_or_stage(turn.now.monotonic, path, messages, self.run.bytes)
    }

    /// Has the pool seal the present batch, and begins another one. Returns false when there is no pool, or too many
    /// batches are in it.
    pub(super) fn submit(&mut self) -> bool {
        self.in_pool.as_mut().is_some_and(|in_pool| in_pool.submit(&mut self.batch))
    }

    /// Sends the batches that are in the pool, and then the present one.
    pub(super) fn send(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        if let Some(in_pool) = &mut self.in_pool {
            while let Some(mut batch) = in_pool.take_back() {
                self.drops.count_many(EngineDrop::NotSent, turn.udp.send(batch.seal(), &mut turn.patience));
                in_pool.recycle(batch);
            }
        }
        if !self.batch.is_empty() {
            self.drops.count_many(EngineDrop::NotSent, turn.udp.send(self.batch.seal(), &mut turn.patience));
        }
    }
}
