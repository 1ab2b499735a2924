//! ChaCha20-Poly1305 for the fields of handshake messages, from the library that encrypts data messages too (see
//! [`transport::aead`](crate::transport)). Each key encrypts once, so the nonce is always zero.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::kdf::HASH_LEN;
use crate::drop_reason::DropReason;
use crate::message::TAG_LEN;

/// Encrypts a field in place: the text is all but the last [`TAG_LEN`] bytes, which become its tag.
pub(crate) fn seal(key: &[u8; HASH_LEN], authenticated: &[u8], field: &mut [u8]) {
    let (text, tag) = field.split_at_mut(field.len() - TAG_LEN);
    let sealed = cipher(key)
        .seal_in_place_separate_tag(nonce(), Aad::from(authenticated), text)
        .expect("a field is shorter than the 256 GiB that ChaCha20 can encrypt");
    tag.copy_from_slice(sealed.as_ref());
}

/// Authenticates a field and decrypts it in place. Returns the text, without the tag.
pub(crate) fn open<'f>(
    key: &[u8; HASH_LEN],
    authenticated: &[u8],
    field: &'f mut [u8],
) -> Result<&'f [u8], DropReason> {
    let opened = cipher(key).open_in_place(nonce(), Aad::from(authenticated), field);
    opened.map(|text| &*text).map_err(|_| DropReason::BadCiphertext)
}

/// The library wipes the key when it is dropped.
fn cipher(key: &[u8; HASH_LEN]) -> LessSafeKey {
    let unbound =
        UnboundKey::new(&CHACHA20_POLY1305, key).expect("ChaCha20-Poly1305 takes every key of 32 bytes");
    LessSafeKey::new(unbound)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}
