//! Staged packets: those that wait for a session.

use std::collections::VecDeque;
use std::fmt;

use super::Device;
use crate::endpoint::Endpoint;
use crate::message::{self, DATA_HEADER_LEN, DATA_OVERHEAD};
use crate::peer_id::PeerId;
use crate::time::Now;
use crate::transport::session::SealError;

impl Device {
    /// Sends a keepalive, or the staged packets, which serve as one.
    pub(super) fn send_keepalive(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.staged.ensure_one();
        self.send_staged(now, id);
    }

    /// Has the staged packets sent at the next poll, or begins a handshake when there is no session.
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
            self.begin_handshake(now, id);
        }
    }

    /// Seals the first staged packet of a peer, moves it to `transmitting` and returns where to send it. `None` when
    /// nothing is staged or there is no session.
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
                self.begin_handshake(now, id);
                None
            }
            Err(SealError::NoEndpoint) => None,
        }
    }
}

/// The most packets that are staged for one peer; the kernel's `MAX_STAGED_PACKETS`.
const STAGED_MAX: usize = 128;

/// Packets that wait for a session, laid out as messages to be sealed.
#[derive(Default)]
pub(super) struct StagedPackets(VecDeque<Vec<u8>>);

impl fmt::Debug for StagedPackets {
    /// Shows their number only: their contents are private.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StagedPackets").field(&self.0.len()).finish()
    }
}

impl StagedPackets {
    /// Adds a packet. Returns false when the oldest one had to be dropped for it.
    pub(super) fn push(&mut self, packet: &[u8], mtu: usize) -> bool {
        let mut message = vec![0; message::data_len(packet.len(), mtu)];
        message[DATA_HEADER_LEN..][..packet.len()].copy_from_slice(packet);
        self.0.push_back(message);
        let fits = self.0.len() <= STAGED_MAX;
        if !fits {
            self.0.pop_front();
        }
        fits
    }

    /// Adds a keepalive if nothing is staged.
    pub(super) fn ensure_one(&mut self) {
        if self.0.is_empty() {
            self.0.push_back(vec![0; DATA_OVERHEAD]);
        }
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut [u8]> {
        self.0.front_mut().map(Vec::as_mut_slice)
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops everything, and returns the number of packets, without keepalives.
    pub(super) fn clear(&mut self) -> u64 {
        let packets = self.0.drain(..).filter(|message| message.len() > DATA_OVERHEAD);
        packets.count() as u64
    }
}
