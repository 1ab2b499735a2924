//! ChaCha20-Poly1305 over trains of messages: the one place that knows which library encrypts.
//!
//! Callers hand over whole trains, so that a cipher which works on several buffers at once can take
//! this one's place without a change elsewhere.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::message::{DATA_HEADER_LEN, TAG_LEN};

/// The key of one direction of a session. The library wipes its memory when it is dropped.
pub(crate) struct TransportKey(LessSafeKey);

impl TransportKey {
    pub(crate) fn new(key: &Zeroizing<[u8; 32]>) -> Self {
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, &**key)
            .expect("ChaCha20-Poly1305 takes every key of 32 bytes");
        Self(LessSafeKey::new(unbound))
    }

    /// Encrypts, in place, what stands between header and tag of each message, and writes the tags.
    pub(crate) fn seal<'m>(&self, train: impl Iterator<Item = (u64, &'m mut [u8])>) {
        for (counter, message) in train {
            let (_, body) = message.split_at_mut(DATA_HEADER_LEN);
            let (payload, tag) = body.split_at_mut(body.len() - TAG_LEN);
            let sealed = self
                .0
                .seal_in_place_separate_tag(nonce(counter), Aad::empty(), payload)
                .expect("a message is shorter than the 256 GiB that ChaCha20 can encrypt");
            tag.copy_from_slice(sealed.as_ref());
        }
    }

    /// Authenticates and decrypts each message in place and tells the outcome of each, in order:
    /// the payload, or `None` for a forgery.
    pub(crate) fn open<'m>(
        &self,
        train: impl Iterator<Item = (u64, &'m mut [u8])>,
        mut outcome: impl FnMut(u64, Option<&'m mut [u8]>),
    ) {
        for (counter, message) in train {
            let (_, body) = message.split_at_mut(DATA_HEADER_LEN);
            let (payload, tag) = body.split_at_mut(body.len() - TAG_LEN);
            let opened = self.0.open_in_place_separate_tag(nonce(counter), Aad::empty(), tag, payload);
            outcome(counter, opened.ok());
        }
    }
}

/// Four zero bytes, then the counter in little endian (paper, section 5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
