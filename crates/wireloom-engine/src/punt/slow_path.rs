//! The slow path: what the data path asks of the device, for the few packets that need it.
//!
//! The engine's thread has the [`Device`] at hand. The threads of other queues [punt](super) to it.

use std::{collections::BTreeMap, net::IpAddr};

use wireloom_proto::{Device, DropReason, Endpoint, Now, PeerId, Signal, Transmit};

/// The device, at hand or on another thread. The methods are named after the device's own, which document them.
pub(crate) trait SlowPath {
    /// See [`Device::handle_handshake`].
    fn handle_handshake(&mut self, now: Now, from: Endpoint, datagram: &[u8]) -> Result<(), DropReason>;

    /// See [`Device::handle_outgoing`].
    fn handle_outgoing(
        &mut self,
        now: Now,
        peer: PeerId,
        packet: &[u8],
        mtu: usize,
    ) -> Result<(), DropReason>;

    /// See [`Device::handle_signal`].
    fn handle_signal(&mut self, now: Now, signal: Signal);

    /// See [`Device::begin_handshake`].
    fn begin_handshake(&mut self, now: Now, peer: PeerId);

    /// Records the path MTUs, in bytes, that the network reported for these addresses. Takes time for each peer.
    fn learn_path_mtus(&mut self, now: Now, reports: BTreeMap<IpAddr, usize>);

    /// The endpoints of all peers. Empty where the device is on another thread.
    fn endpoints(&self) -> Vec<Endpoint>;

    /// See [`Device::poll_transmit`]. `None` where the device is on another thread, which sends its datagrams.
    fn poll_transmit(&mut self, now: Now) -> Option<Transmit<'_>>;

    /// Whether packets given to [`Self::handle_outgoing`] may still be on their way to the device. Later packets
    /// must follow them there: if they were sealed at once, they would overtake them.
    fn is_taking_packets(&self) -> bool;

    /// Whether the slow path can take more packets from the interface.
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

    fn begin_handshake(&mut self, now: Now, peer: PeerId) {
        Self::begin_handshake(self, now, peer);
    }

    fn learn_path_mtus(&mut self, now: Now, reports: BTreeMap<IpAddr, usize>) {
        for peer in self.peers() {
            let Some(Endpoint { remote, .. }) = peer.path.endpoint() else { continue };
            if let Some(path_mtu) = reports.get(&remote.ip()) {
                peer.path.learn_path_mtu(now.monotonic, *path_mtu);
                tracing::debug!("the path MTU to {remote} is {path_mtu}");
            }
        }
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        self.peers().filter_map(|peer| peer.endpoint).collect()
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
