//! Staging: packets that wait for a session.
//!
//! All threads of the data path put packets in, and the device takes them out when there is a session. It lets the
//! data path use that session only once nothing waits for it any more, so that later packets do not overtake those that
//! waited. One lock covers both. Only packets without a session take it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::PoisonError;

use super::peer_path::{PeerPath, Reserved};
use super::session::SealError;
use super::signal::{Events, Signal};
use crate::drop_reason::DropReason;
use crate::handover::StagedPacket;
use crate::message::DATA_OVERHEAD;
use crate::peer_id::PeerId;
use crate::sync::{Mutex, MutexGuard};
use crate::time::Instant;

/// The most packets that are staged for one peer; the kernel's `MAX_STAGED_PACKETS`.
pub(crate) const STAGED_MAX: usize = 128;
/// The most bytes of memory that staged packets of all peers take: 20 packets of 1,500 bytes for each of two thousand
/// peers.
const BYTES_MAX: usize = 64 << 20;
/// What a packet takes beside its message: its place in the queue, and what the allocator adds.
const EXTRA: usize = 64;
/// A queue that is empty keeps room for this many packets at most. A burst leaves more behind.
const ROOM_KEPT: usize = 16;
/// The lengths of a message: from that of an empty packet to that of the longest one, whose length has 16 bits.
const MESSAGE: RangeInclusive<usize> = DATA_OVERHEAD..=DATA_OVERHEAD + u16::MAX as usize;

/// What became of messages for which nothing could be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    /// What the device must be told, if anything.
    pub signal: Option<Signal>,
    /// How many messages were dropped, these or older ones, and why.
    pub dropped: Option<(DropReason, u64)>,
}

/// The staged packets of all peers.
pub(crate) struct Staging {
    packets: Mutex<Packets>,
    bytes_max: usize,
}

#[derive(Default)]
struct Packets {
    /// An entry for each peer of the device.
    by_peer: BTreeMap<PeerId, Waiting>,
    /// The peers that have packets, by the number of their oldest one.
    by_age: BTreeMap<u64, PeerId>,
    /// The number of the next packet.
    next: u64,
    /// What all packets take, with [`EXTRA`] for each.
    bytes: usize,
}

/// What waits for one peer.
#[derive(Default)]
struct Waiting {
    /// The oldest comes first.
    packets: VecDeque<Packet>,
    /// When one was staged last.
    last: Option<Instant>,
}

/// A packet laid out as a message to be sealed.
struct Packet {
    /// Rises with each packet of any peer.
    number: u64,
    message: Vec<u8>,
}

impl Default for Staging {
    fn default() -> Self {
        Self { packets: Mutex::default(), bytes_max: BYTES_MAX }
    }
}

impl fmt::Debug for Staging {
    /// Leaves the packets out, which are private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("bytes", &self.lock().bytes).finish_non_exhaustive()
    }
}

impl Staging {
    /// If a thread panicked while it held the lock, the packets are still whole.
    fn lock(&self) -> MutexGuard<'_, Packets> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes packets for this peer from now on.
    pub(crate) fn add_peer(&self, peer: PeerId) {
        self.lock().by_peer.entry(peer).or_default();
    }

    /// Takes no more packets for this peer. Returns how many it drops.
    pub(crate) fn remove_peer(&self, peer: PeerId) -> u64 {
        let mut packets = self.lock();
        let dropped = packets.clear(peer);
        packets.by_peer.remove(&peer);
        dropped
    }

    /// Drops the packets of a peer, and returns how many they were.
    pub(crate) fn clear(&self, peer: PeerId) -> u64 {
        self.lock().clear(peer)
    }

    pub(crate) fn is_empty(&self, peer: PeerId) -> bool {
        self.lock().is_empty(peer)
    }

    /// When a packet was staged for a peer last, if one was.
    pub(crate) fn last(&self, peer: PeerId) -> Option<Instant> {
        self.lock().by_peer.get(&peer)?.last
    }

    /// Takes out the oldest message for a peer.
    pub(crate) fn pop(&self, peer: PeerId) -> Option<Vec<u8>> {
        self.lock().pop(peer)
    }

    /// Copies of all packets, the oldest first, to be handed over.
    pub(crate) fn state(&self) -> Vec<StagedPacket> {
        let packets = self.lock();
        let mut staged = Vec::new();
        for (peer, waiting) in &packets.by_peer {
            let Some(last) = waiting.last else { continue };
            let of_peer = waiting.packets.iter().map(|packet| {
                (packet.number, StagedPacket { peer: peer.0, last, message: packet.message.clone() })
            });
            staged.extend(of_peer);
        }
        staged.sort_unstable_by_key(|(number, _)| *number);
        staged.into_iter().map(|(_, packet)| packet).collect()
    }

    /// Stages a packet that was handed over, if its peer was. What cannot be a message is left out.
    pub(crate) fn restore(&self, packet: &StagedPacket) {
        if !MESSAGE.contains(&packet.message.len()) {
            return;
        }
        let mut packets = self.lock();
        if packets.by_peer.contains_key(&PeerId(packet.peer)) {
            packets.push(packet.last, PeerId(packet.peer), &packet.message, self.bytes_max);
        }
    }

    /// Calls `publish`, which lets the data path use a session, if nothing is staged for the peer. Returns whether it
    /// did. No packet is staged meanwhile.
    pub(crate) fn publish_if_empty(&self, peer: PeerId, publish: impl FnOnce()) -> bool {
        let packets = self.lock();
        let empty = packets.is_empty(peer);
        if empty {
            publish();
        }
        empty
    }

    /// See [`Transport::reserve_or_stage`](super::Transport::reserve_or_stage), for messages for which nothing could be
    /// reserved a moment ago.
    pub(super) fn reserve_or_stage<'m>(
        &self,
        now: Instant,
        path: &PeerPath,
        messages: impl ExactSizeIterator<Item = &'m [u8]>,
        bytes: usize,
    ) -> Result<Reserved, Staged> {
        let count = messages.len();
        let refused = |reason| Err(Staged { signal: None, dropped: Some((reason, count as u64)) });
        let mut packets = self.lock();
        // The session may have been published meanwhile.
        match path.reserve(now, count, bytes) {
            Ok(reserved) => return Ok(reserved),
            Err(SealError::NoEndpoint) => return refused(DropReason::NoEndpoint),
            Err(SealError::NoSession) if path.endpoint().is_none() => return refused(DropReason::NoEndpoint),
            Err(SealError::NoSession) => {}
        }
        if !packets.by_peer.contains_key(&path.id()) {
            return refused(DropReason::NoPeerForDestination);
        }
        // The device looks by itself whether more have come, when it gives up and when it has a session.
        let is_first = packets.is_empty(path.id());
        let dropped: u64 =
            messages.map(|message| packets.push(now, path.id(), message, self.bytes_max)).sum();
        drop(packets);
        let signal = if is_first { path.report(Events::PACKETS_WAIT) } else { None };
        Err(Staged { signal, dropped: (dropped > 0).then_some((DropReason::QueueFull, dropped)) })
    }
}

impl Packets {
    fn is_empty(&self, peer: PeerId) -> bool {
        self.by_peer.get(&peer).is_none_or(|waiting| waiting.packets.is_empty())
    }

    /// Stages a message for a peer that is known. Returns how many older ones it drops for that.
    fn push(&mut self, now: Instant, peer: PeerId, message: &[u8], bytes_max: usize) -> u64 {
        let mut dropped = 0;
        if self.by_peer.get(&peer).is_some_and(|waiting| waiting.packets.len() >= STAGED_MAX) {
            dropped += u64::from(self.pop(peer).is_some());
        }
        while self.bytes + message.len() + EXTRA > bytes_max
            && let Some((_, oldest)) = self.by_age.first_key_value()
        {
            dropped += u64::from(self.pop(*oldest).is_some());
        }
        let Some(waiting) = self.by_peer.get_mut(&peer) else { return dropped };
        let number = self.next;
        self.next += 1;
        if waiting.packets.is_empty() {
            self.by_age.insert(number, peer);
        }
        waiting.last = Some(now);
        waiting.packets.push_back(Packet { number, message: message.into() });
        self.bytes += message.len() + EXTRA;
        dropped
    }

    fn pop(&mut self, peer: PeerId) -> Option<Vec<u8>> {
        let waiting = &mut self.by_peer.get_mut(&peer)?.packets;
        let Packet { number, message } = waiting.pop_front()?;
        self.by_age.remove(&number);
        if let Some(next) = waiting.front() {
            self.by_age.insert(next.number, peer);
        } else if waiting.capacity() > ROOM_KEPT {
            *waiting = VecDeque::new();
        }
        self.bytes -= message.len() + EXTRA;
        Some(message)
    }

    fn clear(&mut self, peer: PeerId) -> u64 {
        std::iter::from_fn(|| self.pop(peer)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use wireloom_types::PublicKey;

    use super::*;

    fn path(number: u64) -> PeerPath {
        let path = PeerPath::new(PeerId(number), PublicKey::from_bytes([number as u8; 32]));
        path.set_endpoint(Some(SocketAddr::from(([192, 0, 2, 1], 51820)).into()));
        path
    }

    fn stage(staging: &Staging, path: &PeerPath, message: &[u8]) -> Staged {
        let now = Instant::from_nanos(1);
        staging
            .reserve_or_stage(now, path, std::iter::once(message), message.len())
            .expect_err("there is no session")
    }

    #[test]
    fn the_device_is_told_of_the_first_packet_that_waits() {
        let (staging, path) = (Staging::default(), path(1));
        staging.add_peer(path.id());
        assert!(stage(&staging, &path, &[1]).signal.is_some());
        assert!(stage(&staging, &path, &[2]).signal.is_none());
        assert!(path.news.take().contains(Events::PACKETS_WAIT));
        assert!(stage(&staging, &path, &[3]).signal.is_none());
        assert_eq!(staging.clear(path.id()), 3);
        assert!(stage(&staging, &path, &[4]).signal.is_some());
    }

    #[test]
    fn packets_for_a_peer_that_is_gone_or_has_no_endpoint_are_refused() {
        let (staging, path) = (Staging::default(), path(1));
        let refused = |reason| Staged { signal: None, dropped: Some((reason, 1)) };
        assert_eq!(stage(&staging, &path, &[1]), refused(DropReason::NoPeerForDestination));
        staging.add_peer(path.id());
        path.set_endpoint(None);
        assert_eq!(stage(&staging, &path, &[1]), refused(DropReason::NoEndpoint));
        assert!(staging.publish_if_empty(path.id(), || {}));
    }

    /// What a packet takes is counted, and nothing of it is left behind.
    #[test]
    fn short_packets_take_no_more_memory_than_is_allowed() {
        const PEERS: u64 = 50;
        let staging = Staging { bytes_max: 200_000, ..Staging::default() };
        let paths: Vec<_> = (0..PEERS).map(path).collect();
        let mut staged = 0;
        for path in &paths {
            staging.add_peer(path.id());
            for _ in 0..STAGED_MAX {
                staged += 1;
                stage(&staging, path, &[0; DATA_OVERHEAD + 16]);
            }
        }
        let memory = || {
            let packets = staging.lock();
            let queues = packets.by_peer.values().map(|waiting| &waiting.packets);
            let messages = queues.clone().flatten().map(|packet| packet.message.capacity() + 16);
            let places = queues.map(|queue| queue.capacity() * size_of::<Packet>());
            messages.sum::<usize>() + places.sum::<usize>()
        };
        assert!((100_000..=200_000).contains(&memory()), "{} bytes", memory());
        let dropped: u64 = paths.iter().map(|path| staging.clear(path.id())).sum();
        assert!((1000..staged).contains(&dropped), "{dropped} of {staged}");
        assert!(memory() <= PEERS as usize * ROOM_KEPT * size_of::<Packet>(), "{} bytes", memory());
    }

    #[test]
    fn of_what_was_handed_over_only_messages_are_staged() {
        let staging = Staging::default();
        staging.add_peer(PeerId(1));
        let (shortest, longest) = (MESSAGE.start(), MESSAGE.end());
        let lengths = [(shortest - 1, false), (*shortest, true), (*longest, true), (longest + 1, false)];
        for (len, is_message) in lengths {
            let last = Instant::from_nanos(1);
            staging.restore(&StagedPacket { peer: 1, last, message: vec![0; len] });
            assert_eq!(staging.pop(PeerId(1)).is_some(), is_message, "{len} bytes");
        }
    }

    proptest! {
        /// Against a list of all packets in the order of their arrival.
        #[test]
        fn each_peer_keeps_its_latest_packets_and_all_of_them_together_the_latest_bytes(
            steps in prop::collection::vec((0..6_u8, 0..5_u64, 1..60_usize), 0..800),
            bytes_max in 1000..15_000_usize,
        ) {
            let staging = Staging { bytes_max, ..Staging::default() };
            let paths: Vec<_> = (0..4).map(path).collect();
            for path in &paths {
                staging.add_peer(path.id());
            }
            let mut model: Vec<(u64, Vec<u8>)> = Vec::new();
            let taken = |model: &[(u64, Vec<u8>)]| -> usize {
                model.iter().map(|(_, message)| message.len() + EXTRA).sum()
            };
            for (number, (what, peer, len)) in steps.into_iter().enumerate() {
                let Some(path) = paths.get(peer as usize) else { continue };
                match what {
                    0 => {
                        let place = model.iter().position(|(owner, _)| *owner == peer);
                        let expected = place.map(|place| model.remove(place).1);
                        prop_assert_eq!(staging.pop(path.id()), expected);
                    }
                    1 if number % 50 == 0 => {
                        let before = model.len();
                        model.retain(|(owner, _)| *owner != peer);
                        prop_assert_eq!(staging.clear(path.id()), (before - model.len()) as u64);
                    }
                    _ => {
                        let message = vec![number as u8; len];
                        let before = model.len();
                        if model.iter().filter(|(owner, _)| *owner == peer).count() == STAGED_MAX {
                            let oldest = model.iter().position(|(owner, _)| *owner == peer);
                            model.remove(oldest.expect("there are some"));
                        }
                        while taken(&model) + len + EXTRA > bytes_max {
                            model.remove(0);
                        }
                        let dropped = (before - model.len()) as u64;
                        model.push((peer, message.clone()));
                        let staged = stage(&staging, path, &message);
                        prop_assert_eq!(staged.dropped.map_or(0, |(_, count)| count), dropped);
                    }
                }
                let packets = staging.lock();
                prop_assert_eq!(packets.bytes, taken(&model));
                let peers: std::collections::BTreeSet<_> = model.iter().map(|(owner, _)| PeerId(*owner)).collect();
                prop_assert!(packets.by_age.values().copied().collect::<std::collections::BTreeSet<_>>() == peers);
                prop_assert_eq!(packets.by_age.len(), peers.len());
            }
        }
    }
}
