//! Sends what waited for a session, and keepalives.

use super::Device;
use crate::endpoint::Endpoint;
use crate::inner;
use crate::message::{DATA_HEADER_LEN, DATA_OVERHEAD};
use crate::peer_id::PeerId;
use crate::time::Now;
use crate::transport::session::SealError;

/// How often the device goes through a peer's staged packets, as many at a time as can wait, before the data path may
/// use the session all the same: a thread can stage them as fast as they are sent.
const ROUNDS_MAX: usize = 8;

impl Device {
    /// Sends a keepalive, or the staged packets, which serve as one. Begins a handshake when there is no session.
    pub fn send_keepalive(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.keepalive_wanted = true;
        self.send_staged(now, id);
    }

    /// Has the staged packets sent at the next poll, or begins a handshake when there is no session.
    pub(super) fn send_staged(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        if !peer.keepalive_wanted && self.transport.staging.is_empty(id) {
            return;
        }
        let current = peer.sessions.current();
        if current.is_some_and(|session| !session.is_expired(now.monotonic)) {
            self.ready.push_back(id);
        } else {
            self.begin_handshake(now, id);
        }
    }

    /// Seals the first staged packet of a peer, or the keepalive that it is due, moves it to `transmitting` and returns
    /// where to send it. `None` when nothing is to be sent or there is no session.
    pub(super) fn seal_staged(&mut self, now: Now, id: PeerId) -> Option<Endpoint> {
        let peer = self.peers.get_mut(&id)?;
        let session = peer.sessions.current().filter(|session| !session.is_expired(now.monotonic)).cloned();
        let Some(session) = session else {
            self.send_staged(now, id);
            return None;
        };
        self.transmitting = match self.transport.staging.pop(id) {
            Some(message) => message,
            None if peer.keepalive_wanted => vec![0; DATA_OVERHEAD],
            None => return None,
        };
        self.transmitting_ecn = inner::ecn(&self.transmitting[DATA_HEADER_LEN..]);
        // A packet serves as a keepalive.
        peer.keepalive_wanted = false;
        match peer.path.seal_in(&session, now.monotonic, std::iter::once(&mut *self.transmitting)) {
            Ok(sealed) => {
                // Not before what was sealed is sent: the signal may bring a session into use.
                self.put_aside.extend(sealed.signal);
                Some(sealed.endpoint)
            }
            Err(SealError::NoSession) => {
                // It has no counters left, which takes longer than any session lasts.
                self.begin_handshake(now, id);
                None
            }
            Err(SealError::NoEndpoint) => None,
        }
    }

    /// Has the data path send with the current session from now on, or, if packets wait for it, once they are sent.
    /// Call it when the current session has changed.
    pub(super) fn use_current(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let current = peer.sessions.current();
        let last_minute = current.and_then(|session| session.last_minute());
        peer.path.activity.last_minute.set(last_minute);
        peer.rounds_left = ROUNDS_MAX;
        let current = current.cloned();
        if current.is_none() {
            peer.path.set_session(None);
        } else if !self.transport.staging.publish_if_empty(id, || peer.path.set_session(current)) {
            self.ready.push_back(id);
        }
    }

    /// Takes note that all datagrams which [`Self::poll_transmit`] returned were sent. The data path may use new
    /// sessions from now on if nothing waits for them any more. Returns whether something does: poll again then.
    pub fn note_transmitted(&mut self, now: Now) -> bool {
        for signal in std::mem::take(&mut self.put_aside) {
            self.handle_signal(now, signal);
        }
        let mut drained = std::mem::take(&mut self.drained);
        // A peer may have become ready more than once.
        drained.sort_unstable();
        drained.dedup();
        for id in drained {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let current = peer.sessions.current().filter(|session| !session.is_expired(now.monotonic));
            let Some(current) = current.cloned() else {
                self.ask_for_session(now, id);
                continue;
            };
            // The data path may have got as far as the session that comes after it.
            let publish = || peer.path.use_unless(peer.sessions.upcoming(), &current);
            if peer.rounds_left == 0 {
                publish();
            }
            let is_published = self.transport.staging.publish_if_empty(id, publish);
            peer.rounds_left = peer.rounds_left.saturating_sub(1);
            if !is_published {
                self.ready.push_back(id);
            }
        }
        !self.ready.is_empty()
    }
}
