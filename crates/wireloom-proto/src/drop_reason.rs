//! Why packets are dropped: one table of reasons.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet or a datagram was dropped. The sender is not told; count the reasons to see them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
        pub enum DropReason {
            $($(#[doc = $doc])+ #[error($name)] $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of [`Self::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name for counters and logs, in lower case with hyphens.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

impl DropReason {
    /// The number of reasons.
    pub const COUNT: usize = Self::ALL.len();

    /// The reason's index in a table of counters, less than [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

drop_reasons! {
    /// The datagram has a length that its message type cannot have.
    BadLength = "bad-length",
    /// The datagram's type is none of WireGuard's four, or its reserved bytes are not zero.
    BadType = "bad-type",
    /// MAC1 is wrong: the sender does not know our public key.
    BadMac1 = "bad-mac1",
    /// The device is under load and the message has no valid cookie. A cookie reply was sent.
    CookieRequired = "cookie-required",
    /// The device is under load, and the source sent more handshake messages than it may, with a valid cookie.
    RateLimited = "rate-limited",
    /// The device has no private key.
    NoPrivateKey = "no-private-key",
    /// The receiver index belongs to no session and to no pending handshake.
    UnknownIndex = "unknown-index",
    /// Authentication or decryption failed.
    BadCiphertext = "bad-ciphertext",
    /// The data message's counter was seen before, or lies behind the replay window.
    Replayed = "replayed",
    /// The session has reached its limit of time or of messages.
    SessionExpired = "session-expired",
    /// The initiation's timestamp is not later than the peer's last one: a replay.
    StaleTimestamp = "stale-timestamp",
    /// The initiation comes from a public key that is not configured.
    UnknownPeer = "unknown-peer",
    /// The initiation came too soon after the peer's last one.
    InitiationFlood = "initiation-flood",
    /// The cookie reply answers no message of ours.
    UnexpectedCookie = "unexpected-cookie",
    /// The inner packet is neither IPv4 nor IPv6, or its length field is wrong.
    BadInnerPacket = "bad-inner-packet",
    /// The peer's allowed-IPs do not include the inner source address.
    SourceNotAllowed = "source-not-allowed",
    /// No peer's allowed-IPs include the destination of an outgoing packet.
    NoPeerForDestination = "no-peer-for-destination",
    /// The peer has no endpoint yet, so nothing can be sent to it.
    NoEndpoint = "no-endpoint",
    /// The packet was the oldest of too many that waited for a session.
    QueueFull = "queue-full",
    /// The packet waited for a session until the handshake was given up.
    HandshakeTimedOut = "handshake-timed-out",
    /// The packet waited for the device or a session when the interface went down, or when its peer or our key went.
    Forgotten = "forgotten",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_the_position_in_all_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(names.insert(reason.name()));
        }
    }
}
