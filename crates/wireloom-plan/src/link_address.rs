//! Link addresses: what peers are called on the link, where a peer is a neighbour.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use blake2::{Blake2s256, Digest};
use serde::{Serialize, Serializer};

use crate::key::PublicKey;

/// Separates these hashes from any others of the same key.
const DERIVATION: &[u8] = b"wireloom link address v1";

/// Locally administered and not a group: IEEE 802-2014, section 8.
const FIRST_BYTE: u8 = 2;

/// A peer's address on the link, in the form of an Ethernet address. Whoever knows the public key
/// knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress(pub [u8; 6]);

impl LinkAddress {
    /// Of the peer with this key: `02` and the first five bytes of
    /// BLAKE2s-256("wireloom link address v1" ‖ key).
    pub fn of(key: PublicKey) -> Self {
        let hash = Blake2s256::new().chain_update(DERIVATION).chain_update(key.0).finalize();
        Self([FIRST_BYTE, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }

    /// The IPv6 link-local address that goes with it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// Whose link-local address this is.
    pub fn of_link_local(address: Ipv6Addr) -> Option<Self> {
        match address.octets() {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
                Some(Self([a ^ 2, b, c, d, e, f]))
            }
            _ => None,
        }
    }
}

/// The text is not six bytes in hexadecimal with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a link address: expected six bytes such as 02:2a:5d:64:de:e9")]
pub struct ParseLinkAddressError;

impl FromStr for LinkAddress {
    type Err = ParseLinkAddressError;

    fn from_str(text: &str) -> Result<Self, ParseLinkAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| is_byte(part)).ok_or(ParseLinkAddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseLinkAddressError)?;
        }
        if parts.next().is_none() { Ok(Self(bytes)) } else { Err(ParseLinkAddressError) }
    }
}

/// Two digits and nothing else: a sign would pass for a digit in [`u8::from_str_radix`].
fn is_byte(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for LinkAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same answers as of the engine's; computed with Python's hashlib.
    #[test]
    fn known_answers() {
        for (key, address) in [([0; 32], "02:24:7b:dc:ea:86"), ([1; 32], "02:b5:ca:dc:5d:ab")] {
            assert_eq!(LinkAddress::of(PublicKey(key)).to_string(), address);
        }
    }

    #[test]
    fn texts_lead_back() {
        let address = LinkAddress([2, 0x77, 0, 0, 0xa, 0xff]);
        assert_eq!(address.to_string().parse(), Ok(address));
        for text in ["", "02:77:00:00:0a", "02:77:00:00:0a:ff:00", "02:77:00:00:0a:+f", "2:77:0:0:a:ff"] {
            assert_eq!(text.parse::<LinkAddress>(), Err(ParseLinkAddressError), "{text}");
        }
    }

    #[test]
    fn link_local_addresses_lead_back() {
        let address = LinkAddress([2, 0x77, 0, 0, 0, 1]);
        assert_eq!(address.link_local().to_string(), "fe80::77:ff:fe00:1");
        assert_eq!(LinkAddress::of_link_local(address.link_local()), Some(address));
        assert_eq!(LinkAddress::of_link_local("fe80::1".parse().unwrap()), None);
    }
}
