//! The in-memory twin of a TUN interface: two ends of a queue.

use std::{
    io,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
};

use super::{Tun, TunEvent};

/// The engine's end: a [`Tun`].
#[derive(Debug)]
pub struct MemoryTun {
    to_host: Sender<Vec<u8>>,
    from_host: Receiver<Vec<u8>>,
    events: Receiver<TunEvent>,
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
    (MemoryTun { to_host, from_host, events }, MemoryTunHost { to_tun, from_tun, events: tell })
}

impl Tun for MemoryTun {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.from_host.try_recv().map_err(|_| io::ErrorKind::WouldBlock)?;
        buffer[..packet.len()].copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.to_host.send(packet.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe.into())
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
