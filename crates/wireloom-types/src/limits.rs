//! The protocol's limits: the constants of the WireGuard paper (Donenfeld, NDSS 2017, section 6.1), and the
//! most peers that an interface has.

use std::time::Duration;

/// After this age, the initiator of a session renews it when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// After this many messages, either side renews a session.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// A session of this age neither sends nor receives.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// The counter of a session never reaches this: 2^64 - 2^13 - 1.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// An initiator gives up a handshake that stays without an answer for this long.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// An initiator repeats an initiation after this time, plus jitter; never sooner.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that received data and sent nothing for this long sends a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most peers that an interface has: `MAX_PEERS_PER_DEVICE` of the kernel's `drivers/net/wireguard/messages.h`.
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
