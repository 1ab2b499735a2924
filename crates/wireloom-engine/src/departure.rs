//! A batch of datagrams on its way from the interface to the peers.

use wireloom_proto::{Endpoint, Reserved};

use crate::{crew::Work, udp::Outbound};

/// Datagrams to be sent, some of which may have to be sealed first.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    pub(crate) outbound: Outbound,
    unsealed: Vec<Unsealed>,
}

/// A train of messages that has its counters.
#[derive(Debug)]
struct Unsealed {
    reserved: Reserved,
    /// Its first datagram's place in the batch.
    first: usize,
}

impl Departure {
    /// Makes what stands in the room of the batch, in messages of these lengths, datagrams to be sealed.
    pub(crate) fn push(&mut self, to: Endpoint, lengths: impl Iterator<Item = usize>, reserved: Reserved) {
        self.unsealed.push(Unsealed { reserved, first: self.outbound.datagrams().len() });
        for len in lengths {
            self.outbound.push(to, len);
        }
    }
}

impl Work for Departure {
    /// Seals what is to be sealed.
    fn work(&mut self) {
        let mut end = self.outbound.datagrams().len();
        // From the last one, behind which all is sealed.
        for train in self.unsealed.drain(..).rev() {
            train.reserved.seal(self.outbound.bytes_of(train.first..end));
            end = train.first;
        }
    }
}
