//! Link addresses: what peers are called on the link, where a peer is a neighbour.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use blake2::{Blake2s256, Digest};
use serde::{Serialize, Serializer};

use crate::PublicKey;

/// Separates these hashes from any others of the same key.
const DERIVATION: &[u8] = b"wireloom link address v1";

/// Locally administered and not a group: IEEE 802-2014, section 8.
const FIRST_BYTE: u8 = 2;

/// A peer's address on the link, in the form of an Ethernet address. Everyone who knows the public key knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress([u8; 6]);

impl LinkAddress {
    /// The address that the device names when it answers for an address that no peer has. No peer may have it.
    pub const NOBODY: Self = Self([FIRST_BYTE, 0, 0, 0, 0, 0]);

    /// Every interface on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Every IPv6 node on the link: the address of ff02::1 (RFC 2464, section 7).
    pub const ALL_NODES: Self = Self([0x33, 0x33, 0, 0, 0, 1]);

    /// The address of the peer with this key: `02` and the first five bytes of
    /// BLAKE2s-256("wireloom link address v1" ‖ key).
    #[must_use]
    pub fn of(key: PublicKey) -> Self {
        let hash = Blake2s256::new().chain_update(DERIVATION).chain_update(key.as_bytes()).finalize();
        Self([FIRST_BYTE, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }

    /// The address of these bytes, in the order in which they cross a wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in the order in which they cross a wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 6] {
        self.0
    }

    /// Whether it stands for many interfaces: multicast or broadcast.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The IPv6 link-local address that goes with it (RFC 4291, appendix A; RFC 4862, section 5.3).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// The link address that an IPv6 link-local address goes with; `None` for any other address.
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

/// The text is not six bytes in hexadecimal with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a link address: expected six bytes such as 02:2a:5d:64:de:e9")]
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

    /// Computed with Python's hashlib: `blake2s(b"wireloom link address v1" + bytes(32 * [1]))`.
    #[test]
    fn addresses_of_known_keys() {
        for (key, address) in [([0; 32], "02:24:7b:dc:ea:86"), ([1; 32], "02:b5:ca:dc:5d:ab")] {
            assert_eq!(LinkAddress::of(PublicKey::from_bytes(key)).to_string(), address);
        }
    }

    #[test]
    fn texts_read_back() {
        let address = LinkAddress([2, 0x77, 0, 0, 0xa, 0xff]);
        assert_eq!(address.to_string().parse(), Ok(address));
        for text in ["", "02:77:00:00:0a", "02:77:00:00:0a:ff:00", "02:77:00:00:0a:+f", "2:77:0:0:a:ff"] {
            assert_eq!(text.parse::<LinkAddress>(), Err(LinkAddressError), "{text}");
        }
    }

    #[test]
    fn link_local_addresses_read_back() {
        let address = LinkAddress([2, 0x77, 0, 0, 0, 1]);
        let link_local: Ipv6Addr = "fe80::77:ff:fe00:1".parse().unwrap();
        assert_eq!(address.link_local(), link_local);
        assert_eq!(LinkAddress::of_link_local(link_local), Some(address));
        for other in ["fe80::1", "fe80:0:0:1:77:ff:fe00:1", "fd80::77:ff:fe00:1", "::"] {
            assert_eq!(LinkAddress::of_link_local(other.parse().unwrap()), None, "{other}");
        }
    }
}
