//! The timers of peers: what is due, and when the device checks next.

use std::time::Duration;

use wireloom_types::limits::KEEPALIVE_TIMEOUT;

use super::Device;
use super::peer::Peer;
use crate::limits::{REKEY_TIMEOUT_JITTER_MAX, UNANSWERED_TIMEOUT};
use crate::peer_id::PeerId;
use crate::time::{Instant, Now, nanos};

/// What the device has to do when a timer fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Wipe all key material.
    Wipe,
    /// Send the initiation again, or give up.
    RetryHandshake,
    /// Begin a handshake, because data was sent and nothing came back.
    Unanswered,
    /// Send a keepalive, because data was received and nothing was sent.
    Keepalive,
    /// Send a keepalive, because the interval of persistent keepalives has passed.
    PersistentKeepalive,
}

impl Peer {
    /// The timer that fires first, and when.
    pub(super) fn next_due(&self) -> Option<(Instant, Due)> {
        let activity = &self.path.activity;
        let unanswered = activity.unanswered_since.get();
        let owed = activity.keepalive_owed_since.get();
        let timers = [
            (self.wipe_at, Due::Wipe),
            (self.attempt.map(|attempt| attempt.retry_at), Due::RetryHandshake),
            (unanswered.map(|since| since + UNANSWERED_TIMEOUT + self.jitter), Due::Unanswered),
            (owed.map(|since| since + KEEPALIVE_TIMEOUT), Due::Keepalive),
            (self.persistent_keepalive_at(), Due::PersistentKeepalive),
        ];
        let armed = timers.into_iter().filter_map(|(at, due)| Some((at?, due)));
        armed.min_by_key(|(at, _)| *at)
    }

    /// When the device checks the timers next: when the first one fires, or sooner while a packet is unanswered. Its
    /// answer may be a request, which arms a timer that fires before the present one. To check when that can be at the
    /// earliest is a needless check every 10 seconds, and spares a signal for each request that is answered at once.
    fn next_check(&self, now: Instant) -> Option<Instant> {
        let due = self.next_due().map(|(at, _)| at);
        let unanswered = self.path.activity.unanswered_since.get();
        let sooner = unanswered.map(|since| since + KEEPALIVE_TIMEOUT).filter(|at| *at > now);
        due.into_iter().chain(sooner).min()
    }

    fn persistent_keepalive_at(&self) -> Option<Instant> {
        let keepalive = self.persistent_keepalive?;
        self.path.endpoint()?;
        let interval = Duration::from_secs(keepalive.interval.get().into());
        let last = self.path.activity.last_traffic.get();
        Some(last.map_or(keepalive.since, |last| last + interval))
    }
}

impl Device {
    /// Does what a timer demands. Each arm clears the timer or moves it into the future.
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
            // These two causes may be gone by now, or may be newer ones: the data path answers to nobody.
            Due::Unanswered => {
                let after = UNANSWERED_TIMEOUT + peer.jitter;
                if !peer.path.activity.unanswered_since.take_if_passed(now.monotonic, after) {
                    return;
                }
                peer.jitter = jitter;
                peer.path.forget_local_address();
                self.begin_handshake(now, id);
            }
            Due::Keepalive => {
                if peer.path.activity.keepalive_owed_since.take_if_passed(now.monotonic, KEEPALIVE_TIMEOUT) {
                    self.send_keepalive(now, id);
                }
            }
            Due::PersistentKeepalive => {
                peer.path.activity.last_traffic.set(Some(now.monotonic));
                self.send_keepalive(now, id);
            }
        }
    }

    fn retry_handshake(&mut self, now: Now, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        // A lost initiation proves nothing while other messages arrive from the peer.
        let last = peer.path.activity.last_received.get();
        if last.is_none_or(|last| now.monotonic.since(last) >= UNANSWERED_TIMEOUT) {
            peer.path.set_reachable(false);
        }
        // A packet that was staged since asks for as much time (paper, section 6.4).
        let asked = self.transport.staging.last(id);
        if peer.attempt.is_none_or(|attempt| attempt.is_over(now.monotonic, asked)) {
            peer.keepalive_wanted = false;
            self.timed_out_packets += self.transport.staging.clear(id);
            self.end_attempt(id);
            return;
        }
        peer.path.forget_local_address();
        self.send_initiation(now, id);
    }

    /// Schedules the next check of a peer's timers.
    pub(super) fn reschedule(&mut self, now: Instant, id: PeerId) {
        self.schedule_by(id, |peer| peer.next_check(now));
    }

    /// Schedules the check of a peer for the moment when its first timer fires.
    pub(super) fn schedule(&mut self, id: PeerId) {
        self.schedule_by(id, |peer| peer.next_due().map(|(at, _)| at));
    }

    fn schedule_by(&mut self, id: PeerId, next: impl FnOnce(&Peer) -> Option<Instant>) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let check = peer.path.activity.schedule_check(|| next(peer));
        if check != peer.scheduled {
            if let Some(at) = peer.scheduled {
                self.deadlines.remove(&(at, id));
            }
            if let Some(at) = check {
                self.deadlines.insert((at, id));
            }
            peer.scheduled = check;
        }
    }

    /// Cancels the check of a peer.
    pub(super) fn unschedule(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if let Some(at) = peer.scheduled.take() {
            self.deadlines.remove(&(at, id));
        }
        peer.path.activity.schedule_check(|| None);
    }

    /// A random time of up to [`REKEY_TIMEOUT_JITTER_MAX`].
    pub(super) fn jitter(&mut self) -> Duration {
        Duration::from_nanos(self.randomness.draw_u64() % (nanos(REKEY_TIMEOUT_JITTER_MAX) + 1))
    }
}
