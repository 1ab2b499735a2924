//! The data path: packets from the interface to the peers and back, by the batch.
//!
//! A worker holds what it needs for every packet: the shared [`Transport`], the memory of one batch
//! each way, the counters. Whatever is not for every packet (handshakes, staging, timers) it hands to
//! the [`Device`], which today is at hand because the engine has one thread; more workers, one for
//! each queue of the interface, would send these calls through a channel instead.

use std::{
    io::{self, IoSlice},
    mem,
    sync::Arc,
};

use wireloom_proto::{Device, DropReason, Endpoint, MessageKind, Now, PeerPath, Transport, inner, message};

use crate::{
    drops::{Drops, Loss},
    link::{self, Link, Way},
    tun::{MAX_PACKET, Tun},
    udp::{Inbound, Outbound, Pending, Udp},
};

/// Batches in one direction before the other one gets its turn.
const BATCHES_IN_A_ROW: usize = 4;

pub(crate) struct Worker {
    transport: Arc<Transport>,
    drops: Arc<Drops>,
    inbound: Inbound,
    outbound: Outbound,
    train: Train,
    /// When the peers are neighbours on a link.
    link: Option<Link>,
    check_sources: bool,
    /// What the network stack is told about a frame.
    answer: Vec<u8>,
    /// A packet for everyone.
    flood: Vec<u8>,
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

/// Whether there was more than one turn may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backlog {
    Empty,
    /// Come again at once.
    More,
}

impl Worker {
    /// `check_sources`: by the peers' allowed IPs.
    pub(crate) fn new(
        transport: Arc<Transport>,
        drops: Arc<Drops>,
        link: Option<Link>,
        check_sources: bool,
    ) -> Self {
        Self {
            transport,
            drops,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            train: Train::default(),
            link,
            check_sources,
            answer: Vec::new(),
            flood: Vec::new(),
        }
    }

    /// The link, when the peers are neighbours on one.
    pub(crate) fn link(&self) -> Option<&Link> {
        self.link.as_ref()
    }

    /// Whether the peers' allowed IPs judge source addresses.
    pub(crate) fn check_sources(&mut self, check: bool) {
        self.check_sources = check;
    }

    /// As [`Self::link`], to change it.
    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// Receives from the peers.
    pub(crate) fn receive(
        &mut self,
        now: Now,
        device: &mut Device,
        tun: &mut impl Tun,
        udp: &mut impl Udp,
    ) -> Backlog {
        for _ in 0..BATCHES_IN_A_ROW {
            udp.receive(&mut self.inbound);
            if self.inbound.is_empty() {
                self.learn_path_mtus(now, udp);
                return Backlog::Empty;
            }
            let sink = Sink {
                transport: &self.transport,
                link: self.link.as_ref(),
                check_sources: self.check_sources,
                drops: &self.drops,
            };
            for (from, datagram) in self.inbound.datagrams() {
                let verdict = match MessageKind::classify(datagram) {
                    Ok(MessageKind::Data) => sink.deliver(now, from, datagram, device, tun),
                    Ok(_) => device.handle_handshake(now, from, datagram),
                    Err(reason) => Err(reason),
                };
                if let Err(reason) = verdict {
                    self.drops.count(reason);
                }
            }
            // Answers and what was waiting for them leave before the next batch comes in.
            self.transmit(now, device, udp);
        }
        Backlog::More
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
        device: &mut Device,
        tun: &mut impl Tun,
        udp: &mut impl Udp,
    ) -> io::Result<Backlog> {
        for _ in 0..BATCHES_IN_A_ROW {
            let drained = self.fill(now, mtu, device, tun, udp);
            self.depart(now, mtu, device);
            self.drops.count_loss(Loss::NotSent, udp.send(&mut self.outbound));
            if drained? {
                return Ok(Backlog::Empty);
            }
        }
        Ok(Backlog::More)
    }

    /// Sends what the device has: handshake messages, keepalives, packets that waited for a session.
    pub(crate) fn transmit(&mut self, now: Now, device: &mut Device, udp: &mut impl Udp) {
        loop {
            let more = loop {
                let Some(room) = self.outbound.room(Pending::default()) else { break true };
                let Some(transmit) = device.poll_transmit(now, room) else { break false };
                self.outbound.push(transmit.endpoint, transmit.len);
            };
            if !self.outbound.is_empty() {
                self.drops.count_loss(Loss::NotSent, udp.send(&mut self.outbound));
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
        device: &mut Device,
        tun: &mut impl Tun,
        udp: &mut impl Udp,
    ) -> io::Result<bool> {
        let transport = Arc::clone(&self.transport);
        let routes = transport.routes();
        // The header of a frame stands where that of the data message will be written over it.
        let header = if self.link.is_some() { link::HEADER_LEN } else { 0 };
        loop {
            let Some(room) = self.outbound.room(self.train.pending()) else { return Ok(false) };
            let frame = &mut room[message::DATA_HEADER_LEN - header..][..header + MAX_PACKET];
            let frame = match tun.receive(frame) {
                Ok(len) => &frame[..len],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let way = match &mut self.link {
                Some(link) => link.route(now.monotonic, frame, &routes, mtu, &mut self.answer),
                None => Way::of_packet(frame, &routes),
            };
            if !self.answer.is_empty() {
                // The stack that asks is there to hear.
                let _ = tun.send(&[IoSlice::new(&self.answer)]);
                self.answer.clear();
            }
            match way {
                Way::Peer(path) => {
                    let other = (!self.train.is_for(path)).then(|| Arc::clone(path));
                    let len = match inner::Packet::parse(&frame[header..]) {
                        Ok(packet) => packet.len,
                        Err(reason) => {
                            self.drops.count(reason);
                            continue;
                        }
                    };
                    let framed = message::frame(room, len, mtu).len();
                    if let Some(path) = other {
                        self.couple(now, mtu, device, path, framed);
                    }
                    self.train.lengths.push((len, framed));
                    self.train.bytes += framed;
                }
                Way::Everyone => {
                    self.flood.clear();
                    self.flood.extend_from_slice(&frame[header..]);
                    self.depart(now, mtu, device);
                    self.flood(now, mtu, device, udp);
                }
                Way::Here => {}
                Way::Lost(loss) => self.drops.count_loss(loss, 1),
                Way::Dropped(reason) => self.drops.count(reason),
                Way::PeerLost(peer) => {
                    self.drops.count_loss(Loss::PeerLost, 1);
                    device.seek(now, peer);
                }
            }
        }
    }

    /// Sends off the train and begins one for another peer with the packet, `framed` bytes long, that
    /// stands behind it.
    fn couple(&mut self, now: Now, mtu: usize, device: &mut Device, path: Arc<PeerPath>, framed: usize) {
        let behind = self.train.bytes;
        let sealed = self.depart(now, mtu, device);
        if sealed < behind {
            // The train's room is free again: the packet moves to the start of it.
            let pending = Pending { datagrams: 0, bytes: behind + framed };
            self.outbound.pending(pending).copy_within(behind.., 0);
        }
        self.train.path = Some(path);
    }

    /// Seals the train and makes it datagrams; without a session its packets go to the device, which
    /// keeps them until there is one. Returns how many bytes of the room were used up.
    fn depart(&mut self, now: Now, mtu: usize, device: &mut Device) -> usize {
        let Some(path) = self.train.path.take() else { return 0 };
        let mut room = self.outbound.pending(self.train.pending());
        let messages = self.train.lengths.iter().map(|(_, framed)| {
            let (message, rest) = mem::take(&mut room).split_at_mut(*framed);
            room = rest;
            message
        });
        let used = match path.seal(now.monotonic, messages) {
            Ok(sealed) => {
                for (_, framed) in &self.train.lengths {
                    self.outbound.push(sealed.endpoint, *framed);
                }
                if let Some(signal) = sealed.signal {
                    device.handle_signal(now, signal);
                }
                self.train.bytes
            }
            Err(_) => {
                let mut room = &*self.outbound.pending(self.train.pending());
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

    /// Sends the packet in `self.flood` to every peer; the train has departed.
    fn flood(&mut self, now: Now, mtu: usize, device: &mut Device, udp: &mut impl Udp) {
        let len = match inner::Packet::parse(&self.flood) {
            Ok(packet) => packet.len,
            Err(reason) => return self.drops.count(reason),
        };
        let packet = &self.flood[..len];
        for path in self.link.iter().flat_map(Link::peers).filter(|path| path.endpoint().is_some()) {
            if self.outbound.room(Pending::default()).is_none() {
                self.drops.count_loss(Loss::NotSent, udp.send(&mut self.outbound));
            }
            let Some(room) = self.outbound.room(Pending::default()) else { return };
            room[message::DATA_HEADER_LEN..][..len].copy_from_slice(packet);
            let message = message::frame(room, len, mtu);
            let framed = message.len();
            match path.seal(now.monotonic, std::iter::once(message)) {
                Ok(sealed) => {
                    self.outbound.push(sealed.endpoint, framed);
                    if let Some(signal) = sealed.signal {
                        device.handle_signal(now, signal);
                    }
                }
                // A peer that comes back wants none of the greetings that it has missed.
                Err(_) if !path.is_reachable() => device.seek(now, path.id()),
                Err(_) => {
                    if let Err(reason) = device.handle_outgoing(now, path.id(), packet, mtu) {
                        self.drops.count(reason);
                    }
                }
            }
        }
    }
}

/// Where what the peers send goes.
struct Sink<'a> {
    transport: &'a Transport,
    link: Option<&'a Link>,
    check_sources: bool,
    drops: &'a Drops,
}

impl Sink<'_> {
    /// Opens a data message and gives what is inside to the network stack.
    fn deliver(
        &self,
        now: Now,
        from: Endpoint,
        datagram: &mut [u8],
        device: &mut Device,
        tun: &mut impl Tun,
    ) -> Result<(), DropReason> {
        let opened = self.transport.open(now.monotonic, from, datagram)?;
        if let Some(signal) = opened.signal {
            device.handle_signal(now, signal);
        }
        if opened.payload.is_empty() {
            return Ok(());
        }
        let packet = inner::Packet::parse(opened.payload)?;
        let bytes = &opened.payload[..packet.len];
        if self.check_sources && !self.transport.routes().permits(&opened.path, packet.source) {
            return Err(DropReason::SourceNotAllowed);
        }
        let sent = match self.link.map(|link| link.arrival(opened.path.id(), packet.destination, bytes)) {
            None => tun.send(&[IoSlice::new(bytes)]),
            Some(Ok(header)) => tun.send(&[IoSlice::new(&header), IoSlice::new(bytes)]),
            Some(Err(loss)) => {
                self.drops.count_loss(loss, 1);
                return Ok(());
            }
        };
        if sent.is_err() {
            self.drops.count_loss(Loss::NotDelivered, 1);
        }
        Ok(())
    }
}
