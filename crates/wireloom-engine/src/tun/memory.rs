//! The in-memory twin of a TUN interface: two ends of a queue.

use std::{
    io::{self, IoSlice},
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
};

use super::{Tun, TunEvent};
use crate::link::LinkAddress;

/// The engine's end: a [`Tun`].
#[derive(Debug)]
pub struct MemoryTun {
    to_host: Sender<Vec<u8>>,
    from_host: Receiver<Vec<u8>>,
    events: Receiver<TunEvent>,
    link_address: Option<LinkAddress>,
}

/// The other end, which plays the machine's network stack.
#[derive(Debug)]
pub struct MemoryTunHost {
    to_tun: Sender<Vec<u8>>,
    from_tun: Receiver<Vec<u8>>,
    events: Sender<TunEvent>,
}

/// Makes both ends. The interface is down until the host says otherwise.
#[must_use]
pub fn memory_tun() -> (MemoryTun, MemoryTunHost) {
    let (to_host, from_tun) = channel();
    let (to_tun, from_host) = channel();
    let (tell, events) = channel();
    let tun = MemoryTun { to_host, from_host, events, link_address: None };
    (tun, MemoryTunHost { to_tun, from_tun, events: tell })
}

/// Makes both ends of an interface that carries frames. Its link address is random, so to say.
#[must_use]
pub fn memory_tap() -> (MemoryTun, MemoryTunHost) {
    let (mut tun, host) = memory_tun();
    tun.link_address = Some(LinkAddress::from_bytes([0x1e, 0x35, 0x89, 0, 0, 7]));
    (tun, host)
}

impl Tun for MemoryTun {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.from_host.try_recv().map_err(|_| io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn send(&mut self, packet: &[IoSlice<'_>]) -> io::Result<()> {
        let packet = packet.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.to_host.send(packet).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn link_address(&self) -> Option<LinkAddress> {
        self.link_address
    }

    fn set_link_address(&mut self, address: LinkAddress) -> io::Result<()> {
        self.link_address = Some(address);
        Ok(())
    }

    /// The host's end going away is the deletion of the interface.
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
    pub fn send(&self, packet: &[u8]) {
        // A device that ended no longer reads, as with a real interface.
        let _ = self.to_tun.send(packet.to_vec());
    }

    /// The next packet that came out of the interface.
    #[must_use]
    pub fn receive(&self) -> Option<Vec<u8>> {
        self.from_tun.try_recv().ok()
    }

    /// Changes the interface's state.
    pub fn tell(&self, event: TunEvent) {
        let _ = self.events.send(event);
    }
}
