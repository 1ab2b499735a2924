//! What may be shown of a preshared key.

use std::{fmt, str::FromStr};

use blake2::{Blake2s256, Digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::PresharedKey;

/// Distinguishes these hashes of a key from any others.
const DERIVATION: &[u8] = b"wireloom preshared key v1";

/// Length of the hash, in bytes: two keys of a mesh do not collide by chance, and whoever sees it learns nothing of a
/// key that was drawn at random.
const HASH_LEN: usize = 8;

/// A hash by which a preshared key is recognised in plans and logs: the first eight bytes of
/// BLAKE2s-256("wireloom preshared key v1" ‖ key), in hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PresharedKeyHash([u8; HASH_LEN]);

impl PresharedKeyHash {
    /// The hash of this key.
    #[must_use]
    pub fn of(key: &PresharedKey) -> Self {
        let hash = Blake2s256::new().chain_update(DERIVATION).chain_update(key.expose_bytes()).finalize();
        let mut bytes = [0; HASH_LEN];
        bytes.copy_from_slice(&hash[..HASH_LEN]);
        Self(bytes)
    }
}

/// The text is not sixteen hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the hash of a preshared key: expected {} hexadecimal digits", 2 * HASH_LEN)]
pub struct PresharedKeyHashError;

impl FromStr for PresharedKeyHash {
    type Err = PresharedKeyHashError;

    fn from_str(text: &str) -> Result<Self, PresharedKeyHashError> {
        let mut bytes = [0; HASH_LEN];
        match base16ct::lower::decode(text, &mut bytes) {
            Ok(decoded) if decoded.len() == HASH_LEN => Ok(Self(bytes)),
            _ => Err(PresharedKeyHashError),
        }
    }
}

impl fmt::Display for PresharedKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&base16ct::lower::encode_string(&self.0))
    }
}

impl fmt::Debug for PresharedKeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresharedKeyHash({self})")
    }
}

impl Serialize for PresharedKeyHash {
    /// The text of [`fmt::Display`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PresharedKeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hashlib: `blake2s(b"wireloom preshared key v1" + bytes(32 * [1])).hexdigest()[:16]`.
    #[test]
    fn hashes_follow_from_keys_and_are_read_back() {
        let hash = PresharedKeyHash::of(&PresharedKey::from_bytes([1; 32]));
        assert_eq!(hash.to_string(), "2aa14b62905d789a");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        for text in ["", "00", "2aa14b62905d789a0", "xxxxxxxxxxxxxxxx"] {
            assert_eq!(text.parse::<PresharedKeyHash>(), Err(PresharedKeyHashError), "{text}");
        }
    }
}
