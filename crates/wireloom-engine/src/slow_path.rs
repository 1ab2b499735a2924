//! What the data path asks of the device, by the way that is not for every packet.
//!
//! The engine's thread has the [`Device`] at hand. The threads of other queues [punt](crate::punt).

use wireloom_proto::{Device, DropReason, Endpoint, Now, PeerId, Signal, Transmit};

/// The device, at hand or not. The methods are the device's own, which tell what they do.
pub(crate) trait SlowPath {
    /// [`Device::handle_handshake`].
    fn handle_handshake(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason>;

    /// [`Device::handle_outgoing`].
    fn handle_outgoing(
        &mut self,
        now: Now,
        peer: PeerId,
        packet: &[u8],
        mtu: usize,
    ) -> Result<(), DropReason>;

    /// [`Device::handle_signal`].
    fn handle_signal(&mut self, now: Now, signal: Signal);

    /// [`Device::begin_handshake`].
    fn seek(&mut self, now: Now, peer: PeerId);

    /// [`Device::poll_transmit`], where the device's datagrams are sent.
    fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>>;

    /// Whether packets given to [`Self::handle_outgoing`] may be on their way to the device still, so
    /// that others must follow them there: sealed at once, they would overtake.
    fn is_taking_packets(&self) -> bool;

    /// Whether it can be given more of what the network stack sends.
    fn may_have_more(&self) -> bool;
}

impl SlowPath for Device {
    fn handle_handshake(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason> {
        Self::handle_handshake(self, now, from, datagram)
    }

    fn handle_outgoing(
        &mut self,
        now: Now,
        peer: PeerId,
        packet: &[u8],
        mtu: usize,
    ) -> Result<(), DropReason> {
        Self::handle_outgoing(self, now, peer, packet, mtu)
    }

    fn handle_signal(&mut self, now: Now, signal: Signal) {
        Self::handle_signal(self, now, signal);
    }

    fn seek(&mut self, now: Now, peer: PeerId) {
        self.begin_handshake(now, peer);
    }

    fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>> {
        Self::poll_transmit(self, now)
    }

    fn is_taking_packets(&self) -> bool {
        false
    }

    fn may_have_more(&self) -> bool {
        true
    }
}
