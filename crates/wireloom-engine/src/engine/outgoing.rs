//! What the control thread sends: the device's datagrams, and copies of multicasts.

use std::{iter, sync::Arc};

use wireloom_proto::{Device, Now, PeerPath, message};

use crate::{
    batch::{OutboundBatch, Pending},
    drops::{Drops, EngineDrop},
    link::NeighbourTable,
    packet::MAX_PACKET,
    punt::Multicast,
    udp::{Patience, Udp},
};

/// The most batches of the device's datagrams that a turn sends: a session may expire meanwhile, and others wait.
const BATCHES_AT_ONCE: usize = 16;

pub(super) struct Outgoing {
    drops: Arc<Drops>,
    batch: OutboundBatch,
    /// A segment that goes to every peer.
    segment: Box<[u8]>,
}

impl Outgoing {
    pub(super) fn new(drops: &Arc<Drops>) -> Self {
        let segment = vec![0; MAX_PACKET].into_boxed_slice();
        Self { drops: Arc::clone(drops), batch: OutboundBatch::default(), segment }
    }

    /// Sends the device's datagrams: handshake messages, keepalives, packets that waited for a session. Afterwards the
    /// data path may use the session. Returns whether there is more.
    pub(super) fn transmit(
        &mut self,
        now: Now,
        device: &mut Device,
        udp: &mut impl Udp,
        patience: &mut Patience,
    ) -> bool {
        for _ in 0..BATCHES_AT_ONCE {
            while self.batch.room(Pending::default()).is_some()
                && let Some(transmit) = device.poll_transmit(now)
            {
                self.batch.push_transmit(&transmit);
            }
            let is_full = self.batch.room(Pending::default()).is_none();
            self.send(udp, patience);
            if !is_full && !device.note_transmitted(now) {
                return false;
            }
        }
        true
    }

    /// Sends copies of the next segment of a multicast to all neighbours whose endpoint is known. Returns the number of
    /// copies; `None` when there is no segment left.
    #[expect(clippy::too_many_arguments, reason = "what a turn works with")]
    pub(super) fn send_to_all(
        &mut self,
        now: Now,
        multicast: &mut Multicast,
        mtu: usize,
        neighbours: &NeighbourTable,
        device: &mut Device,
        udp: &mut impl Udp,
        patience: &mut Patience,
    ) -> Option<usize> {
        let len = multicast.segments.write_next(&multicast.packet, &mut self.segment)?;
        let mut copies = 0;
        for path in neighbours.peers().filter(|path| path.endpoint().is_some()) {
            if self.batch.room(Pending::default()).is_none() {
                self.send(udp, patience);
            }
            self.copy(now, len, mtu, path, device);
            copies += 1;
        }
        self.send(udp, patience);
        Some(copies)
    }

    /// Lays out the segment of `len` bytes for a peer.
    fn copy(&mut self, now: Now, len: usize, mtu: usize, path: &PeerPath, device: &mut Device) {
        let Some(room) = self.batch.room(Pending::default()) else { return };
        room[message::DATA_HEADER_LEN..][..len].copy_from_slice(&self.segment[..len]);
        let message = message::frame(room, len, mtu);
        let framed = message.len();
        let reserved = path.reserve(now.monotonic, 1, framed).or_else(|_| {
            // A peer that becomes reachable again has no use for the multicasts that it has missed.
            if !path.is_reachable() {
                return Err(path.seek());
            }
            let message = iter::once(&*message);
            device.transport().reserve_or_stage(now.monotonic, path, message, framed).map_err(|staged| {
                if let Some((reason, packets)) = staged.dropped {
                    self.drops.count_many(reason, packets);
                }
                staged.signal
            })
        });
        let signal = match reserved {
            Ok(reserved) => {
                let signal = reserved.signal;
                self.batch.push_unsealed(iter::once(framed), reserved);
                signal
            }
            Err(signal) => signal,
        };
        if let Some(signal) = signal {
            device.handle_signal(now, signal);
        }
    }

    fn send(&mut self, udp: &mut impl Udp, patience: &mut Patience) {
        if !self.batch.is_empty() {
            self.drops.count_many(EngineDrop::NotSent, udp.send(self.batch.seal(), patience));
        }
    }
}
