//! The one table of reasons for which a packet goes no further.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet or datagram went no further. Nothing is sent back for any of these: counters
        /// are where they show.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
        pub enum DropReason {
            $($(#[doc = $doc])+ #[error($name)] $variant,)+
        }

        impl DropReason {
            /// Every reason, in the order of [`Self::index`].
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// A short name for counters and logs, in lower case with hyphens.
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
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The reason's place in a table of counters: less than [`Self::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

drop_reasons! {
    /// A datagram of a length that its message type cannot have.
    BadLength = "bad-length",
    /// A datagram whose type is none of WireGuard's four, or whose reserved bytes are not zero.
    BadType = "bad-type",
    /// The first message authentication code is wrong: the sender does not know our public key.
    BadMac1 = "bad-mac1",
    /// Under load, without a valid cookie: a cookie reply was sent instead of an answer.
    CookieRequired = "cookie-required",
    /// Under load, with a valid cookie, but more often than one source may.
    RateLimited = "rate-limited",
    /// The device has no private key.
    NoPrivateKey = "no-private-key",
    /// The receiver index belongs to no session and no pending handshake.
    UnknownIndex = "unknown-index",
    /// Authentication or decryption failed.
    BadCiphertext = "bad-ciphertext",
    /// A data message's counter was seen already, or lies behind the replay window.
    Replayed = "replayed",
    /// The session is past its end of life in time or messages.
    SessionExpired = "session-expired",
    /// An initiation whose timestamp is not later than the last one seen: a replay.
    StaleTimestamp = "stale-timestamp",
    /// An initiation from a public key that is not configured.
    UnknownPeer = "unknown-peer",
    /// Initiations of one peer that follow each other too closely.
    InitiationFlood = "initiation-flood",
    /// A cookie reply that answers nothing we sent.
    UnexpectedCookie = "unexpected-cookie",
    /// What came out of the tunnel is no IPv4 or IPv6 packet of a plausible length.
    BadInnerPacket = "bad-inner-packet",
    /// The inner source address is not among the peer's allowed IPs.
    SourceNotAllowed = "source-not-allowed",
    /// No peer's allowed IPs cover the destination of an outgoing packet.
    NoPeerForDestination = "no-peer-for-destination",
    /// The peer has no endpoint, so nothing can be sent to it yet.
    NoEndpoint = "no-endpoint",
    /// The oldest packet of a full queue of packets that wait for a session.
    QueueFull = "queue-full",
    /// A packet that waited for a session until the handshake was given up.
    HandshakeTimedOut = "handshake-timed-out",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_places_in_the_table_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (place, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
            assert!(names.insert(reason.name()));
        }
    }
}
