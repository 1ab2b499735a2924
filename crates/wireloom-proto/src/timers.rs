//! Every time and count that the protocol fixes (paper, section 6.1, and the kernel's `messages.h`).

use std::time::Duration;

/// After this age, the initiator of a session renews it when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// After this many messages, a session is renewed, whoever began it.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A session of this age neither sends nor receives.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// The counter of a session never reaches this: 2^64 - 2^13 - 1.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// A handshake that nobody answers is given up after this.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// An initiation is repeated after this, plus jitter; never sooner.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Up to this is added to [`REKEY_TIMEOUT`] at random, so that two peers do not keep colliding.
pub const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_nanos(333_333_333);
/// Who received data and sent nothing for this long sends a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Who sent data and heard nothing for this long, plus jitter, begins a new handshake.
pub const UNANSWERED_TIMEOUT: Duration =
    Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// The initiator of a session of this age renews it also when it only receives.
pub const LAST_MINUTE_AFTER_TIME: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// This long after the last handshake all key material of the peer is wiped.
pub const WIPE_AFTER_TIME: Duration = Duration::from_secs(REJECT_AFTER_TIME.as_secs() * 3);
