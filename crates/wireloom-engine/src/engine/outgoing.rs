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
    /// copies, with those that were dropped; `None` when there is no segment left.
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
                self.drops.count(EngineDrop::PeerUnreachable);
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

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use wireloom_proto::{Instant, UnixTime};
    use wireloom_types::{LinkAddress, PrivateKey};

    use super::*;
    use crate::{
        link::Link,
        offload::{segment::Segments, virtio::VirtioHeader},
        udp::{MemoryNetwork, Network as _},
    };

    fn at(seconds: u64) -> Now {
        let elapsed = Duration::from_secs(1000 + seconds);
        Now { monotonic: Instant::from_origin(elapsed), unix: UnixTime::from_epoch(elapsed) }
    }

    #[test]
    fn copies_for_peers_that_have_stopped_answering_are_counted_as_dropped() {
        let key = |number| PrivateKey::from_bytes([number; 32]);
        let peers = [2, 3, 4].map(|number| key(number).public_key());
        let mut device = Device::new(&[1; 32]);
        device.configure(at(0), |configuration| {
            configuration.set_private_key(Some(key(1)));
            for (last, peer) in (1..).zip(peers) {
                let mut peer = configuration.add_peer(peer).expect("not our own key");
                // There is no copy for the last one.
                if last < 3 {
                    peer.set_endpoint(([192, 0, 2, last], 51820).into());
                }
            }
        });
        let [silent, path] = [0, 1].map(|place| device.peer(&peers[place]).expect("a peer"));
        let (silent, id) = (Arc::clone(silent.path), silent.id);
        assert!(path.path.is_reachable());
        device.send_keepalive(at(0), id);
        let given_up = (0..100).find(|seconds| {
            while device.poll_transmit(at(*seconds)).is_some() {}
            device.handle_timeout(at(*seconds));
            !silent.is_reachable()
        });
        let now = at(given_up.expect("nobody answers"));

        let link = Link::new(LinkAddress::of(key(1).public_key()), device.transport());
        link.change(|table| {
            peers.iter().for_each(|peer| table.insert(device.peer(peer).expect("a peer").path));
        });
        let packet = vec![0x45; 40];
        let segments = Segments::new(VirtioHeader::default(), 14, &packet).expect("one packet");
        let mut multicast = Multicast { segments, packet: packet.into() };
        let drops = Arc::default();
        let mut udp = MemoryNetwork::new(Ipv4Addr::LOCALHOST.into()).bind(51820, 0).expect("a port");
        let copies = Outgoing::new(&drops).send_to_all(
            now,
            &mut multicast,
            1420,
            &link.table(),
            &mut device,
            &mut udp,
            &mut Patience::default(),
        );
        // The one that has not been tried yet gets its copy once there is a session.
        assert_eq!((copies, drops.to_string().as_str()), (Some(2), "peer-lost=1"));
    }
}
