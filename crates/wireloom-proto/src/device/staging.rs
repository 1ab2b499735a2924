//! Packets that wait for a session.

use std::collections::VecDeque;
use std::fmt;

use super::Device;
use crate::endpoint::Endpoint;
use crate::message::{self, DATA_HEADER_LEN, DATA_OVERHEAD};
use crate::peer_id::PeerId;
use crate::time::Now;
use crate::transport::session::SealError;

impl Device {
    /// Sends a keepalive, unless packets wait, which do as well.
    pub(super) fn send_keepalive(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.staged.ensure_one();
        self.send_staged(now, id);
    }

    /// Sends what is staged at the next poll, or gets a session for it.
    pub(super) fn send_staged(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if peer.staged.is_empty() {
            return;
        }
        let current = peer.sessions.current();
        if current.is_some_and(|session| !session.is_expired(now.monotonic)) {
            self.ready.push_back(id);
        } else {
            self.begin_attempt(now, id);
        }
    }

    /// Seals the first staged packet of a peer, puts it into `transmitting` and returns where to send it. `None`
    /// when nothing is staged or there is no session to seal it with.
    pub(super) fn seal_staged(&mut self, now: Now, id: PeerId) -> Option<Endpoint> {
        let peer = self.peers.get_mut(&id)?;
        let message = peer.staged.front_mut()?;
        match peer.path.seal(now.monotonic, std::iter::once(message)) {
            Ok(sealed) => {
                self.transmitting = peer.staged.pop().unwrap_or_default();
                if let Some(signal) = sealed.signal {
                    self.handle_signal(now, signal);
                }
                Some(sealed.endpoint)
            }
            Err(SealError::NoSession) => {
                self.begin_attempt(now, id);
                None
            }
            Err(SealError::NoEndpoint) => None,
        }
    }
}

/// Packets that wait for one peer's session, at most; the kernel's `MAX_STAGED_PACKETS`.
pub(crate) const STAGED_MAX: usize = 128;

/// Packets that wait for a session, laid out as messages that only need sealing.
#[derive(Default)]
pub(crate) struct StagedPackets(VecDeque<Vec<u8>>);

impl fmt::Debug for StagedPackets {
    /// How many: what is in them is private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StagedPackets").field(&self.0.len()).finish()
    }
}

impl StagedPackets {
    /// Adds a packet; false when that pushed the oldest out.
    pub(crate) fn push(&mut self, packet: &[u8], mtu: usize) -> bool {
        let mut message = vec![0; message::data_len(packet.len(), mtu)];
        message[DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        self.0.push_back(message);
        let fits = self.0.len() <= STAGED_MAX;
        if !fits {
            self.0.pop_front();
        }
        fits
    }

    /// Makes sure that something will be sent: a keepalive, when no packet waits.
    pub(crate) fn ensure_one(&mut self) {
        if self.0.is_empty() {
            self.0.push_back(vec![0; DATA_OVERHEAD]);
        }
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut [u8]> {
        self.0.front_mut().map(Vec::as_mut_slice)
    }

    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops all, and returns how many packets (keepalives aside) that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let packets = self.0.drain(..).filter(|message| message.len() > DATA_OVERHEAD);
        packets.count() as u64
    }
}
