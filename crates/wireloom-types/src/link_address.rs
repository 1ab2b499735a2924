//! Link addresses: the Ethernet addresses that stand for peers in link mode, where a peer is a neighbour.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use blake2::{Blake2s256, Digest};
use serde::{Serialize, Serializer};

use crate::PublicKey;

/// Distinguishes these hashes of a key from any others.
const DERIVATION: &[u8] = b"wireloom link address v1";

/// Marks the address as locally administered and not a group address (IEEE 802-2014, section 8).
const FIRST_BYTE: u8 = 2;

/// An Ethernet address. A peer's follows from its public key, so everyone who knows the key knows the address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress([u8; 6]);

impl LinkAddress {
    /// The address with which a device answers for IP addresses that no peer has. No peer may have this address.
    pub const NOBODY: Self = Self([FIRST_BYTE, 0, 0, 0, 0, 0]);

    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The multicast address of all IPv6 nodes, ff02::1 (RFC 2464, section 7).
    pub const ALL_NODES: Self = Self([0x33, 0x33, 0, 0, 0, 1]);

    /// The address of the peer with this public key: `02`, then the first five bytes of
    /// BLAKE2s-256("wireloom link address v1" ‖ key).
    ///
    /// Five bytes are short enough for two keys to collide, so whoever adds peers must refuse a second peer with the
    /// same address.
    #[must_use]
    pub fn of(key: PublicKey) -> Self {
        let hash = Blake2s256::new().chain_update(DERIVATION).chain_update(key.as_bytes()).finalize();
        Self([FIRST_BYTE, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }

    /// The address with these bytes, in the order on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The bytes of the address, in the order on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether this is a group address: multicast or broadcast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The IPv6 link-local address made from this address (RFC 4291, appendix A; RFC 4862, section 5.3).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The link address that an IPv6 link-local address was made from; `None` for any other IPv6 address.
    #[must_use]
    pub const fn of_link_local(address: Ipv6Addr) -> Option<Self> {
        match address.octets() {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
                Some(Self([a ^ 2, b, c, d, e, f]))
            }
            _ => None,
        }
    }
}

/// The text is not six bytes in hexadecimal, two digits each, separated by colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a link address: expected six bytes in hexadecimal, such as 02:2a:5d:64:de:e9")]
pub struct LinkAddressError;

impl FromStr for LinkAddress {
    type Err = LinkAddressError;

    fn from_str(text: &str) -> Result<Self, LinkAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| is_byte(part)).ok_or(LinkAddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| LinkAddressError)?;
        }
        if parts.next().is_none() { Ok(Self(bytes)) } else { Err(LinkAddressError) }
    }
}

/// Whether the text is two hexadecimal digits. [`u8::from_str_radix`] would accept a sign as well.
fn is_byte(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

impl fmt::Display for LinkAddress {
    /// Lower-case hexadecimal with colons, as `ip` writes it.
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
    /// The text of [`fmt::Display`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib: `blake2s(b"wireloom link address v1" + bytes(32 * [1]))`.
    #[test]
    fn addresses_follow_from_keys() {
        for (key, address) in [([0; 32], "02:24:7b:dc:ea:86"), ([1; 32], "02:b5:ca:dc:5d:ab")] {
            assert_eq!(LinkAddress::of(PublicKey::from_bytes(key)).to_string(), address);
        }
    }

    #[test]
    fn texts_read_back_and_others_are_refused() {
        let address = LinkAddress([2, 0x77, 0, 0, 0xa, 0xff]);
        assert_eq!(address.to_string().parse(), Ok(address));
        for text in ["", "02:77:00:00:0a", "02:77:00:00:0a:ff:00", "02:77:00:00:0a:+f", "2:77:0:0:a:ff"] {
            assert_eq!(text.parse::<LinkAddress>(), Err(LinkAddressError), "{text}");
        }
    }

    #[test]
    fn link_local_addresses_follow_from_addresses_and_back() {
        let address = LinkAddress([2, 0x77, 0, 0, 0, 1]);
        let link_local: Ipv6Addr = "fe80::77:ff:fe00:1".parse().unwrap();
        assert_eq!(address.link_local(), link_local);
        assert_eq!(LinkAddress::of_link_local(link_local), Some(address));
        for other in ["fe80::1", "fe80:0:0:1:77:ff:fe00:1", "fd80::77:ff:fe00:1", "::"] {
            assert_eq!(LinkAddress::of_link_local(other.parse().unwrap()), None, "{other}");
        }
    }

    #[test]
    fn broadcast_and_multicast_are_group_addresses_and_peers_are_not() {
        assert!(LinkAddress::BROADCAST.is_group());
        assert!(LinkAddress::ALL_NODES.is_group());
        assert!(!LinkAddress::NOBODY.is_group());
        assert!(!LinkAddress::of(PublicKey::from_bytes([1; 32])).is_group());
    }
}
