//! Hashing, and deriving keys from keys (paper, section 5.4: `Hash`, `Hmac` and `Kdf`).

use blake2::{Blake2s256, Digest};
use zeroize::{Zeroize, Zeroizing};

/// Length of a hash and of a derived key, in bytes.
pub(crate) const HASH_LEN: usize = 32;
/// Length of the blocks that BLAKE2s takes, in bytes, to which HMAC pads its key (RFC 2104).
const BLOCK_LEN: usize = 64;

/// 32 bytes that are wiped on drop: a hash, a chaining key or a derived key.
pub(crate) type Digest32 = Zeroizing<[u8; HASH_LEN]>;

/// The hash of two texts, one after the other.
pub(crate) fn hash(first: &[u8], second: &[u8]) -> Digest32 {
    let mut output = Zeroizing::new([0; HASH_LEN]);
    let hash = Blake2s256::new().chain_update(first).chain_update(second);
    hash.finalize_into((&mut *output).into());
    output
}

/// HMAC-BLAKE2s (RFC 2104) of two texts, one after the other. The key is a hash, so it need not be shortened.
fn hmac(key: &[u8; HASH_LEN], first: &[u8], second: &[u8]) -> Digest32 {
    let mut pad = Zeroizing::new([0x36; BLOCK_LEN]);
    pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
    let mut inner = Zeroizing::new([0; HASH_LEN]);
    let text = Blake2s256::new().chain_update(&pad[..]).chain_update(first).chain_update(second);
    text.finalize_into((&mut *inner).into());
    pad.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5c);
    hash(&*pad, &*inner)
}

/// Derives `N` keys from a key and an input: HKDF (RFC 5869) with the key as its salt.
pub(crate) fn derive<const N: usize>(key: &[u8; HASH_LEN], input: &[u8]) -> [Digest32; N] {
    let secret = hmac(key, input, &[]);
    let mut last = Zeroizing::new([0; HASH_LEN]);
    let mut number = 0;
    std::array::from_fn(|_| {
        let previous: &[u8] = if number == 0 { &[] } else { &*last };
        number += 1;
        let next = hmac(&secret, previous, &[number]);
        last.zeroize();
        last.copy_from_slice(&*next);
        next
    })
}
