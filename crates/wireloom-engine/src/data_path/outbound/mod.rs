//! From the interface to the peers: read, decide, segment, lay out, seal, send.

mod batcher;
mod read_packet;
mod routing_loops;
mod standing_queue;

use std::{io, sync::Arc};

use wireloom_proto::{DropReason, Transport, inner};

pub(crate) use self::routing_loops::RoutingLoops;
use self::{batcher::Batcher, read_packet::ReadPacket, standing_queue::StandingQueue};
use super::{BATCHES_IN_A_ROW, Forwarder, Turn, forwarder::Lookup};
use crate::{
    answer::Answer,
    batch::{CryptoJob, OutboundBatch},
    drops::{Drops, EngineDrop},
    forwarding::Decision,
    offload::segment::Segments,
    runtime::{
        crypto_pool::{IN_POOL_MAX, InPool},
        turn::Backlog,
    },
    tun::{TunQueue, tell_stack},
    udp::Udp,
};

/// The most packets that are dropped, answered or punted while a batch is filled. They take about as long as a batch.
const SIDE_WORK_MAX: usize = 256;

pub(super) struct Outbound {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    loops: Arc<RoutingLoops>,
    packet: ReadPacket,
    batcher: Batcher,
    /// The kernel's queue that packets are read from.
    queue: StandingQueue,
    answer: Answer,
}

/// Why reading stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The batch is full.
    Full,
    /// The interface has no more packets.
    Drained,
}

impl Outbound {
    pub(super) fn new(transport: &Arc<Transport>, drops: &Arc<Drops>, loops: &Arc<RoutingLoops>) -> Self {
        Self {
            transport: Arc::clone(transport),
            drops: Arc::clone(drops),
            loops: Arc::clone(loops),
            packet: ReadPacket::default(),
            batcher: Batcher::new(Arc::clone(transport), Arc::clone(drops)),
            queue: StandingQueue::default(),
            answer: Answer::default(),
        }
    }

    pub(super) fn set_pool(&mut self, in_pool: InPool<OutboundBatch, CryptoJob>) {
        self.batcher.set_pool(in_pool);
    }

    /// Whether a super-packet was sent in part.
    pub(super) fn has_unsent(&self) -> bool {
        self.packet.unsent.is_some()
    }

    /// Sends the rest of a super-packet that was sent in part.
    pub(super) fn send_unsent(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) {
        while self.has_unsent() {
            self.lay_out_unsent(turn);
            self.batcher.end_run(turn);
            self.batcher.send(turn);
        }
    }

    /// Sends what the network stack routed into the interface. Full batches go to the crypto pool while further ones
    /// are filled; all are sent before it returns.
    ///
    /// # Errors
    /// When the interface cannot be read any more.
    pub(super) fn send(
        &mut self,
        forwarder: &Forwarder,
        turn: &mut Turn<'_, impl TunQueue, impl Udp>,
    ) -> io::Result<Backlog> {
        let mut bytes = 0;
        let batches = if self.batcher.has_pool() { IN_POOL_MAX } else { BATCHES_IN_A_ROW };
        for _ in 0..batches {
            let stopped = self.fill(forwarder, turn);
            self.batcher.end_run(turn);
            bytes += self.batcher.bytes();
            if matches!(stopped, Ok(Stopped::Full)) && self.batcher.submit() {
                continue;
            }
            self.batcher.send(turn);
            if stopped? == Stopped::Drained {
                return Ok(Backlog::after(bytes));
            }
        }
        self.batcher.send(turn);
        Ok(Backlog::More)
    }

    /// Reads packets and lays them out in the batch.
    fn fill(
        &mut self,
        forwarder: &Forwarder,
        turn: &mut Turn<'_, impl TunQueue, impl Udp>,
    ) -> io::Result<Stopped> {
        let mut lookup = forwarder.lookup(&self.transport);
        let mut side_work = 0;
        loop {
            if side_work >= SIDE_WORK_MAX || !self.lay_out_unsent(turn) {
                return Ok(Stopped::Full);
            }
            match self.packet.read(turn.tun, lookup.ethernet_len()) {
                Ok(()) => side_work += self.dispatch(&mut lookup, turn),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.emptied();
                    return Ok(Stopped::Drained);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.drops.count(DropReason::BadInnerPacket);
                    side_work += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Decides what is done with the packet that was read, and does it. Only the packet for one peer is left unsent,
    /// for [`Self::lay_out_unsent`]. Returns how many packets' worth of side work was done.
    #[inline]
    fn dispatch(&mut self, lookup: &mut Lookup<'_>, turn: &mut Turn<'_, impl TunQueue, impl Udp>) -> usize {
        let ethernet_len = lookup.ethernet_len();
        let (header, frame) = (self.packet.header, self.packet.frame());
        let ip = frame.get(ethernet_len..).unwrap_or_default();
        let ip = inner::Packet::parse(ip).map(|packet| &ip[..packet.len]);
        let segments =
            ip.and_then(|ip| Segments::new(header, ethernet_len, ip).ok_or(DropReason::BadInnerPacket));
        let longest = segments.map_or(frame.len(), |segments| segments.longest());
        let decision = lookup.decide(turn.now.monotonic, frame, longest, turn.mtu, &mut self.answer);
        if !self.answer.bytes.is_empty() {
            tell_stack(turn.tun, &self.answer.bytes);
            self.answer.bytes.clear();
        }
        match (decision, segments) {
            (Decision::Peer(_) | Decision::AllPeers, Err(reason)) => self.drops.count(reason),
            (Decision::Peer(path), Ok(mut segments)) => {
                let ip = &frame[ethernet_len..][..segments.len()];
                if self.loops.close(turn.now.monotonic, path, ip, turn.udp.port()) {
                    self.drops.count(EngineDrop::RoutingLoop);
                    return 1;
                }
                if self.queue.must_drop(turn.now.monotonic) && !segments.mark_next(ip) {
                    segments.skip_next();
                    self.drops.count(EngineDrop::QueueStood);
                }
                self.packet.send_later(ethernet_len, segments, Arc::clone(path));
                return 0;
            }
            (Decision::AllPeers, Ok(segments)) => {
                turn.punter.punt_multicast(segments, &frame[ethernet_len..][..segments.len()]);
            }
            (Decision::Local, _) => {}
            (Decision::Drop(reason), _) => self.drops.count(reason),
            (Decision::Unreachable(signal), _) => {
                self.drops.count(EngineDrop::PeerUnreachable);
                turn.punter.signal(signal);
            }
        }
        1
    }

    /// Lays out the unsent segments of the packet. Returns false when the batch is full before that is done.
    fn lay_out_unsent(&mut self, turn: &mut Turn<'_, impl TunQueue, impl Udp>) -> bool {
        let Some((mut segments, path)) = self.packet.unsent.take() else { return true };
        let done = self.batcher.lay_out(self.packet.ip(), &mut segments, &path, turn);
        if !done {
            self.packet.unsent = Some((segments, path));
        }
        done
    }
}
