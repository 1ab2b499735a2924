//! The in-memory twin of an interface, for tests: one end for the engine, the other one for the network stack.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, IoSlice},
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
};

use nix::libc;
use wireloom_types::LinkAddress;

use super::{Tun, TunEvent, TunQueue};
use crate::{
    offload::{
        coalesce::Joinable,
        segment::Segments,
        virtio::{SegmentationKind, VirtioHeader},
    },
    packet::{MAX_PACKET, ethernet, flow::flow_hash},
};

/// The engine's end: a [`Tun`].
#[derive(Debug)]
pub(crate) struct MemoryTun {
    to_host: Sender<(VirtioHeader, Vec<u8>)>,
    refuses_super_packets: Arc<AtomicBool>,
    events: Receiver<TunEvent>,
    link_address: Option<LinkAddress>,
    refuses_link_addresses: Arc<AtomicBool>,
}

/// One queue of a [`MemoryTun`].
#[derive(Debug)]
pub(crate) struct MemoryQueue {
    to_host: Sender<(VirtioHeader, Vec<u8>)>,
    from_host: Receiver<(VirtioHeader, Vec<u8>)>,
    joinable: Joinable,
    /// Whether the host refuses super-packets.
    refuses_super_packets: Arc<AtomicBool>,
}

/// The other end, which plays the machine's network stack.
#[derive(Debug)]
pub(crate) struct MemoryTunHost {
    /// One for each queue.
    to_tun: Vec<Sender<(VirtioHeader, Vec<u8>)>>,
    from_tun: Receiver<(VirtioHeader, Vec<u8>)>,
    /// The length in bytes of the Ethernet header before each packet.
    ethernet_len: usize,
    /// The segments of a super-packet that were not returned yet.
    segments: RefCell<VecDeque<Vec<u8>>>,
    events: Sender<TunEvent>,
    refuses_super_packets: Arc<AtomicBool>,
    refuses_link_addresses: Arc<AtomicBool>,
}

/// Makes both ends. The interface is down until the host says otherwise.
pub(crate) fn memory_tun() -> (MemoryTun, Vec<MemoryQueue>, MemoryTunHost) {
    memory_tun_of(NonZero::<usize>::MIN)
}

/// Makes both ends of an interface with several queues, and all of these.
pub(crate) fn memory_tun_of(queues: NonZero<usize>) -> (MemoryTun, Vec<MemoryQueue>, MemoryTunHost) {
    let (to_host, from_tun) = channel();
    let (tell, events) = channel();
    let refuses_super_packets = Arc::<AtomicBool>::default();
    let refuses_link_addresses = Arc::<AtomicBool>::default();
    let tun = MemoryTun {
        to_host,
        refuses_super_packets: Arc::clone(&refuses_super_packets),
        events,
        link_address: None,
        refuses_link_addresses: Arc::clone(&refuses_link_addresses),
    };
    let (to_tun, queues) = (0..queues.get())
        .map(|_| {
            let (to_tun, from_host) = channel();
            (to_tun, tun.queue(from_host))
        })
        .unzip();
    let host = MemoryTunHost {
        to_tun,
        from_tun,
        ethernet_len: 0,
        segments: RefCell::default(),
        events: tell,
        refuses_super_packets,
        refuses_link_addresses,
    };
    (tun, queues, host)
}

/// Makes both ends of an interface that carries frames. Its link address is an arbitrary one.
pub(crate) fn memory_tap() -> (MemoryTun, Vec<MemoryQueue>, MemoryTunHost) {
    memory_tap_of(NonZero::<usize>::MIN)
}

/// The same with several queues, returned as by [`memory_tun_of`].
pub(crate) fn memory_tap_of(queues: NonZero<usize>) -> (MemoryTun, Vec<MemoryQueue>, MemoryTunHost) {
    let (mut tun, queues, mut host) = memory_tun_of(queues);
    host.ethernet_len = ethernet::HEADER_LEN;
    tun.link_address = Some(LinkAddress::from_bytes([0x1e, 0x35, 0x89, 0, 0, 7]));
    (tun, queues, host)
}

impl MemoryTun {
    fn queue(&self, from_host: Receiver<(VirtioHeader, Vec<u8>)>) -> MemoryQueue {
        MemoryQueue {
            to_host: self.to_host.clone(),
            from_host,
            joinable: Joinable { tcp: true, udp: true },
            refuses_super_packets: Arc::clone(&self.refuses_super_packets),
        }
    }
}

impl TunQueue for MemoryQueue {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
        let (header, packet) = self.from_host.try_recv().map_err(|_| io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok((header, packet.len()))
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let header =
            parts[0].first_chunk().and_then(VirtioHeader::parse).ok_or(io::ErrorKind::InvalidInput)?;
        if header.segmentation.is_some() && self.refuses_super_packets.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let packet = parts[1..].iter().flat_map(|part| part.iter().copied()).collect();
        self.to_host.send((header, packet)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn joinable(&self) -> Joinable {
        self.joinable
    }

    fn stop_joining(&mut self, kind: SegmentationKind) {
        self.joinable.remove(kind);
    }
}

impl Tun for MemoryTun {
    type Queue = MemoryQueue;

    /// The host has no other end for what it could read.
    fn writer(&self) -> MemoryQueue {
        self.queue(channel().1)
    }

    fn link_address(&self) -> Option<LinkAddress> {
        self.link_address
    }

    fn set_link_address(&mut self, address: LinkAddress) -> io::Result<()> {
        if self.refuses_link_addresses.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        self.link_address = Some(address);
        Ok(())
    }

    /// When the host's end is gone, the interface counts as deleted.
    fn poll_event(&mut self) -> io::Result<Option<TunEvent>> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Ok(Some(TunEvent::Gone)),
        }
    }
}

impl MemoryTunHost {
    /// Routes a packet into the interface.
    pub(crate) fn send(&self, packet: &[u8]) {
        self.send_super(VirtioHeader::default(), packet);
    }

    /// Routes a packet into this queue of the interface, whatever its flow.
    pub(crate) fn send_by(&self, queue: usize, packet: &[u8]) {
        let _ = self.to_tun[queue].send((VirtioHeader::default(), packet.to_vec()));
    }

    /// Routes a super-packet into the interface.
    pub(crate) fn send_super(&self, header: VirtioHeader, packet: &[u8]) {
        let hash = flow_hash(packet.get(self.ethernet_len..).unwrap_or_default());
        let queue = &self.to_tun[(hash % self.to_tun.len() as u64) as usize];
        // It fails when the device has ended and reads no more, as with a real interface.
        let _ = queue.send((header, packet.to_vec()));
    }

    /// The next packet that came out of the interface, alone or in a super-packet.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut segments = self.segments.borrow_mut();
        if segments.is_empty() {
            let (header, frame) = self.receive_super()?;
            let (ethernet, packet) = frame.split_at(self.ethernet_len);
            let mut left = Segments::new(header, self.ethernet_len, packet)?;
            let mut room = vec![0; MAX_PACKET];
            while let Some(len) = left.write_next(packet, &mut room) {
                segments.push_back([ethernet, &room[..len]].concat());
            }
        }
        segments.pop_front()
    }

    /// The next packet or super-packet that came out of the interface, as it was written.
    pub(crate) fn receive_super(&self) -> Option<(VirtioHeader, Vec<u8>)> {
        self.from_tun.try_recv().ok()
    }

    /// Refuses super-packets from now on, although the interface takes them.
    pub(crate) fn refuse_super_packets(&self) {
        self.refuses_super_packets.store(true, Ordering::Relaxed);
    }

    /// Sets whether the interface's link address can be changed.
    pub(crate) fn refuse_link_addresses(&self, refuse: bool) {
        self.refuses_link_addresses.store(refuse, Ordering::Relaxed);
    }

    /// Changes the interface's state.
    pub(crate) fn tell(&self, event: TunEvent) {
        let _ = self.events.send(event);
    }
}
