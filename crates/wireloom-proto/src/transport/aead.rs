//! ChaCha20-Poly1305 for data messages: the only file that knows which library encrypts them.
//!
//! Its interface takes whole batches, so that a cipher that works on several messages at once can replace this one
//! without a change elsewhere.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::message::{DATA_HEADER_LEN, TAG_LEN};

/// The key of one direction of a session. The library wipes it when it is dropped.
pub(crate) struct TransportKey(LessSafeKey);

impl TransportKey {
    pub(crate) fn new(key: &Zeroizing<[u8; 32]>) -> Self {
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, &**key)
            .expect("ChaCha20-Poly1305 takes every key of 32 bytes");
        Self(LessSafeKey::new(unbound))
    }

    /// Encrypts each message in place, between header and tag, and writes its tag.
    pub(crate) fn seal<'m>(&self, batch: impl Iterator<Item = (u64, &'m mut [u8])>) {
        for (counter, message) in batch {
            let (_, body) = message.split_at_mut(DATA_HEADER_LEN);
            let (payload, tag) = body.split_at_mut(body.len() - TAG_LEN);
            let sealed = self
                .0
                .seal_in_place_separate_tag(nonce(counter), Aad::empty(), payload)
                .expect("a message is shorter than the 256 GiB that ChaCha20 can encrypt");
            tag.copy_from_slice(sealed.as_ref());
        }
    }

    /// Authenticates and decrypts each message in place, and reports each in order: its counter and its payload, or
    /// `None` when it is not authentic.
    pub(crate) fn open<'m>(
        &self,
        batch: impl Iterator<Item = (u64, &'m mut [u8])>,
        mut outcome: impl FnMut(u64, Option<&'m mut [u8]>),
    ) {
        for (counter, message) in batch {
            let (_, body) = message.split_at_mut(DATA_HEADER_LEN);
            let (payload, tag) = body.split_at_mut(body.len() - TAG_LEN);
            let opened = self.0.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, payload);
            outcome(counter, opened.ok());
        }
    }
}

/// The nonce of a message: four zero bytes, then the counter in little endian (paper, section 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
