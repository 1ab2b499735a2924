//! The data path: packets from the interface to the peers and back, by the batch.
//!
//! A worker holds what it needs for every packet: the shared [`Transport`], the memory of one batch
//! each way, the counters. Whatever is not for every packet (handshakes, staging, timers) it hands to
//! the device by its [`SlowPath`].

mod on_link;

use std::{
    io::{self, IoSlice},
    mem,
    ops::Range,
    sync::Arc,
};

use arc_swap::Guard;
use wireloom_proto::{DropReason, Now, Outcome, PeerPath, Routes, SealError, Transport, inner, message};

use crate::{
    admission::Admission,
    cipher::Cipher,
    crew::{AWAY_MAX, Away, Crew, Work},
    departure::Departure,
    drops::{Drops, Loss},
    link::{self, Link, LinkEnd, NeighbourTable, Way},
    offload::{coalesce::Coalescer, segment::Segments, virtio::VirtioHeader},
    reception::Reception,
    slow_path::SlowPath,
    standing_queue::StandingQueue,
    tun::{MAX_PACKET, TunQueue},
    udp::{Pending, Udp},
};

/// Batches in one direction before the other one gets its turn: together they take as long as a packet
/// of the other direction may have to wait, a millisecond or so.
const BATCHES_IN_A_ROW: usize = 2;

/// Packets read in a row that do not fill a batch, since they are dropped, answered, or copied for every peer,
/// and count as many times then: so many take as long as a batch.
const ASIDE_MAX: usize = 256;

/// As many bytes in one turn show that a bulk transfer is going on.
const BULK: usize = 16 << 10;

pub(crate) struct Worker {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    reception: Reception,
    /// Batches that helpers decrypt meanwhile, when there are helpers.
    opening: Option<Away<Reception, Cipher>>,
    departure: Departure,
    /// Batches that helpers seal meanwhile, when there are helpers.
    sealing: Option<Away<Departure, Cipher>>,
    landed: Landed,
    train: Train,
    /// What the kernel queues for us to read.
    queue: StandingQueue,
    /// When the peers are neighbours on a link.
    link: Option<LinkEnd>,
    check_sources: bool,
    /// What the network stack is told about a frame.
    answer: Vec<u8>,
    /// A packet for everyone.
    flood: Box<[u8]>,
}

/// What was read from the interface last, and how much of it is still to be sent.
struct Landed {
    memory: Box<[u8]>,
    packet: Range<usize>,
    left: Option<(Segments, Arc<PeerPath>)>,
}

impl Default for Landed {
    fn default() -> Self {
        let memory = vec![0; link::HEADER_LEN + MAX_PACKET].into_boxed_slice();
        Self { memory, packet: 0..0, left: None }
    }
}

/// What others change meanwhile, as it is for the length of a batch.
struct Tables {
    routes: Guard<Arc<Routes>>,
    /// Of a link that another thread has.
    neighbours: Option<Guard<Arc<NeighbourTable>>>,
}

/// Packets for one peer, one after the other in the room of the outbound batch, framed but not sealed.
#[derive(Default)]
struct Train {
    path: Option<Arc<PeerPath>>,
    /// Of each packet: its own length, and that of its message.
    lengths: Vec<(usize, usize)>,
    bytes: usize,
}

impl Train {
    fn pending(&self) -> Pending {
        Pending { datagrams: self.lengths.len(), bytes: self.bytes }
    }

    fn is_for(&self, path: &Arc<PeerPath>) -> bool {
        self.path.as_ref().is_some_and(|own| Arc::ptr_eq(own, path))
    }
}

/// What is left to be done after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Backlog {
    Empty,
    /// Nothing, but so much has passed that more is likely to follow soon.
    Expected,
    /// There was more than one turn may do: come again at once.
    More,
}

impl Backlog {
    fn after(bytes: usize) -> Self {
        if bytes >= BULK { Self::Expected } else { Self::Empty }
    }
}

impl Worker {
    /// `check_sources`: by the peers' allowed IPs.
    pub(crate) fn new(
        transport: Arc<Transport>,
        drops: Arc<Drops>,
        link: Option<LinkEnd>,
        check_sources: bool,
    ) -> Self {
        Self {
            transport,
            drops,
            reception: Reception::default(),
            opening: None,
            departure: Departure::default(),
            sealing: None,
            landed: Landed::default(),
            train: Train::default(),
            queue: StandingQueue::default(),
            link,
            check_sources,
            answer: Vec::new(),
            flood: vec![0; MAX_PACKET].into_boxed_slice(),
        }
    }

    /// Has these help with sealing and opening.
    pub(crate) fn set_crew(&mut self, crew: Crew<Cipher>) {
        self.opening = Some(Away::new(crew.clone()));
        self.sealing = Some(Away::new(crew));
    }

    /// The link, when the peers are neighbours on one and the worker is the engine's.
    pub(crate) fn link(&self) -> Option<&Link> {
        match &self.link {
            Some(LinkEnd::Whole(link)) => Some(link),
            Some(LinkEnd::Queue(_)) | None => None,
        }
    }

    /// Whether the peers' allowed IPs judge source addresses.
    pub(crate) fn check_sources(&mut self, check: bool) {
        self.check_sources = check;
    }

    /// As [`Self::link`], to change it.
    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.link {
            Some(LinkEnd::Whole(link)) => Some(link),
            Some(LinkEnd::Queue(_)) | None => None,
        }
    }

    /// Tells the network stack whose addresses have moved, after changes of peers and allowed IPs.
    pub(crate) fn announce(&mut self, tun: &mut impl TunQueue) {
        let Some(LinkEnd::Whole(link)) = &mut self.link else { return };
        link.announce(&self.transport.routes(), |frame| tell(tun, frame));
    }

    /// Whether a super-packet was sent in part, so that [`Self::send`] has something to do even when the
    /// interface has not.
    pub(crate) fn is_amid_a_packet(&self) -> bool {
        self.landed.left.is_some()
    }

    /// Receives from the peers.
    pub(crate) fn receive(
        &mut self,
        now: Now,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) -> Backlog {
        let mut bytes = 0;
        let mut opened_here = 0;
        for _ in 0..AWAY_MAX {
            udp.receive(&mut self.reception.inbound);
            if self.reception.inbound.is_empty() {
                self.deliver_away(now, device, tun, udp);
                self.learn_path_mtus(now, udp);
                return Backlog::after(bytes);
            }
            bytes += self.reception.inbound.bytes();
            if self.hand_over_reception() {
                continue;
            }
            self.deliver_away(now, device, tun, udp);
            self.deliver(now, device, tun, udp);
            opened_here += 1;
            if opened_here == BATCHES_IN_A_ROW {
                return Backlog::More;
            }
        }
        self.deliver_away(now, device, tun, udp);
        Backlog::More
    }

    /// Has a helper decrypt the present batch, when there are helpers and another one is likely to wait.
    fn hand_over_reception(&mut self) -> bool {
        let Some(opening) = &mut self.opening else { return false };
        if !self.reception.is_worth_help() {
            return false;
        }
        let limit = self.reception.inbound.next_limit();
        self.reception.decrypt_with(&self.transport);
        let handed_over = opening.hand_over(&mut self.reception);
        if handed_over {
            self.reception.inbound.begin(limit);
        }
        handed_over
    }

    /// Delivers the batches that are away.
    fn deliver_away(
        &mut self,
        now: Now,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) {
        while let Some(mut batch) = self.opening.as_mut().and_then(Away::take_back) {
            mem::swap(&mut self.reception, &mut batch);
            self.deliver(now, device, tun, udp);
            mem::swap(&mut self.reception, &mut batch);
            if let Some(opening) = &mut self.opening {
                opening.keep(batch);
            }
        }
    }

    /// Gives the network stack what the present batch brings, and the device what is for it.
    fn deliver(&mut self, now: Now, device: &mut impl SlowPath, tun: &mut impl TunQueue, udp: &mut impl Udp) {
        let drops = &self.drops;
        let routes = self.transport.routes();
        let neighbours = self.link.as_ref().map(LinkEnd::neighbours);
        let mut admission = Admission::new(&routes, neighbours.as_deref(), self.check_sources);
        let mut coalescer = Coalescer::new(tun.joinable());
        let mut write = |packets: u64, parts: &[IoSlice<'_>]| {
            if tun.send(parts).is_err() {
                drops.count_loss(Loss::NotDelivered, packets);
            }
        };
        self.reception.open(now.monotonic, &self.transport, |outcome| match outcome {
            Outcome::Opened { path, payload } => match admission.admit(path, payload) {
                Ok(Some(arrival)) => coalescer.push(arrival.link, arrival.packet, &mut write),
                Ok(None) => {}
                Err(refusal) => refusal.count(drops),
            },
            Outcome::Handshake(from, datagram) => {
                if let Err(reason) = device.handle_handshake(now, from, datagram) {
                    drops.count(reason);
                }
            }
            Outcome::Dropped(reason) => drops.count(reason),
            Outcome::Signal(signal) => device.handle_signal(now, signal),
        });
        coalescer.flush(&mut write);
        // Answers and what was waiting for them leave before the next batch is delivered.
        self.transmit(now, device, udp);
    }

    fn learn_path_mtus(&mut self, now: Now, udp: &mut impl Udp) {
        let Some(link) = &mut self.link else { return };
        while let Some((remote, path_mtu)) = udp.poll_path_mtu() {
            link.learn_path_mtu(now.monotonic, remote, path_mtu);
        }
    }

    /// Sends what the network stack routed into the interface.
    ///
    /// # Errors
    /// When the interface cannot be read any more.
    pub(crate) fn send(
        &mut self,
        now: Now,
        mtu: usize,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) -> io::Result<Backlog> {
        let mut bytes = 0;
        let batches = if self.sealing.is_some() { AWAY_MAX } else { BATCHES_IN_A_ROW };
        for _ in 0..batches {
            let drained = self.fill(now, mtu, device, tun, udp);
            self.depart(now, mtu, device);
            bytes += self.departure.outbound.bytes();
            let more = matches!(drained, Ok(false));
            if more && self.sealing.as_mut().is_some_and(|sealing| sealing.hand_over(&mut self.departure)) {
                continue;
            }
            self.send_batches(udp);
            if drained? {
                return Ok(Backlog::after(bytes));
            }
        }
        self.send_batches(udp);
        Ok(Backlog::More)
    }

    /// Sends the batches that are away, and then the present one.
    fn send_batches(&mut self, udp: &mut impl Udp) {
        if let Some(sealing) = &mut self.sealing {
            while let Some(mut batch) = sealing.take_back() {
                self.drops.count_loss(Loss::NotSent, udp.send(&mut batch.outbound));
                sealing.keep(batch);
            }
        }
        self.departure.work();
        if !self.departure.outbound.is_empty() {
            self.drops.count_loss(Loss::NotSent, udp.send(&mut self.departure.outbound));
        }
    }

    /// Sends what the device has: handshake messages, keepalives, packets that waited for a session.
    pub(crate) fn transmit(&mut self, now: Now, device: &mut impl SlowPath, udp: &mut impl Udp) {
        loop {
            let more = loop {
                let Some(room) = self.departure.outbound.room(Pending::default()) else { break true };
                let Some(transmit) = device.poll_transmit(now) else { break false };
                let len = transmit.datagram.len();
                room[..len].copy_from_slice(transmit.datagram);
                self.departure.outbound.push(transmit.endpoint, len);
            };
            if !self.departure.outbound.is_empty() {
                self.drops.count_loss(Loss::NotSent, udp.send(&mut self.departure.outbound));
            }
            if !more {
                return;
            }
        }
    }

    /// Reads packets until the batch is full (false) or the interface has no more (true).
    fn fill(
        &mut self,
        now: Now,
        mtu: usize,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) -> io::Result<bool> {
        let tables = self.tables();
        let header = self.header_len();
        let mut aside = 0;
        loop {
            if aside >= ASIDE_MAX || !self.cut(now, mtu, device) {
                return Ok(false);
            }
            // Before more of them are read, it has to be done with those that it has.
            if !device.may_have_more() {
                return Ok(true);
            }
            let memory = &mut self.landed.memory[..header + MAX_PACKET];
            let (offload, len) = match tun.receive(memory) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.emptied();
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.drops.count(DropReason::BadInnerPacket);
                    aside += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            aside += self.forward(now, mtu, offload, len, &tables, device, tun, udp);
        }
    }

    /// Does with a frame, which stands in the memory of what has landed, what is to be done with it. Returns
    /// how many packets' worth of work was done aside from filling the batch.
    #[expect(clippy::too_many_arguments, reason = "all that a worker works with")]
    #[inline]
    fn forward(
        &mut self,
        now: Now,
        mtu: usize,
        offload: VirtioHeader,
        len: usize,
        tables: &Tables,
        device: &mut impl SlowPath,
        tun: &mut impl TunQueue,
        udp: &mut impl Udp,
    ) -> usize {
        let header = self.header_len();
        let frame = &self.landed.memory[..len];
        let packet = frame.get(header..).unwrap_or_default();
        let packet = inner::Packet::parse(packet).map(|inner| &packet[..inner.len]);
        let segments = packet
            .and_then(|packet| Segments::new(offload, header, packet).ok_or(DropReason::BadInnerPacket));
        let longest = segments.map_or(len, |segments| segments.longest());
        let way = match (&tables.neighbours, &mut self.link) {
            (Some(neighbours), _) => match neighbours.path_of_frame(now.monotonic, frame, longest, mtu) {
                Some(path) => Way::Peer(path),
                None => {
                    self.punt(offload, len);
                    return 1;
                }
            },
            (None, Some(LinkEnd::Whole(link))) => {
                link.route(now.monotonic, frame, longest, &tables.routes, mtu, &mut self.answer)
            }
            (None, _) => Way::of_packet(frame, &tables.routes),
        };
        if !self.answer.is_empty() {
            tell(tun, &self.answer);
            self.answer.clear();
        }
        match (way, segments) {
            (Way::Peer(_) | Way::Everyone, Err(reason)) => self.drops.count(reason),
            (Way::Peer(path), Ok(segments)) => {
                let mut segments = segments;
                if self.queue.must_drop(now.monotonic) {
                    segments.skip_next();
                    self.drops.count_loss(Loss::QueueStood, 1);
                }
                self.landed.packet = header..header + segments.len();
                self.landed.left = Some((segments, Arc::clone(path)));
                return 0;
            }
            (Way::Everyone, Ok(mut segments)) => {
                self.depart(now, mtu, device);
                let mut copies = 0;
                let packet = header..header + segments.len();
                while let Some(len) =
                    segments.write_next(&self.landed.memory[packet.clone()], &mut self.flood)
                {
                    copies += self.flood(now, mtu, len, device, udp);
                }
                return copies;
            }
            (Way::Here, _) => {}
            (Way::Lost(loss), _) => self.drops.count_loss(loss, 1),
            (Way::Dropped(reason), _) => self.drops.count(reason),
            (Way::PeerLost(peer), _) => {
                self.drops.count_loss(Loss::PeerLost, 1);
                device.seek(now, peer);
            }
        }
        1
    }

    fn tables(&self) -> Tables {
        let neighbours = match &self.link {
            Some(LinkEnd::Queue(end)) => Some(end.neighbours()),
            Some(LinkEnd::Whole(_)) | None => None,
        };
        Tables { routes: self.transport.routes(), neighbours }
    }

    /// Of what stands in front of each packet.
    fn header_len(&self) -> usize {
        if self.link.is_some() { link::HEADER_LEN } else { 0 }
    }

    /// Adds what is left of the packet that was read last to the train; false when the batch is full
    /// before it is done.
    fn cut(&mut self, now: Now, mtu: usize, device: &mut impl SlowPath) -> bool {
        let Some((mut segments, path)) = self.landed.left.take() else { return true };
        loop {
            let Some(room) = self.departure.outbound.room(self.train.pending()) else {
                self.landed.left = Some((segments, path));
                return false;
            };
            let packet = &self.landed.memory[self.landed.packet.clone()];
            let Some(len) = segments.write_next(packet, &mut room[message::DATA_HEADER_LEN..]) else {
                return true;
            };
            let framed = message::frame(room, len, mtu).len();
            if !self.train.is_for(&path) {
                self.couple(now, mtu, device, Arc::clone(&path), framed);
            }
            self.train.lengths.push((len, framed));
            self.train.bytes += framed;
        }
    }

    /// Sends off the train and begins one for another peer with the packet, `framed` bytes long, that
    /// stands behind it.
    fn couple(
        &mut self,
        now: Now,
        mtu: usize,
        device: &mut impl SlowPath,
        path: Arc<PeerPath>,
        framed: usize,
    ) {
        let behind = self.train.bytes;
        let sealed = self.depart(now, mtu, device);
        if sealed < behind {
            // The train's room is free again: the packet moves to the start of it.
            let pending = Pending { datagrams: 0, bytes: behind + framed };
            self.departure.outbound.pending(pending).copy_within(behind.., 0);
        }
        self.train.path = Some(path);
    }

    /// Makes the train datagrams, which are sealed at once unless helpers may do it; without a session its
    /// packets go to the device, which keeps them until there is one. Returns how many bytes of the room
    /// were used up.
    fn depart(&mut self, now: Now, mtu: usize, device: &mut impl SlowPath) -> usize {
        let Some(path) = self.train.path.take() else { return 0 };
        let reserved = if device.is_taking_packets() {
            Err(SealError::NoSession)
        } else {
            path.reserve(now.monotonic, self.train.lengths.len(), self.train.bytes)
        };
        let used = match reserved {
            Ok((reserved, sealed)) => {
                let lengths = self.train.lengths.iter().map(|(_, framed)| *framed);
                self.departure.push(sealed.endpoint, lengths, reserved);
                if self.sealing.is_none() {
                    self.departure.work();
                }
                if let Some(signal) = sealed.signal {
                    device.handle_signal(now, signal);
                }
                self.train.bytes
            }
            Err(_) => {
                let mut room = &*self.departure.outbound.pending(self.train.pending());
                for (len, framed) in &self.train.lengths {
                    let packet = &room[message::DATA_HEADER_LEN..][..*len];
                    if let Err(reason) = device.handle_outgoing(now, path.id(), packet, mtu) {
                        self.drops.count(reason);
                    }
                    room = &room[*framed..];
                }
                0
            }
        };
        self.train.lengths.clear();
        self.train.bytes = 0;
        used
    }
}

/// Tells the network stack something by a frame of our own. It does not listen while the interface is down,
/// and has then nothing to be told.
fn tell(tun: &mut impl TunQueue, frame: &[u8]) {
    let none = VirtioHeader::default().to_bytes();
    let _ = tun.send(&[IoSlice::new(&none), IoSlice::new(frame)]);
}
