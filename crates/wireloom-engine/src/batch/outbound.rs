//! Batches from the interface to the peers.

use std::{iter, mem, ops::Range};

use wireloom_proto::{
    Endpoint, MessageKind, Reserved, Transmit,
    message::{DATA_HEADER_LEN, DATA_OVERHEAD},
};

use crate::{
    packet::{MAX_PACKET, ecn::Ecn, udp},
    runtime::crypto_pool::Work,
};

/// About as many bytes as one batch sends: beyond this, larger batches no longer pay.
const ENOUGH: usize = 100 << 10;
/// The most datagrams in one batch.
pub(crate) const OUTBOUND_MAX: usize = 128;
const _: () = assert!(OUTBOUND_MAX <= u128::BITS as usize, "lone probes are bits");
/// The longest message: the longest packet, with header and tag.
const ROOM: usize = MAX_PACKET + DATA_OVERHEAD;

/// The type of service, or traffic class, of initiations and responses: AF41, so that they get through where data is
/// queued; the kernel's `HANDSHAKE_DSCP` (drivers/net/wireguard/messages.h). All other datagrams have 0 in these bits.
const HANDSHAKE_CLASS: u8 = 0x88;

/// A datagram of a batch.
#[derive(Debug)]
struct Datagram {
    to: Endpoint,
    /// Where it stands in the batch's memory.
    range: Range<usize>,
    /// Its type of service, or traffic class.
    class: u8,
}

/// Datagrams that one send takes (`UDP_SEGMENT` of udp(7)): to one destination and of one class, adjacent in memory,
/// and of one size but for the last, which may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GsoRun<'b> {
    pub(crate) to: Endpoint,
    pub(crate) bytes: &'b [u8],
    /// The length of each datagram but the last, in bytes.
    pub(crate) size: usize,
    pub(crate) count: usize,
    /// The type of service, or traffic class, of each.
    pub(crate) class: u8,
    /// See [`OutboundBatch::only_probe_with`].
    pub(crate) lone_probe: bool,
}

/// Datagrams to be sent, adjacent in memory, as segmentation offload wants them. Some of them may not be sealed
/// yet, so the batch itself cannot be sent: [`Self::seal`] turns it into a [`SealedBatch`].
#[derive(Debug)]
pub(crate) struct OutboundBatch {
    memory: Box<[u8]>,
    used: usize,
    datagrams: Vec<Datagram>,
    unsealed: Vec<UnsealedRun>,
    /// The positions of datagrams that also probe the path MTU.
    probes: Vec<usize>,
    /// The positions of datagrams that are nothing but such a probe, one bit each: they are sent unfragmented or not at
    /// all.
    lone_probes: u128,
}

/// Messages to one peer that are laid out and have their counters, but are still plaintext.
#[derive(Debug)]
struct UnsealedRun {
    reserved: Reserved,
    /// Their positions in the batch.
    positions: Range<usize>,
}

/// A batch whose datagrams are all sealed. Only [`OutboundBatch::seal`] makes one, and only this can be sent.
#[derive(Debug)]
pub(crate) struct SealedBatch<'b>(&'b mut OutboundBatch);

/// Messages at the start of the batch's free room that are not datagrams of it yet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Default for OutboundBatch {
    fn default() -> Self {
        Self {
            memory: vec![0; ENOUGH + ROOM].into_boxed_slice(),
            used: 0,
            datagrams: Vec::with_capacity(OUTBOUND_MAX),
            unsealed: Vec::new(),
            probes: Vec::new(),
            lone_probes: 0,
        }
    }
}

impl OutboundBatch {
    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// The total length of all datagrams, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.used
    }

    /// Room for one more message of any length, behind those that are `pending`. `None` when the batch is full and
    /// has to be sent first.
    pub(crate) fn room(&mut self, pending: Pending) -> Option<&mut [u8]> {
        let start = self.used + pending.bytes;
        let full = start > ENOUGH || self.datagrams.len() + pending.messages >= OUTBOUND_MAX;
        (!full).then(|| &mut self.memory[start..])
    }

    /// The first `len` bytes of the free room.
    pub(crate) fn pending(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.used..][..len]
    }

    /// Adds messages of these lengths, which stand at the start of the free room, to be sealed later. Each carries a
    /// packet, whose congestion notification it shows (RFC 6040, section 4.1).
    pub(crate) fn push_unsealed(&mut self, lengths: impl Iterator<Item = usize>, reserved: Reserved) {
        let first = self.datagrams.len();
        for len in lengths {
            let ecn = Ecn::of_packet(&self.pending(len)[DATA_HEADER_LEN..]);
            self.push(reserved.endpoint, len, ecn as u8);
        }
        self.unsealed.push(UnsealedRun { reserved, positions: first..self.datagrams.len() });
    }

    /// Has a datagram probe the path MTU: it stands this many positions before the end.
    pub(crate) fn probe_with(&mut self, before_end: usize) {
        self.probes.push(self.datagrams.len() - before_end);
    }

    /// As [`Self::probe_with`], and sends the datagram in no other way.
    pub(crate) fn only_probe_with(&mut self, before_end: usize) {
        self.lone_probes |= 1 << (self.datagrams.len() - before_end);
    }

    /// Adds a copy of a datagram that the device sends. There must be [`room`](Self::room) for it.
    pub(crate) fn push_transmit(&mut self, transmit: &Transmit<'_>) {
        let len = transmit.datagram.len();
        self.pending(len).copy_from_slice(transmit.datagram);
        let is_handshake = matches!(
            MessageKind::classify(transmit.datagram),
            Ok(MessageKind::Initiation | MessageKind::Response)
        );
        self.push(transmit.endpoint, len, if is_handshake { HANDSHAKE_CLASS } else { transmit.ecn });
    }

    fn push(&mut self, to: Endpoint, len: usize, class: u8) {
        let end = self.used + len;
        self.datagrams.push(Datagram { to, range: self.used..end, class });
        self.used = end;
    }

    /// Seals whatever is not sealed yet. It costs nothing when a helper of the crypto pool has done so.
    pub(crate) fn seal(&mut self) -> SealedBatch<'_> {
        for UnsealedRun { reserved, positions } in self.unsealed.drain(..) {
            reserved.seal(messages(&self.datagrams[positions], &mut self.memory));
        }
        SealedBatch(self)
    }
}

/// The messages of adjacent datagrams.
fn messages<'b>(
    datagrams: &'b [Datagram],
    memory: &'b mut [u8],
) -> impl ExactSizeIterator<Item = &'b mut [u8]> {
    let start = datagrams.first().map_or(0, |first| first.range.start);
    let mut memory = &mut memory[start..];
    datagrams.iter().map(move |datagram| {
        let (message, rest) = mem::take(&mut memory).split_at_mut(datagram.range.len());
        memory = rest;
        message
    })
}

impl Work for OutboundBatch {
    fn work(&mut self) {
        self.seal();
    }
}

impl SealedBatch<'_> {
    /// The datagrams in order, with their destinations and classes.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn datagrams(&self) -> impl ExactSizeIterator<Item = (Endpoint, &[u8], u8)> {
        self.0
            .datagrams
            .iter()
            .map(|datagram| (datagram.to, &self.0.memory[datagram.range.clone()], datagram.class))
    }

    /// The datagrams from position `first` on, in runs of at most `most` datagrams. A lone probe is a run by itself.
    pub(crate) fn runs_from(&self, first: usize, most: usize) -> impl Iterator<Item = GsoRun<'_>> {
        let mut left = &self.0.datagrams[first..];
        let mut position = first;
        iter::from_fn(move || {
            let Datagram { to, range, class } = left.first()?;
            let (size, start) = (range.len(), range.start);
            let mut end = range.end;
            let mut count = 1;
            let lone_probe = self.is_lone_probe(position);
            while let Some(Datagram { to: next_to, range: next, class: next_class }) = left.get(count)
                && count < most
                && !lone_probe
                && !self.is_lone_probe(position + count)
                && next_to == to
                && next_class == class
                && next.start == end
                && next.len() <= size
                // Only the last one may be shorter.
                && end - start == count * size
                && next.end - start <= udp::PAYLOAD_MAX
            {
                end = next.end;
                count += 1;
            }
            left = &left[count..];
            position += count;
            Some(GsoRun {
                to: *to,
                bytes: &self.0.memory[start..end],
                size,
                count,
                class: *class,
                lone_probe,
            })
        })
    }

    /// The positions of the datagrams that probe the path MTU, each once.
    pub(crate) fn probes(&self) -> impl Iterator<Item = usize> {
        let mut left = self.0.lone_probes;
        let lone = iter::from_fn(move || {
            let position = left.trailing_zeros();
            left &= left.wrapping_sub(1);
            (position < u128::BITS).then_some(position as usize)
        });
        self.0.probes.iter().copied().filter(|position| !self.is_lone_probe(*position)).chain(lone)
    }

    /// Whether the datagram at this position is sent only as a probe.
    pub(crate) fn is_lone_probe(&self, position: usize) -> bool {
        self.0.lone_probes >> position & 1 == 1
    }

    /// The destination of the datagram at this position.
    pub(crate) fn destination(&self, position: usize) -> Option<Endpoint> {
        self.0.datagrams.get(position).map(|datagram| datagram.to)
    }

    /// Empties the batch.
    pub(crate) fn clear(self) {
        self.0.datagrams.clear();
        self.0.probes.clear();
        self.0.lone_probes = 0;
        self.0.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::from(std::net::SocketAddr::from(([192, 0, 2, 1], port)))
    }

    /// The number of datagrams and of bytes of each run, for datagrams given by destination port and length.
    fn runs(most: usize, datagrams: &[(u16, usize)]) -> Vec<(usize, usize)> {
        let mut batch = OutboundBatch::default();
        for (port, len) in datagrams {
            batch.push(endpoint(*port), *len, 0);
        }
        let batch = batch.seal();
        let runs: Vec<_> = batch.runs_from(0, most).collect();
        assert_eq!(runs.iter().map(|run| run.count).sum::<usize>(), datagrams.len());
        assert!(runs.iter().all(|run| run.bytes.len() <= run.count * run.size));
        runs.iter().map(|run| (run.count, run.bytes.len())).collect()
    }

    #[test]
    fn runs_have_one_destination_and_one_size_and_end_with_a_shorter_datagram() {
        assert_eq!(runs(64, &[(1, 100), (1, 100), (1, 60), (1, 60)]), [(3, 260), (1, 60)]);
        assert_eq!(runs(64, &[(1, 60), (1, 100), (1, 100)]), [(1, 60), (2, 200)]);
        assert_eq!(runs(64, &[(1, 60), (2, 60), (2, 60), (1, 60)]), [(1, 60), (2, 120), (1, 60)]);
        assert_eq!(runs(64, &[]), []);
    }

    #[test]
    fn a_lone_probe_is_a_run_by_itself() {
        let mut batch = OutboundBatch::default();
        for _ in 0..5 {
            batch.push(endpoint(1), 60, 0);
        }
        [3, 1].iter().for_each(|before_end| batch.only_probe_with(*before_end));
        // The first one is also the longest, and its turn has come.
        [3, 5].iter().for_each(|before_end| batch.probe_with(*before_end));
        let batch = batch.seal();
        let runs: Vec<_> = batch.runs_from(0, 64).map(|run| (run.count, run.lone_probe)).collect();
        assert_eq!(runs, [(2, false), (1, true), (1, false), (1, true)]);
        assert_eq!(batch.probes().collect::<Vec<_>>(), [0, 2, 4]);
    }

    #[test]
    fn datagrams_of_different_classes_are_not_in_one_run() {
        let mut batch = OutboundBatch::default();
        for class in [0x88, 0, 0, 2, 2, 3, 2] {
            batch.push(endpoint(1), 60, class);
        }
        let batch = batch.seal();
        let runs: Vec<_> = batch.runs_from(0, 64).map(|run| (run.class, run.count)).collect();
        assert_eq!(runs, [(0x88, 1), (0, 2), (2, 2), (3, 1), (2, 1)]);
    }

    #[test]
    fn handshakes_and_no_other_messages_of_the_device_have_a_class_of_their_own() {
        let mut batch = OutboundBatch::default();
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            let mut datagram = vec![0; len];
            datagram[0] = kind;
            batch.push_transmit(&Transmit { endpoint: endpoint(1), datagram: &datagram, ecn: 0 });
        }
        let batch = batch.seal();
        assert_eq!(batch.datagrams().map(|(_, _, class)| class).collect::<Vec<_>>(), [0x88, 0x88, 0, 0]);
    }

    #[test]
    fn runs_are_bounded_in_datagrams_and_bytes() {
        assert_eq!(runs(2, &[(1, 10); 5]), [(2, 20), (2, 20), (1, 10)]);
        assert_eq!(runs(1, &[(1, 10); 2]), [(1, 10), (1, 10)]);
        assert_eq!(runs(64, &[(1, 1452); 50]), [(45, 45 * 1452), (5, 5 * 1452)]);
    }
}
