//! Times and counts that the paper leaves open, or that follow from its limits (`wireloom_types::limits`). Most are the
//! kernel's (`messages.h`, `ratelimiter.c`).

use std::time::Duration;

use wireloom_types::limits::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT};

/// Up to this is added to [`REKEY_TIMEOUT`] at random, so that two peers do not keep colliding.
pub(crate) const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_nanos(333_333_333);
/// Who sent data and heard nothing for this long, plus jitter, begins a new handshake.
pub(crate) const UNANSWERED_TIMEOUT: Duration =
    Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// The initiator of a session of this age renews it also when it only receives.
pub(crate) const LAST_MINUTE_AFTER_TIME: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// This long after the last handshake all key material of the peer is wiped.
pub(crate) const WIPE_AFTER_TIME: Duration = Duration::from_secs(REJECT_AFTER_TIME.as_secs() * 3);
/// Initiations of one peer that follow the last one sooner than this are dropped; the kernel's
/// `INITIATIONS_PER_SECOND` is 50.
pub(crate) const INITIATION_INTERVAL_MIN: Duration = Duration::from_millis(1000 / 50);

/// The device is under load when more handshake messages than this, each with a valid MAC1, arrive
/// within [`LOAD_INTERVAL`]. Answering one costs about a quarter of a millisecond of X25519, so this
/// is about a quarter of one core's time.
pub(crate) const LOAD_THRESHOLD: u32 = 256;
/// So many are too many for a device that has been behind with what arrives for [`LOAD_INTERVAL`]: a slow
/// processor never gets as far as [`LOAD_THRESHOLD`]. The kernel goes by a backlog alone, of 512 messages in
/// the queue of handshakes (`MAX_QUEUED_INCOMING_HANDSHAKES / 8` in `receive.c`), which takes its processors
/// about as long; in our queue, the socket's, data waits as well, so a few handshakes are no load. (16 in the
/// interval are 64 a second: what 7,000 peers renew in ordinary times.)
pub(crate) const LOAD_THRESHOLD_BEHIND: u32 = 16;
/// See [`LOAD_THRESHOLD`].
pub(crate) const LOAD_INTERVAL: Duration = Duration::from_millis(250);
/// Load lasts this long after its last sign; the kernel's figure.
pub(crate) const LOAD_LINGERS: Duration = Duration::from_secs(1);
/// Handshake messages of one source, with a valid cookie, that are answered under load each second;
/// the kernel's `PACKETS_PER_SECOND`.
pub(crate) const ANSWERS_PER_SECOND: u64 = 20;
/// And at once; the kernel's `PACKETS_BURSTABLE`.
pub(crate) const ANSWERS_BURST: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_timers_are_those_of_the_paper() {
        let seconds = [(UNANSWERED_TIMEOUT, 15), (LAST_MINUTE_AFTER_TIME, 165), (WIPE_AFTER_TIME, 540)];
        for (timer, expected) in seconds {
            assert_eq!(timer, Duration::from_secs(expected));
        }
        assert!(REKEY_TIMEOUT_JITTER_MAX <= Duration::from_secs(1) / 3);
    }
}
