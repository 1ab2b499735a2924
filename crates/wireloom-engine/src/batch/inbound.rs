//! Batches from the peers to the interface.

use std::sync::Arc;

use wireloom_proto::{Decrypted, Endpoint, Instant, MessageKind, Outcome, Transport};

use crate::{packet::ecn::Ecn, runtime::crypto_pool::Work};

/// About as many bytes as one batch receives: enough to spread the cost of a wake-up over many datagrams, but few
/// enough to be still in the second-level cache when they are opened, and to let the other direction have its turn
/// soon.
const ENOUGH: usize = 256 << 10;
/// The most rooms that a batch may use, and the fewest. A room takes one datagram or one GRO run.
pub(crate) const INBOUND_MAX: usize = 64;
const INBOUND_MIN: usize = 8;
/// Room for the longest datagram (65,507 bytes over IPv4), in whole pages.
const ROOM: usize = 1 << 16;

/// Received datagrams, which the crypto pool may have decrypted.
#[derive(Debug)]
pub(crate) struct InboundBatch {
    /// `INBOUND_MAX` rooms. The pages of rooms that are never used stay unallocated.
    memory: Box<[u8]>,
    received: Vec<Received>,
    /// How many rooms this batch may use.
    limit: usize,
    decrypted: Decrypted,
    /// The sessions to decrypt with, until [`Work::work`] has done so.
    transport: Option<Arc<Transport>>,
}

/// The content of one room: a datagram, or several that receive offload (`UDP_GRO` of udp(7)) put together.
#[derive(Clone, Copy, Debug)]
struct Received {
    from: Endpoint,
    len: usize,
    /// The length of each datagram but the last, in bytes.
    size: usize,
    /// With which field they arrived. Only datagrams that agree in it are put together (`udp_gro_receive_segment` in
    /// net/ipv4/udp_offload.c). Kernels without that check, which came in 2024 and to the stable ones then, too, put
    /// others together as well; the first one's field counts for all there.
    ecn: Ecn,
}

impl Default for InboundBatch {
    fn default() -> Self {
        Self {
            memory: vec![0; INBOUND_MAX * ROOM].into_boxed_slice(),
            received: Vec::with_capacity(INBOUND_MAX),
            limit: INBOUND_MAX,
            decrypted: Decrypted::default(),
            transport: None,
        }
    }
}

impl InboundBatch {
    /// Whether nothing was received.
    pub(crate) fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Whether it is as full as it may be, so that more datagrams probably wait in the socket.
    fn is_full(&self) -> bool {
        self.received.len() >= self.limit
    }

    /// The total length of all datagrams, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.received.iter().map(|received| received.len).sum()
    }

    /// The datagrams in the order of their arrival, with their sources.
    fn datagrams(&mut self) -> impl Iterator<Item = (Endpoint, &mut [u8])> {
        datagrams(&self.received, &mut self.memory)
    }

    /// The sources in the order of arrival, one for each room.
    pub(crate) fn sources(&self) -> impl Iterator<Item = Endpoint> {
        self.received.iter().map(|received| received.from)
    }

    /// How many rooms the next batch may use: as many as fill [`ENOUGH`] bytes if its datagrams are as long as these.
    pub(crate) fn next_limit(&self) -> usize {
        let average = self.bytes().checked_div(self.received.len());
        average.map_or(self.limit, |average| (ENOUGH / average.max(1)).clamp(INBOUND_MIN, INBOUND_MAX))
    }

    /// Empties the batch, which may then use `limit` rooms.
    pub(crate) fn begin(&mut self, limit: usize) {
        self.limit = limit;
        self.received.clear();
    }

    /// Empties the batch to receive the next one.
    pub(crate) fn clear(&mut self) {
        self.begin(self.next_limit());
    }

    /// The free rooms, in the order in which [`Self::push`] takes them.
    pub(crate) fn rooms(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory.chunks_exact_mut(ROOM).take(self.limit).skip(self.received.len())
    }

    /// Records that the first free room has been filled with `len` bytes: datagrams of `size` bytes each, the last
    /// of which may be shorter, and all of which arrived with this congestion notification.
    pub(crate) fn push(&mut self, from: Endpoint, len: usize, size: usize, ecn: Ecn) {
        self.received.push(Received { from, len, size, ecn });
    }

    /// Whether a helper should decrypt it: it is full, so that another batch probably waits, and it begins with a
    /// data message. In a flood of handshake messages there is nothing to decrypt.
    pub(crate) fn is_worth_a_job(&mut self) -> bool {
        self.is_full()
            && self
                .datagrams()
                .next()
                .is_some_and(|(_, first)| MessageKind::classify(first) == Ok(MessageKind::Data))
    }

    /// Sets the sessions that [`Work::work`] decrypts with.
    pub(crate) fn decrypt_with(&mut self, transport: &Arc<Transport>) {
        self.transport = Some(Arc::clone(transport));
    }

    /// Opens the datagrams, decrypted already or not, and reports the outcome of each in order, with the congestion
    /// notification of what was opened.
    pub(crate) fn open<'m>(
        &'m mut self,
        now: Instant,
        transport: &Transport,
        mut outcome: impl FnMut(Outcome<'_, 'm>, Ecn),
    ) {
        let start = self.memory.as_ptr().addr();
        let received = &self.received;
        let is_concerned = received.iter().any(|received| received.ecn.concerns_the_inner_packet());
        let datagrams = datagrams(received, &mut self.memory);
        transport.accept_batch(now, datagrams, &mut self.decrypted, |opened| {
            let ecn = match &opened {
                Outcome::Opened { payload, .. } if is_concerned => {
                    let room = payload.as_ptr().addr().wrapping_sub(start) / ROOM;
                    // An empty payload may stand anywhere.
                    received.get(room).map_or(Ecn::NotEct, |received| received.ecn)
                }
                _ => Ecn::NotEct,
            };
            outcome(opened, ecn);
        });
    }
}

fn datagrams<'b>(
    received: &'b [Received],
    memory: &'b mut [u8],
) -> impl Iterator<Item = (Endpoint, &'b mut [u8])> {
    let rooms = memory.chunks_exact_mut(ROOM);
    received.iter().zip(rooms).flat_map(|(received, room)| {
        let from = received.from;
        // `chunks_mut` leaves an empty datagram out.
        let empty = (received.len == 0).then(<&mut [u8]>::default);
        room[..received.len]
            .chunks_mut(received.size.max(1))
            .chain(empty)
            .map(move |datagram| (from, datagram))
    })
}

impl Work for InboundBatch {
    /// Decrypts the datagrams. Only [`Self::open`] accepts them: see [`Transport::accept_batch`].
    fn work(&mut self) {
        if let Some(transport) = self.transport.take() {
            let datagrams = datagrams(&self.received, &mut self.memory);
            transport.decrypt_batch(datagrams, &mut self.decrypted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wireloom_proto::message;

    use super::*;

    fn peer() -> Endpoint {
        Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 51820)))
    }

    /// A batch that begins with this datagram and is full, or one short of it.
    fn batch(first: &[u8], full: bool) -> InboundBatch {
        let mut batch = InboundBatch::default();
        let rooms = batch.rooms().count();
        batch.rooms().next().expect("it is empty")[..first.len()].copy_from_slice(first);
        for _ in 0..rooms - usize::from(!full) {
            batch.push(peer(), first.len(), first.len(), Ecn::NotEct);
        }
        batch
    }

    #[test]
    fn only_full_batches_of_data_go_to_the_crypto_pool() {
        let data = [&[4, 0, 0, 0][..], &[0; 28]].concat();
        assert!(batch(&data, true).is_worth_a_job());
        assert!(!batch(&data, false).is_worth_a_job(), "no other batch waits");
        let initiation = [&[1, 0, 0, 0][..], &[0; message::INITIATION_LEN - 4]].concat();
        assert!(!batch(&initiation, true).is_worth_a_job());
        assert!(!InboundBatch::default().is_worth_a_job());
    }

    #[test]
    fn the_next_batch_has_fewer_rooms_after_long_messages() {
        let mut batch = InboundBatch::default();
        for (len, rooms) in [(100, INBOUND_MAX), (65_000, INBOUND_MIN), (16_384, 16), (0, INBOUND_MAX)] {
            while batch.rooms().next().is_some() {
                batch.push(peer(), len, len.min(1452), Ecn::NotEct);
            }
            batch.clear();
            assert_eq!(batch.rooms().count(), rooms, "{len}");
            // An empty batch says nothing about the next one.
            batch.clear();
            assert_eq!(batch.rooms().count(), rooms, "{len}");
        }
    }

    #[test]
    fn a_gro_run_is_split_into_its_datagrams() {
        let mut batch = InboundBatch::default();
        for (len, size) in [(250, 100), (0, 0), (40, 40)] {
            batch.push(peer(), len, size, Ecn::NotEct);
        }
        assert_eq!(
            batch.datagrams().map(|(_, datagram)| datagram.len()).collect::<Vec<_>>(),
            [100, 100, 50, 0, 40]
        );
    }
}
