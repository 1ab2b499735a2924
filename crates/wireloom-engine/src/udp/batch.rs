//! Datagrams by the batch, in memory that is allocated once.

use std::{iter, mem, ops::Range};

use wireloom_proto::{Endpoint, message::DATA_OVERHEAD};

use crate::tun::MAX_PACKET;

/// Bytes that one batch receives, about: enough to spread the cost of a wake-up, few enough that they are
/// still in the cache (of the second level) when they are opened, and that others get their turn soon.
const INBOUND_ENOUGH: usize = 256 << 10;
/// Messages in one batch, at most and at least. One message is a datagram or, where receive offload puts
/// them together, a train of them; which it will be is guessed from the batch before.
pub(super) const INBOUND_MAX: usize = 64;
const INBOUND_MIN: usize = 8;
/// Room for the longest datagram (65,507 bytes over IPv4), in whole pages.
const INBOUND_ROOM: usize = 1 << 16;

/// Received datagrams.
#[derive(Debug)]
pub struct Inbound {
    /// `INBOUND_MAX` rooms; the pages of those never used stay unallocated.
    memory: Box<[u8]>,
    received: Vec<Received>,
    /// How many rooms this batch may use.
    limit: usize,
}

/// What stands in one room: a datagram, or a train of them that receive offload put together.
#[derive(Clone, Copy, Debug)]
struct Received {
    from: Endpoint,
    len: usize,
    /// The length of each datagram but the last.
    size: usize,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            memory: vec![0; INBOUND_MAX * INBOUND_ROOM].into_boxed_slice(),
            received: Vec::with_capacity(INBOUND_MAX),
            limit: INBOUND_MAX,
        }
    }
}

impl Inbound {
    /// Whether nothing was received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Whether it holds as much as it may, so that more is likely to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.received.len() >= self.limit
    }

    /// Bytes of all datagrams together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.received.iter().map(|received| received.len).sum()
    }

    /// The datagrams in the order of their arrival, with where they came from.
    pub fn datagrams(&mut self) -> impl Iterator<Item = (Endpoint, &mut [u8])> {
        let rooms = self.memory.chunks_exact_mut(INBOUND_ROOM);
        self.received.iter().zip(rooms).flat_map(|(received, room)| {
            let from = received.from;
            // An empty datagram is one, too.
            let empty = (received.len == 0).then(<&mut [u8]>::default);
            room[..received.len]
                .chunks_mut(received.size.max(1))
                .chain(empty)
                .map(move |datagram| (from, datagram))
        })
    }

    /// Where they came from, in the same order; that of a train once.
    pub(super) fn sources(&self) -> impl Iterator<Item = Endpoint> {
        self.received.iter().map(|received| received.from)
    }

    /// How many rooms the batch after this one may use.
    pub(crate) fn next_limit(&self) -> usize {
        let average = self.bytes().checked_div(self.received.len());
        average
            .map_or(self.limit, |average| (INBOUND_ENOUGH / average.max(1)).clamp(INBOUND_MIN, INBOUND_MAX))
    }

    /// Begins a batch that may use so many rooms.
    pub(crate) fn begin(&mut self, limit: usize) {
        self.limit = limit;
        self.received.clear();
    }

    /// Begins the next batch.
    pub(super) fn clear(&mut self) {
        self.begin(self.next_limit());
    }

    /// The rooms that are free, in the order in which [`Self::push`] takes them.
    pub(crate) fn rooms(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory.chunks_exact_mut(INBOUND_ROOM).take(self.limit).skip(self.received.len())
    }

    /// Notes what stands at the start of the first free room: `len` bytes of datagrams of `size` bytes
    /// each, the last of which may be shorter.
    pub(crate) fn push(&mut self, from: Endpoint, len: usize, size: usize) {
        self.received.push(Received { from, len, size });
    }
}

/// Bytes of datagrams in one batch to be sent, about: where sending more at a time stops to pay.
const OUTBOUND_ENOUGH: usize = 100 << 10;
/// Datagrams in one batch, at most.
pub(super) const OUTBOUND_MAX: usize = 128;
/// What one datagram may need: the longest packet in a data message.
const OUTBOUND_ROOM: usize = MAX_PACKET + DATA_OVERHEAD;

/// The most that one send takes: what the length field of UDP leaves over IPv4.
const RUN_MAX: usize = 65_507;

/// Datagrams that one send takes (`UDP_SEGMENT` of udp(7)): to one place, one after the other in
/// memory, of one size but for the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'b> {
    pub(super) to: Endpoint,
    pub(super) bytes: &'b [u8],
    pub(super) size: usize,
    pub(super) count: usize,
}

/// Datagrams to be sent, one close after the other in memory, as segmentation offload wants them.
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

    /// Bytes of all datagrams together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.used
    }

    /// The datagrams in their order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = (Endpoint, &[u8])> {
        self.datagrams.iter().map(|(to, range)| (*to, &self.memory[range.clone()]))
    }

    /// The datagram at this place and those after it, in runs of `most` datagrams at most.
    pub(super) fn runs_from(&self, first: usize, most: usize) -> impl Iterator<Item = Run<'_>> {
        let mut left = &self.datagrams[first..];
        iter::from_fn(move || {
            let (to, range) = left.first()?;
            let (size, start) = (range.len(), range.start);
            let mut end = range.end;
            let mut count = 1;
            while let Some((next_to, next)) = left.get(count)
                && count < most
                && next_to == to
                && next.start == end
                && next.len() <= size
                // Only the last one may be shorter.
                && end - start == count * size
                && next.end - start <= RUN_MAX
            {
                end = next.end;
                count += 1;
            }
            left = &left[count..];
            Some(Run { to: *to, bytes: &self.memory[start..end], size, count })
        })
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

    /// The bytes of the datagrams at these places.
    pub(crate) fn bytes_of(&mut self, places: Range<usize>) -> impl ExactSizeIterator<Item = &mut [u8]> {
        let datagrams = &self.datagrams[places];
        let start = datagrams.first().map_or(0, |(_, range)| range.start);
        let mut memory = &mut self.memory[start..];
        datagrams.iter().map(move |(_, range)| {
            let (datagram, rest) = mem::take(&mut memory).split_at_mut(range.len());
            memory = rest;
            datagram
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of the runs, of batches of datagrams that are told by place and length.
    fn runs(most: usize, datagrams: &[(u16, usize)]) -> Vec<(usize, usize)> {
        let mut batch = Outbound::default();
        for (port, len) in datagrams {
            batch.push(Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], *port))), *len);
        }
        let runs: Vec<_> = batch.runs_from(0, most).collect();
        assert_eq!(runs.iter().map(|run| run.count).sum::<usize>(), datagrams.len());
        assert!(runs.iter().all(|run| run.bytes.len() <= run.count * run.size));
        runs.iter().map(|run| (run.count, run.bytes.len())).collect()
    }

    #[test]
    fn runs_are_of_one_size_and_end_with_a_shorter_one() {
        assert_eq!(runs(64, &[(1, 100), (1, 100), (1, 60), (1, 60)]), [(3, 260), (1, 60)]);
        assert_eq!(runs(64, &[(1, 60), (1, 100), (1, 100)]), [(1, 60), (2, 200)]);
        assert_eq!(runs(64, &[(1, 60), (2, 60), (2, 60), (1, 60)]), [(1, 60), (2, 120), (1, 60)]);
        assert_eq!(runs(64, &[]), []);
    }

    #[test]
    fn runs_are_bounded() {
        assert_eq!(runs(2, &[(1, 10); 5]), [(2, 20), (2, 20), (1, 10)]);
        assert_eq!(runs(1, &[(1, 10); 2]), [(1, 10), (1, 10)]);
        assert_eq!(runs(64, &[(1, 1452); 50]), [(45, 45 * 1452), (5, 5 * 1452)]);
    }

    #[test]
    fn long_messages_are_received_by_the_few_and_short_ones_by_the_many() {
        let mut batch = Inbound::default();
        let from = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        for (len, rooms) in [(100, INBOUND_MAX), (65_000, INBOUND_MIN), (16_384, 16), (0, INBOUND_MAX)] {
            while batch.rooms().next().is_some() {
                batch.push(from, len, len.min(1452));
            }
            batch.clear();
            assert_eq!(batch.rooms().count(), rooms, "{len}");
            // Nothing came: nothing is known.
            batch.clear();
            assert_eq!(batch.rooms().count(), rooms, "{len}");
        }
    }

    #[test]
    fn a_train_is_its_datagrams() {
        let mut batch = Inbound::default();
        let from = Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], 1)));
        for (len, size) in [(250, 100), (0, 0), (40, 40)] {
            batch.push(from, len, size);
        }
        assert_eq!(
            batch.datagrams().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>(),
            [100, 100, 50, 0, 40]
        );
    }
}
