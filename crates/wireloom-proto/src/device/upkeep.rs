//! Upkeep of peers: their timers, their staged packets, their coming and going.

use std::time::Duration;

use rand_chacha::rand_core::Rng;
use wireloom_types::PublicKey;

use super::Device;
use crate::endpoint::Endpoint;
use crate::peer::{Due, Peer};
use crate::peer_id::PeerId;
use crate::session::SealError;
use crate::time::{Now, nanos};
use crate::timers::{REKEY_TIMEOUT_JITTER_MAX, UNANSWERED_TIMEOUT};

impl Device {
    /// Does what one timer asks for. Each arm removes its cause or moves it to the future.
    pub(super) fn handle_due(&mut self, now: Now, id: PeerId, due: Due) {
        let jitter = self.jitter();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match due {
            Due::Wipe => {
                peer.wipe_at = None;
                self.wipe_sessions(id);
            }
            Due::RetryHandshake => self.retry_handshake(now, id),
            Due::Unanswered => {
                peer.path.activity.unanswered_since.clear();
                peer.jitter = jitter;
                peer.path.forget_local_address();
                self.begin_attempt(now, id);
            }
            Due::Keepalive => {
                peer.path.activity.owing_since.clear();
                self.send_keepalive(now, id);
            }
            Due::PersistentKeepalive => {
                peer.path.activity.traversed.set(Some(now.monotonic));
                self.send_keepalive(now, id);
            }
        }
    }

    fn retry_handshake(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // One lost initiation of a renewal proves nothing while the peer is heard.
        let heard = peer.path.activity.heard.get();
        if heard.is_none_or(|heard| now.monotonic.since(heard) >= UNANSWERED_TIMEOUT) {
            peer.path.set_silent(true);
        }
        if peer.attempt.is_none_or(|attempt| attempt.is_hopeless(now.monotonic)) {
            self.timed_out_packets += peer.staged.clear();
            self.end_attempt(id);
            return;
        }
        peer.path.forget_local_address();
        self.send_initiation(now, id);
    }

    /// Sends a keepalive, unless packets wait, which do as well.
    fn send_keepalive(&mut self, now: Now, id: PeerId) {
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

    /// Puts a peer's next timer into the order of deadlines.
    pub(super) fn reschedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let look = peer.path.activity.plan_look(|| peer.next_due().map(|(at, _)| at));
        if look != peer.scheduled {
            if let Some(at) = peer.scheduled {
                self.deadlines.remove(&(at, id));
            }
            if let Some(at) = look {
                self.deadlines.insert((at, id));
            }
            peer.scheduled = look;
        }
    }

    /// Takes a peer out of the order of deadlines until something is rescheduled.
    pub(super) fn unschedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(at) = peer.scheduled.take() {
            self.deadlines.remove(&(at, id));
        }
        peer.path.activity.plan_look(|| None);
    }

    /// A random part of a third of a second.
    pub(super) fn jitter(&mut self) -> Duration {
        Duration::from_nanos(self.rng.next_u64() % (nanos(REKEY_TIMEOUT_JITTER_MAX) + 1))
    }

    pub(super) fn insert_peer(&mut self, public_key: PublicKey) -> PeerId {
        let id = PeerId(self.next_id);
        self.next_id += 1;
        let peer = Peer::new(id, public_key, self.jitter());
        self.ids.insert(public_key, id);
        self.peers.insert(id, peer);
        id
    }

    /// Removes a peer whose allowed IPs are gone already.
    pub(super) fn remove_peer(&mut self, id: PeerId) {
        self.forget_sessions(id);
        self.unschedule(id);
        if let Some(peer) = self.peers.remove(&id) {
            self.ids.remove(peer.path.public_key());
        }
    }
}
