//! Link addresses: what peers are called on the link.

use std::{fmt, net::Ipv6Addr};

use blake2::{Blake2s256, Digest};
use wireloom_proto::PublicKey;

/// Separates these hashes from any others of the same key.
const DERIVATION: &[u8] = b"wireloom link address v1";

/// Locally administered and not a group: IEEE 802-2014, section 8.
const FIRST_BYTE: u8 = 2;

/// A peer's address on the link, in the form of an Ethernet address. Everyone who knows the public key
/// knows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress([u8; 6]);

impl LinkAddress {
    /// Whom the device names when it answers for an address that is nobody's. No peer may have it.
    pub const NOBODY: Self = Self([FIRST_BYTE, 0, 0, 0, 0, 0]);

    pub(crate) const BROADCAST: Self = Self([0xff; 6]);

    /// Of ff02::1 (RFC 2464, section 7).
    pub(crate) const ALL_NODES: Self = Self([0x33, 0x33, 0, 0, 0, 1]);

    /// The address of the peer with this key: `02` and the first five bytes of
    /// BLAKE2s-256("wireloom link address v1" ‖ key).
    #[must_use]
    pub fn of(public_key: &PublicKey) -> Self {
        let hash = Blake2s256::new().chain_update(DERIVATION).chain_update(public_key.as_bytes()).finalize();
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

    /// Whether it stands for many: multicast or broadcast.
    pub(crate) const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// The IPv6 link-local address that goes with it (RFC 4291, appendix A; RFC 4862, section 5.3).
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// Whose link-local address this is.
    pub(crate) const fn of_link_local(address: Ipv6Addr) -> Option<Self> {
        match address.octets() {
            [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a, b, c, 0xff, 0xfe, d, e, f] => {
                Some(Self([a ^ 2, b, c, d, e, f]))
            }
            _ => None,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib: `blake2s(b"wireloom link address v1" + bytes(32 * [1]))`.
    #[test]
    fn known_answers() {
        let known = [([0; 32], "02:24:7b:dc:ea:86"), ([1; 32], "02:b5:ca:dc:5d:ab")];
        for (key, address) in known {
            assert_eq!(LinkAddress::of(&PublicKey::from_bytes(key)).to_string(), address);
        }
    }

    #[test]
    fn link_local_addresses_lead_back() {
        let address = LinkAddress::from_bytes([2, 0x77, 0, 0, 0, 1]);
        let link_local: Ipv6Addr = "fe80::77:ff:fe00:1".parse().unwrap();
        assert_eq!(address.link_local(), link_local);
        assert_eq!(LinkAddress::of_link_local(link_local), Some(address));
        for other in ["fe80::1", "fe80:0:0:1:77:ff:fe00:1", "fd80::77:ff:fe00:1", "::"] {
            assert_eq!(LinkAddress::of_link_local(other.parse().unwrap()), None, "{other}");
        }
    }
}
