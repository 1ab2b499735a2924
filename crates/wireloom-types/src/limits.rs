//! The protocol's limits: the constants of the WireGuard paper (Donenfeld, NDSS 2017, section 6.1), all in one place,
//! and the kernel's limit on peers.

use std::time::Duration;

/// The age at which the initiator of a session renews it when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// The number of sent messages after which either side renews a session.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// The age at which a session neither sends nor receives any more.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// The number of messages after which a session neither sends nor receives: 2^64 - 2^13 - 1. No counter reaches it.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// How long an initiator repeats a handshake that is not answered before it gives up.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// How long an initiator waits for an answer, plus jitter, before it repeats the initiation.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after receiving data a peer sends a keepalive, if it has sent nothing since.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most peers that an interface may have: `MAX_PEERS_PER_DEVICE` in the kernel's
/// `drivers/net/wireguard/messages.h`.
pub const MAX_PEERS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_the_paper() {
        let seconds = [
            (REKEY_AFTER_TIME, 120),
            (REJECT_AFTER_TIME, 180),
            (REKEY_ATTEMPT_TIME, 90),
            (REKEY_TIMEOUT, 5),
            (KEEPALIVE_TIMEOUT, 10),
        ];
        for (limit, expected) in seconds {
            assert_eq!(limit, Duration::from_secs(expected));
        }
        assert_eq!(REKEY_AFTER_MESSAGES, 1 << 60);
        assert_eq!(u128::from(REJECT_AFTER_MESSAGES), (1_u128 << 64) - (1 << 13) - 1);
    }
}
