//! The two decisions that WireGuard ties together: which peer gets an outgoing packet, and who checks the source of an
//! incoming one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How the peer of an outgoing packet is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerLookup {
    /// By destination: the peer whose allowed-IPs contain it with the longest prefix. Standard WireGuard.
    #[default]
    Destination,
    /// By next hop: the peer that routing chose as the gateway (link mode).
    Gateway,
}

/// Who checks whether a peer may send from a source address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceCheck {
    /// The device: the peer's allowed-IPs must contain the source with the longest prefix. Standard WireGuard.
    #[default]
    AllowedIps,
    /// The firewall, by the link address of the peer, which is the packet's source MAC address. The device adds no
    /// rules.
    Firewall,
    /// Nobody, unless the operator has rules of their own.
    Off,
}

/// Both decisions together. [`Self::new`] refuses the pairs that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    peer_lookup: PeerLookup,
    source_check: SourceCheck,
}

/// Why two decisions cannot be combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// A gateway forwards packets with sources that are in nobody's allowed-IPs.
    #[error(
        "peer lookup \"gateway\" cannot be combined with source check \"allowed-ips\", because a gateway forwards \
         packets whose sources are in nobody's allowed-IPs; choose source check \"firewall\" or \"off\""
    )]
    GatewayWithAllowedIps,
    /// Only packets in link mode have a link address by which the firewall knows their peer.
    #[error(
        "source check \"firewall\" cannot be combined with peer lookup \"destination\", because the firewall knows \
         peers by their link addresses, which only peer lookup \"gateway\" has; choose source check \
         \"allowed-ips\" or \"off\""
    )]
    FirewallWithoutGateway,
}

impl Mode {
    /// Standard WireGuard: lookup by destination, and allowed-IPs check sources.
    pub const STANDARD: Self =
        Self { peer_lookup: PeerLookup::Destination, source_check: SourceCheck::AllowedIps };

    /// Combines both decisions.
    ///
    /// # Errors
    /// [`ModeError`] when they make no sense together.
    pub fn new(peer_lookup: PeerLookup, source_check: SourceCheck) -> Result<Self, ModeError> {
        match (peer_lookup, source_check) {
            (PeerLookup::Gateway, SourceCheck::AllowedIps) => Err(ModeError::GatewayWithAllowedIps),
            (PeerLookup::Destination, SourceCheck::Firewall) => Err(ModeError::FirewallWithoutGateway),
            _ => Ok(Self { peer_lookup, source_check }),
        }
    }

    /// How the peer of an outgoing packet is found.
    #[must_use]
    pub fn peer_lookup(self) -> PeerLookup {
        self.peer_lookup
    }

    /// Who checks the source of an incoming packet.
    #[must_use]
    pub fn source_check(self) -> SourceCheck {
        self.source_check
    }
}

/// The text is none of the words for a decision. The message lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct ChoiceError(&'static str);

macro_rules! named {
    ($choice:ident: $($name:literal = $variant:ident),+; $expected:literal) => {
        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $name,)+
                })
            }
        }

        impl FromStr for $choice {
            type Err = ChoiceError;

            fn from_str(name: &str) -> Result<Self, ChoiceError> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(ChoiceError($expected)),
                }
            }
        }
    };
}

named!(PeerLookup: "destination" = Destination, "gateway" = Gateway; "destination or gateway");
named!(
    SourceCheck: "allowed-ips" = AllowedIps, "firewall" = Firewall, "off" = Off;
    "allowed-ips, firewall or off"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_of_the_six_pairs_can_be_combined() {
        use {PeerLookup::*, SourceCheck::*};
        for (lookup, check) in
            [(Destination, AllowedIps), (Destination, Off), (Gateway, Firewall), (Gateway, Off)]
        {
            let mode = Mode::new(lookup, check).unwrap();
            assert_eq!((mode.peer_lookup(), mode.source_check()), (lookup, check));
        }
        assert_eq!(Mode::new(Gateway, AllowedIps), Err(ModeError::GatewayWithAllowedIps));
        assert_eq!(Mode::new(Destination, Firewall), Err(ModeError::FirewallWithoutGateway));
    }

    #[test]
    fn words_read_back_and_others_are_refused() {
        for lookup in [PeerLookup::Destination, PeerLookup::Gateway] {
            assert_eq!(lookup.to_string().parse(), Ok(lookup));
        }
        for check in [SourceCheck::AllowedIps, SourceCheck::Firewall, SourceCheck::Off] {
            assert_eq!(check.to_string().parse(), Ok(check));
        }
        let refused = "Gateway".parse::<PeerLookup>().unwrap_err();
        assert_eq!(refused.to_string(), "expected destination or gateway");
        let refused = "".parse::<SourceCheck>().unwrap_err();
        assert_eq!(refused.to_string(), "expected allowed-ips, firewall or off");
    }

    /// Files read and write the decisions by serde, command lines and the control socket as text.
    #[test]
    fn serde_uses_the_same_words() {
        use serde::de::{IntoDeserializer, value::Error};

        for lookup in [PeerLookup::Destination, PeerLookup::Gateway] {
            assert_eq!(Serialized(lookup).to_string(), lookup.to_string());
            let word = lookup.to_string();
            let read = PeerLookup::deserialize(IntoDeserializer::<Error>::into_deserializer(word.as_str()));
            assert_eq!(read, Ok(lookup));
        }
        for check in [SourceCheck::AllowedIps, SourceCheck::Firewall, SourceCheck::Off] {
            assert_eq!(Serialized(check).to_string(), check.to_string());
            let word = check.to_string();
            let read = SourceCheck::deserialize(IntoDeserializer::<Error>::into_deserializer(word.as_str()));
            assert_eq!(read, Ok(check));
        }
    }

    /// Shows the word that serde writes.
    struct Serialized<T>(T);

    impl<T: Serialize> fmt::Display for Serialized<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.serialize(f)
        }
    }
}
