//! The data path: packets from the interface to the peers and back, by the batch.
//!
//! A worker holds what it needs for every packet: the shared [`Transport`], the memory of one batch
//! each way, the counters. Whatever is not for every packet (handshakes, staging, timers) it hands to
//! the [`Device`], which today is at hand because the engine has one thread; more workers, one for
//! each queue of the interface, would send these calls through a channel instead.

use std::{io, mem, sync::Arc};

use wireloom_proto::{Device, DropReason, Endpoint, MessageKind, Now, PeerPath, Transport, inner, message};

use crate::{
    drops::{Drops, Loss},
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
    pub(crate) fn new(transport: Arc<Transport>, drops: Arc<Drops>) -> Self {
        Self {
            transport,
            drops,
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            train: Train::default(),
        }
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
                return Backlog::Empty;
            }
            for (from, datagram) in self.inbound.datagrams() {
                let verdict = match MessageKind::classify(datagram) {
                    Ok(MessageKind::Data) => {
                        deliver(&self.transport, now, from, datagram, device, tun, &self.drops)
                    }
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
            let drained = self.fill(now, mtu, device, tun);
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
    fn fill(&mut self, now: Now, mtu: usize, device: &mut Device, tun: &mut impl Tun) -> io::Result<bool> {
        let transport = Arc::clone(&self.transport);
        let routes = transport.routes();
        loop {
            let Some(room) = self.outbound.room(self.train.pending()) else { return Ok(false) };
            let len = match tun.receive(&mut room[message::DATA_HEADER_LEN..][..MAX_PACKET]) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let path = inner::Packet::parse(&room[message::DATA_HEADER_LEN..][..len])
                .and_then(|packet| routes.lookup(packet.destination).ok_or(DropReason::NoPeerForDestination));
            let path = match path {
                Ok(path) => path,
                Err(reason) => {
                    self.drops.count(reason);
                    continue;
                }
            };
            let framed = message::frame(room, len, mtu).len();
            if !self.train.is_for(path) {
                self.couple(now, mtu, device, path, framed);
            }
            self.train.lengths.push((len, framed));
            self.train.bytes += framed;
        }
    }

    /// Sends off the train and begins one for another peer with the packet, `framed` bytes long, that
    /// stands behind it.
    fn couple(&mut self, now: Now, mtu: usize, device: &mut Device, path: &Arc<PeerPath>, framed: usize) {
        let behind = self.train.bytes;
        let sealed = self.depart(now, mtu, device);
        if sealed < behind {
            // The train's room is free again: the packet moves to the start of it.
            let pending = Pending { datagrams: 0, bytes: behind + framed };
            self.outbound.pending(pending).copy_within(behind.., 0);
        }
        self.train.path = Some(Arc::clone(path));
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
}

/// Opens a data message and gives what is inside to the network stack.
fn deliver(
    transport: &Transport,
    now: Now,
    from: Endpoint,
    datagram: &mut [u8],
    device: &mut Device,
    tun: &mut impl Tun,
    drops: &Drops,
) -> Result<(), DropReason> {
    let opened = transport.open(now.monotonic, from, datagram)?;
    if let Some(signal) = opened.signal {
        device.handle_signal(now, signal);
    }
    if opened.payload.is_empty() {
        return Ok(());
    }
    let packet = inner::Packet::parse(opened.payload)?;
    if !transport.routes().permits(&opened.path, packet.source) {
        return Err(DropReason::SourceNotAllowed);
    }
    if tun.send(&opened.payload[..packet.len]).is_err() {
        drops.count_loss(Loss::NotDelivered, 1);
    }
    Ok(())
}
