//! The two decisions that WireGuard ties together: which peer gets a packet, and who may have sent one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How the peer that gets an outgoing packet is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerLookup {
    /// The peer whose allowed-IPs hold the destination with the longest prefix: standard WireGuard.
    #[default]
    Destination,
    /// The peer that is the next hop which routing chose (link mode).
    Gateway,
}

/// Who decides whether a source address may come from a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceCheck {
    /// The peer's allowed-IPs, which must hold the source with the longest prefix: standard WireGuard.
    #[default]
    AllowedIps,
    /// The firewall, by the link address that the packet bears. Whoever configures the device makes the rules.
    Firewall,
    /// Nobody, unless the operator has firewall rules of their own.
    Off,
}

/// Both decisions, of which some pairs make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    peer_lookup: PeerLookup,
    source_check: SourceCheck,
}

/// Why two decisions do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModeError {
    /// Behind a gateway there are sources that are in nobody's allowed-IPs.
    #[error(
        "peer lookup \"gateway\" does not go with source check \"allowed-ips\": a gateway forwards packets \
         whose sources no allowed-IPs name; choose \"firewall\" or \"off\""
    )]
    GatewayWithAllowedIps,
    /// A packet bears its peer's link address only where there are link addresses.
    #[error(
        "source check \"firewall\" does not go with peer lookup \"destination\": the firewall knows a peer by \
         its link address, which only peer lookup \"gateway\" has; choose \"allowed-ips\" or \"off\""
    )]
    FirewallWithoutGateway,
}

impl Mode {
    /// Standard WireGuard.
    pub const STANDARD: Self =
        Self { peer_lookup: PeerLookup::Destination, source_check: SourceCheck::AllowedIps };

    /// Both decisions together.
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

    /// Which peer gets an outgoing packet.
    #[must_use]
    pub fn peer_lookup(self) -> PeerLookup {
        self.peer_lookup
    }

    /// Whether a source address may come from this peer.
    #[must_use]
    pub fn source_check(self) -> SourceCheck {
        self.source_check
    }
}

/// A word that names no choice.
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
    fn four_of_six_pairs_make_sense() {
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
    fn names_read_back() {
        for lookup in [PeerLookup::Destination, PeerLookup::Gateway] {
            assert_eq!(lookup.to_string().parse(), Ok(lookup));
        }
        for check in [SourceCheck::AllowedIps, SourceCheck::Firewall, SourceCheck::Off] {
            assert_eq!(check.to_string().parse(), Ok(check));
        }
        assert!("Gateway".parse::<PeerLookup>().is_err() && "".parse::<SourceCheck>().is_err());
    }
}
