//! Datagrams by the batch, in memory that is allocated once.

use std::ops::Range;

use wireloom_proto::{Endpoint, message::DATA_OVERHEAD};

use crate::tun::MAX_PACKET;

/// Datagrams that one call receives, at most: enough to spread the cost of a wake-up, few enough
/// that what they leave in the caches is still there when they are opened.
pub(super) const INBOUND_MAX: usize = 32;
/// Room for the longest datagram (65,507 bytes over IPv4), in whole pages.
const INBOUND_ROOM: usize = 1 << 16;

/// Received datagrams.
#[derive(Debug)]
pub struct Inbound {
    /// `INBOUND_MAX` rooms; the pages of those never used stay unallocated.
    memory: Box<[u8]>,
    received: Vec<(Endpoint, usize)>,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            memory: vec![0; INBOUND_MAX * INBOUND_ROOM].into_boxed_slice(),
            received: Vec::with_capacity(INBOUND_MAX),
        }
    }
}

impl Inbound {
    /// Whether nothing was received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// The datagrams in the order of their arrival, with where they came from.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (Endpoint, &mut [u8])> {
        let rooms = self.memory.chunks_exact_mut(INBOUND_ROOM);
        self.received.iter().zip(rooms).map(|((from, len), room)| (*from, &mut room[..*len]))
    }

    pub(super) fn clear(&mut self) {
        self.received.clear();
    }

    /// The rooms that are free, in the order in which [`Self::push`] takes them.
    pub(super) fn rooms(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory.chunks_exact_mut(INBOUND_ROOM).skip(self.received.len())
    }

    /// Notes what stands at the start of the first free room.
    pub(super) fn push(&mut self, from: Endpoint, len: usize) {
        self.received.push((from, len));
    }
}

/// Bytes of datagrams in one batch to be sent, about: where sending more at a time stops to pay.
const OUTBOUND_ENOUGH: usize = 100 << 10;
/// Datagrams in one batch, at most.
pub(super) const OUTBOUND_MAX: usize = 128;
/// What one datagram may need: the longest packet in a data message.
const OUTBOUND_ROOM: usize = MAX_PACKET + DATA_OVERHEAD;

/// Datagrams to be sent, one close after the other in memory, as segmentation offload will want them.
#[derive(Debug)]
pub struct Outbound {
    memory: Box<[u8]>,
    used: usize,
    datagrams: Vec<(Endpoint, Range<usize>)>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            memory: vec![0; OUTBOUND_ENOUGH + OUTBOUND_ROOM].into_boxed_slice(),
            used: 0,
            datagrams: Vec::with_capacity(OUTBOUND_MAX),
        }
    }
}

impl Outbound {
    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// The datagrams in their order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = (Endpoint, &[u8])> {
        self.datagrams.iter().map(|(to, range)| (*to, &self.memory[range.clone()]))
    }

    /// The datagram at this place and those after it.
    pub(super) fn datagrams_from(&self, first: usize) -> impl Iterator<Item = (Endpoint, &[u8])> {
        self.datagrams[first..].iter().map(|(to, range)| (*to, &self.memory[range.clone()]))
    }

    /// Where the datagram at this place goes to.
    pub(super) fn destination(&self, at: usize) -> Option<Endpoint> {
        self.datagrams.get(at).map(|(to, _)| *to)
    }

    /// Room for `pending` bytes that wait to become datagrams, and after them for one datagram of any
    /// length; `None` when the batch is full and should be sent first.
    pub(crate) fn room(&mut self, pending: Pending) -> Option<&mut [u8]> {
        let start = self.used + pending.bytes;
        let full = start > OUTBOUND_ENOUGH || self.datagrams.len() + pending.datagrams >= OUTBOUND_MAX;
        (!full).then(|| &mut self.memory[start..])
    }

    /// The first `pending.bytes` of the room.
    pub(crate) fn pending(&mut self, pending: Pending) -> &mut [u8] {
        &mut self.memory[self.used..][..pending.bytes]
    }

    /// Makes the first `len` bytes of the room a datagram.
    pub(crate) fn push(&mut self, to: Endpoint, len: usize) {
        let end = self.used + len;
        self.datagrams.push((to, self.used..end));
        self.used = end;
    }

    pub(super) fn clear(&mut self) {
        self.datagrams.clear();
        self.used = 0;
    }
}

/// What stands at the start of an [`Outbound`]'s room, not yet datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) datagrams: usize,
    pub(crate) bytes: usize,
}
