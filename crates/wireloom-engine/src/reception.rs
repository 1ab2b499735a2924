//! A batch of datagrams on its way from the peers to the interface.

use std::sync::Arc;

use wireloom_proto::{Decrypted, Instant, MessageKind, Outcome, Transport};

use crate::{crew::Work, udp::Inbound};

/// Datagrams that were received, which a helper may have decrypted.
#[derive(Debug, Default)]
pub(crate) struct Reception {
    pub(crate) inbound: Inbound,
    decrypted: Decrypted,
    /// Whose sessions decrypt it, while it is to be decrypted.
    transport: Option<Arc<Transport>>,
}

impl Reception {
    /// Whether it is full, so that another batch is likely to wait, and of messages to be decrypted, as the
    /// first one tells: a flood of handshakes is nothing that helpers could help with.
    pub(crate) fn is_worth_help(&mut self) -> bool {
        self.inbound.is_full()
            && self
                .inbound
                .datagrams()
                .next()
                .is_some_and(|(_, first)| MessageKind::classify(first) == Ok(MessageKind::Data))
    }

    /// Has it decrypted with these sessions by the [`Work`] on it.
    pub(crate) fn decrypt_with(&mut self, transport: &Arc<Transport>) {
        self.transport = Some(Arc::clone(transport));
    }

    /// Opens the datagrams, decrypted or not, and tells in order what became of each.
    pub(crate) fn open<'m>(
        &'m mut self,
        now: Instant,
        transport: &Transport,
        outcome: impl FnMut(Outcome<'_, 'm>),
    ) {
        transport.accept_batch(now, self.inbound.datagrams(), &mut self.decrypted, outcome);
    }
}

impl Work for Reception {
    /// Decrypts the datagrams. They are not accepted by that: see [`Transport::accept_batch`].
    fn work(&mut self) {
        if let Some(transport) = self.transport.take() {
            transport.decrypt_batch(self.inbound.datagrams(), &mut self.decrypted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wireloom_proto::{Endpoint, message};

    use super::*;

    /// As many datagrams as fit, or one fewer, the first of which is this one.
    fn batch(first: &[u8], full: bool) -> Reception {
        let mut reception = Reception::default();
        let rooms = reception.inbound.rooms().count();
        reception.inbound.rooms().next().expect("it is empty")[..first.len()].copy_from_slice(first);
        for _ in 0..rooms - usize::from(!full) {
            let from = Endpoint::from(SocketAddr::from(([192, 0, 2, 1], 51820)));
            reception.inbound.push(from, first.len(), first.len());
        }
        reception
    }

    #[test]
    fn helpers_are_for_full_batches_of_data() {
        let data = [&[4, 0, 0, 0][..], &[0; 28]].concat();
        assert!(batch(&data, true).is_worth_help());
        assert!(!batch(&data, false).is_worth_help(), "it goes at once");
        let initiation = [&[1, 0, 0, 0][..], &[0; message::INITIATION_LEN - 4]].concat();
        assert!(!batch(&initiation, true).is_worth_help());
        assert!(!Reception::default().is_worth_help());
    }
}
