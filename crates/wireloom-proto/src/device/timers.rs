//! Upkeep of peers: their timers, their staged packets, their coming and going.

use std::time::Duration;

use rand_chacha::rand_core::Rng;
use wireloom_types::limits::KEEPALIVE_TIMEOUT;

use super::Device;
use super::peer::Peer;
use crate::limits::{REKEY_TIMEOUT_JITTER_MAX, UNANSWERED_TIMEOUT};
use crate::peer_id::PeerId;
use crate::time::{Instant, Now, nanos};

/// What a timer asks of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Wipe all key material.
    Wipe,
    /// Send the initiation again, or give up.
    RetryHandshake,
    /// Data was sent and nothing came back: begin a handshake.
    Unanswered,
    /// Data was received and nothing was sent: send a keepalive.
    Keepalive,
    /// The interval of persistent keepalives is over.
    PersistentKeepalive,
}

impl Peer {
    /// The timer that is due first, and when.
    pub(crate) fn next_due(&self) -> Option<(Instant, Due)> {
        let activity = &self.path.activity;
        let unanswered = activity.unanswered_since.get();
        let owing = activity.owing_since.get();
        let timers = [
            (self.wipe_at, Due::Wipe),
            (self.attempt.map(|attempt| attempt.retry_at), Due::RetryHandshake),
            (unanswered.map(|since| since + UNANSWERED_TIMEOUT + self.jitter), Due::Unanswered),
            (owing.map(|since| since + KEEPALIVE_TIMEOUT), Due::Keepalive),
            (self.persistent_keepalive_at(), Due::PersistentKeepalive),
        ];
        let armed = timers.into_iter().filter_map(|(at, due)| Some((at?, due)));
        armed.min_by_key(|(at, _)| *at)
    }

    fn persistent_keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.persistent_keepalive?;
        self.path.endpoint()?;
        let interval = Duration::from_secs(keepalive.interval.get().into());
        let last = self.path.activity.traversed.get();
        Some(last.map_or(keepalive.since, |last| last + interval))
    }
}

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
}
