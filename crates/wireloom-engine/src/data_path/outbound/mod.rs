//! From the interface to the peers: read, decide, segment, lay out, seal, send.

mod batcher;
mod read_packet;
mod routing_loops;
mod standing_queue;

use std::{io, mem, sync::Arc};

use arc_swap::Guard;
use wireloom_proto::{DropReason, Routes, Transport, inner};

pub(crate) use self::routing_loops::RoutingLoops;
use self::{batcher::Batcher, read_packet::ReadPacket, standing_queue::StandingQueue};
use super::{BATCHES_IN_A_ROW, Forwarder, Turn, forwarder::Lookup, tell_stack};
use crate::{
    batch::{CryptoJob, OutboundBatch},
    drops::{Drops, EngineDrop},
    forwarding::Decision,
    offload::{segment::Segments, virtio::VirtioHeader},
    packet::MAX_PACKET,
    punt::SlowPath,
    runtime::{
        crypto_pool::{IN_POOL_MAX, InPool},
        turn::Backlog,
    },
    tun::TunQueue,
    udp::Udp,
};

/// The most packets' worth of work besides filling a batch: packets that are dropped or answered count once, those
/// that are copied to every peer once for each copy. They take about as long as a batch.
const SIDE_WORK_MAX: usize = 256;

pub(super) struct Outbound {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    loops: Arc<RoutingLoops>,
    packet: ReadPacket,
    batcher: Batcher,
    /// The kernel's queue that packets are read from.
    queue: StandingQueue,
    /// An answer to the network stack: a packet, in link mode a frame.
    answer: Vec<u8>,
    /// A segment that goes to every peer.
    copy: Box<[u8]>,
}

/// Why reading stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stopped {
    /// The batch is full.
    Full,
    /// The interface has no more packets, or the slow path can take no more.
    Drained,
}

impl Outbound {
    pub(super) fn new(transport: &Arc<Transport>, drops: &Arc<Drops>, loops: &Arc<RoutingLoops>) -> Self {
        Self {
            transport: Arc::clone(transport),
            drops: Arc::clone(drops),
            loops: Arc::clone(loops),
            packet: ReadPacket::default(),
            batcher: Batcher::new(Arc::clone(drops)),
            queue: StandingQueue::default(),
            answer: Vec::new(),
            copy: vec![0; MAX_PACKET].into_boxed_slice(),
        }
    }

    pub(super) fn set_pool(&mut self, in_pool: InPool<OutboundBatch, CryptoJob>) {
        self.batcher.set_pool(in_pool);
    }

    pub(super) fn routes(&self) -> Guard<Arc<Routes>> {
        self.transport.routes()
    }

    pub(super) fn routing_loops(&self) -> &Arc<RoutingLoops> {
        &self.loops
    }

    /// Whether a super-packet was sent in part.
    pub(super) fn has_unsent(&self) -> bool {
        self.packet.unsent.is_some()
    }

    /// Sends what the network stack routed into the interface. Full batches go to the crypto pool while further ones
    /// are filled; all are sent before it returns.
    ///
    /// # Errors
    /// When the interface cannot be read any more.
    pub(super) fn send(
        &mut self,
        forwarder: &mut Forwarder,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
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

    /// Sends the device's datagrams.
    pub(super) fn transmit(&mut self, turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>) {
        self.batcher.transmit(turn);
    }

    /// Sends a frame that another queue's data path read, while one of our own may be only partly sent. Returns how
    /// many packets' worth of work that was.
    pub(super) fn send_frame(
        &mut self,
        header: VirtioHeader,
        frame: Box<[u8]>,
        forwarder: &mut Forwarder,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> usize {
        let own = mem::replace(&mut self.packet, ReadPacket::of_frame(header, frame));
        let mut lookup = forwarder.lookup(&self.transport);
        let work = self.dispatch(&mut lookup, turn);
        loop {
            let done = self.lay_out_unsent(turn);
            self.batcher.end_run(turn);
            self.batcher.send(turn);
            if done {
                break;
            }
        }
        self.packet = own;
        work
    }

    /// Reads packets and lays them out in the batch.
    fn fill(
        &mut self,
        forwarder: &mut Forwarder,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> io::Result<Stopped> {
        let mut lookup = forwarder.lookup(&self.transport);
        let mut side_work = 0;
        loop {
            if side_work >= SIDE_WORK_MAX || !self.lay_out_unsent(turn) {
                return Ok(Stopped::Full);
            }
            // The slow path must be done with the packets that it has before it gets more.
            if !turn.slow_path.may_have_more() {
                return Ok(Stopped::Drained);
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
    fn dispatch(
        &mut self,
        lookup: &mut Lookup<'_>,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> usize {
        let ethernet_len = lookup.ethernet_len();
        let (header, frame) = (self.packet.header, self.packet.frame());
        let ip = frame.get(ethernet_len..).unwrap_or_default();
        let ip = inner::Packet::parse(ip).map(|packet| &ip[..packet.len]);
        let segments =
            ip.and_then(|ip| Segments::new(header, ethernet_len, ip).ok_or(DropReason::BadInnerPacket));
        let longest = segments.map_or(frame.len(), |segments| segments.longest());
        let decision = lookup.decide(turn.now.monotonic, frame, longest, turn.mtu, &mut self.answer);
        let Some(decision) = decision else {
            lookup.punt(header, frame);
            return 1;
        };
        if !self.answer.is_empty() {
            tell_stack(turn.tun, &self.answer);
            self.answer.clear();
        }
        match (decision, segments) {
            (Decision::Peer(_) | Decision::AllPeers, Err(reason)) => self.drops.count(reason),
            (Decision::Peer(path), Ok(mut segments)) => {
                let ip = &frame[ethernet_len..][..segments.len()];
                if self.loops.close(turn.now.monotonic, path, ip, turn.udp.port()) {
                    self.drops.count(EngineDrop::RoutingLoop);
                    return 1;
                }
                if self.queue.must_drop(turn.now.monotonic) {
                    segments.skip_next();
                    self.drops.count(EngineDrop::QueueStood);
                }
                self.packet.send_later(ethernet_len, segments, Arc::clone(path));
                return 0;
            }
            (Decision::AllPeers, Ok(segments)) => return self.send_to_all(lookup, segments, turn),
            (Decision::Local, _) => {}
            (Decision::Drop(reason), _) => self.drops.count(reason),
            (Decision::Unreachable(peer), _) => {
                self.drops.count(EngineDrop::PeerUnreachable);
                turn.slow_path.begin_handshake(turn.now, peer);
            }
        }
        1
    }

    /// Lays out the unsent segments of the packet. Returns false when the batch is full before that is done.
    fn lay_out_unsent(&mut self, turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>) -> bool {
        let Some((mut segments, path)) = self.packet.unsent.take() else { return true };
        let done = self.batcher.lay_out(self.packet.ip(), &mut segments, &path, turn);
        if !done {
            self.packet.unsent = Some((segments, path));
        }
        done
    }

    /// Sends every segment of the packet to every peer. Returns the number of copies.
    fn send_to_all(
        &mut self,
        lookup: &Lookup<'_>,
        mut segments: Segments,
        turn: &mut Turn<'_, impl SlowPath, impl TunQueue, impl Udp>,
    ) -> usize {
        let Some(neighbours) = lookup.own_neighbours() else { return 0 };
        self.batcher.end_run(turn);
        let mut copies = 0;
        let ip = &self.packet.frame()[lookup.ethernet_len()..][..segments.len()];
        while let Some(len) = segments.write_next(ip, &mut self.copy) {
            copies += self.batcher.send_to_all(&self.copy[..len], &neighbours, turn);
        }
        copies
    }
}
