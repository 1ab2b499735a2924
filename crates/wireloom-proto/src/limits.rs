//! Times and counts that the paper leaves open or that follow from its limits (`wireloom_types::limits`). Most of them
//! are the kernel's (`drivers/net/wireguard/messages.h` and `ratelimiter.c`).

use std::time::Duration;

use wireloom_types::limits::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_TIMEOUT};

/// The most that is added at random to [`REKEY_TIMEOUT`], so that two peers do not keep colliding.
pub(crate) const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_nanos(333_333_333);
/// A peer that sent data and has received nothing for this long, plus jitter, begins a handshake.
pub(crate) const UNANSWERED_TIMEOUT: Duration =
    Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// From this age on, the initiator of a session renews it when it receives, even if it sends nothing.
pub(crate) const LAST_MINUTE_AFTER_TIME: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// This long after the last handshake, all key material of the peer is wiped.
pub(crate) const WIPE_AFTER_TIME: Duration = Duration::from_secs(REJECT_AFTER_TIME.as_secs() * 3);
/// The least time between two initiations of one peer: an earlier one is dropped. The kernel's
/// `INITIATIONS_PER_SECOND` is 50.
pub(crate) const INITIATION_INTERVAL_MIN: Duration = Duration::from_millis(1000 / 50);

/// The device is under load when more handshake messages than this, with a valid MAC1, arrive within [`LOAD_INTERVAL`].
/// Answering one takes about a fifth of a millisecond, most of it X25519, so answering this many takes about a fifth of
/// one core.
pub(crate) const LOAD_THRESHOLD: u32 = 256;
/// The same threshold for a device that has had a backlog for [`LOAD_INTERVAL`]: a slow processor never gets as far as
/// [`LOAD_THRESHOLD`].
///
/// The kernel looks at the backlog alone: 512 messages in its queue of handshakes (`MAX_QUEUED_INCOMING_HANDSHAKES / 8`
/// in `receive.c`), which its processors need about as long for. Ours is a turn of eight or so, so
/// a few handshakes beyond that are no load. 16 per interval are 64 per second; 7,000 peers renew their sessions
/// that often.
pub(crate) const LOAD_THRESHOLD_BACKLOG: u32 = 16;
/// The interval of [`LOAD_THRESHOLD`] and [`LOAD_THRESHOLD_BACKLOG`].
pub(crate) const LOAD_INTERVAL: Duration = Duration::from_millis(250);
/// How long the device stays under load after the threshold was last exceeded; one second in the kernel too
/// (`wg_receive_handshake_packet`).
pub(crate) const LOAD_DURATION: Duration = Duration::from_secs(1);
/// Handshake messages with a valid cookie that are answered under load, per source and second; the kernel's
/// `PACKETS_PER_SECOND`.
pub(crate) const ANSWERS_PER_SECOND: u64 = 20;
/// Handshake messages with a valid cookie that one source may send in a burst; the kernel's `PACKETS_BURSTABLE`.
pub(crate) const ANSWERS_BURST: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_timeouts_are_those_of_the_paper() {
        let seconds = [(UNANSWERED_TIMEOUT, 15), (LAST_MINUTE_AFTER_TIME, 165), (WIPE_AFTER_TIME, 540)];
        for (timer, expected) in seconds {
            assert_eq!(timer, Duration::from_secs(expected));
        }
        assert!(REKEY_TIMEOUT_JITTER_MAX <= Duration::from_secs(1) / 3);
    }
}
