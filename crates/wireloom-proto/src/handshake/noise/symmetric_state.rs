//! The chaining key and the hash that both sides carry through a handshake: `C` and `H` of the paper.

use std::sync::LazyLock;

use wireloom_types::{KEY_LEN, PresharedKey, PublicKey};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::aead;
use super::kdf::{Digest32, HASH_LEN, derive, hash};
use super::x25519::SharedSecret;
use crate::drop_reason::DropReason;
use crate::message::TAG_LEN;

const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// Replaces an absent preshared key (paper, section 5.2).
const NO_PSK: [u8; KEY_LEN] = [0; KEY_LEN];

/// The chaining key and the hash with which every handshake begins. They are public.
static INITIAL: LazyLock<([u8; HASH_LEN], [u8; HASH_LEN])> = LazyLock::new(|| {
    let chaining_key = *hash(CONSTRUCTION, &[]);
    (chaining_key, *hash(&chaining_key, IDENTIFIER))
});

/// The state of a handshake, which both sides have alike after each step. It is wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SymmetricState {
    chaining_key: [u8; HASH_LEN],
    hash: [u8; HASH_LEN],
}

impl SymmetricState {
    /// The state before the first message. Both sides know the responder's public key. It lies on the heap, where it
    /// stays until it is wiped.
    pub(crate) fn new(responder: &PublicKey) -> Box<Self> {
        let (chaining_key, before) = &*INITIAL;
        Box::new(Self { chaining_key: *chaining_key, hash: *hash(before, responder.as_bytes()) })
    }

    /// The chaining key and the hash, to be handed over.
    pub(crate) fn parts(&self) -> (&[u8; HASH_LEN], &[u8; HASH_LEN]) {
        (&self.chaining_key, &self.hash)
    }

    /// The state that was handed over.
    pub(crate) fn from_parts(chaining_key: &[u8; HASH_LEN], hash: &[u8; HASH_LEN]) -> Box<Self> {
        Box::new(Self { chaining_key: *chaining_key, hash: *hash })
    }

    /// Mixes an ephemeral public key in: `C := Kdf1(C, E)`, `H := Hash(H ‖ E)`.
    pub(crate) fn mix_ephemeral(&mut self, ephemeral: &[u8; KEY_LEN]) {
        let [chaining_key] = derive(&self.chaining_key, ephemeral);
        self.chaining_key = *chaining_key;
        self.mix_hash(ephemeral);
    }

    /// Mixes a shared secret in: `C := Kdf1(C, secret)`.
    pub(crate) fn mix_secret(&mut self, secret: &SharedSecret) {
        let [chaining_key] = derive(&self.chaining_key, secret.as_bytes());
        self.chaining_key = *chaining_key;
    }

    /// Mixes a shared secret in and derives the key of the next field: `(C, k) := Kdf2(C, secret)`.
    pub(crate) fn mix_secret_for_key(&mut self, secret: &SharedSecret) -> Digest32 {
        let [chaining_key, key] = derive(&self.chaining_key, secret.as_bytes());
        self.chaining_key = *chaining_key;
        key
    }

    /// Mixes the preshared key in and derives the key of the last field: `(C, t, k) := Kdf3(C, Q)`, `H := Hash(H ‖ t)`.
    pub(crate) fn mix_preshared_key(&mut self, preshared_key: Option<&PresharedKey>) -> Digest32 {
        let preshared_key = preshared_key.map_or(&NO_PSK, PresharedKey::expose_bytes);
        let [chaining_key, temporary, key] = derive(&self.chaining_key, preshared_key);
        self.chaining_key = *chaining_key;
        self.mix_hash(&*temporary);
        key
    }

    /// Encrypts a text, bound to all that came before, and mixes the field in: the encrypted text and its tag.
    pub(crate) fn seal<const TEXT: usize, const FIELD: usize>(
        &mut self,
        key: &Digest32,
        text: &[u8; TEXT],
    ) -> [u8; FIELD] {
        const { assert!(FIELD == TEXT + TAG_LEN, "a field is a text and its tag") };
        let mut field = [0; FIELD];
        field[..TEXT].copy_from_slice(text);
        aead::seal(key, &self.hash, &mut field);
        self.mix_hash(&field);
        field
    }

    /// Decrypts a field and mixes it in. The state is of no use any more when the field is not authentic.
    pub(crate) fn open<const TEXT: usize, const FIELD: usize>(
        &mut self,
        key: &Digest32,
        field: &[u8; FIELD],
    ) -> Result<[u8; TEXT], DropReason> {
        const { assert!(FIELD == TEXT + TAG_LEN, "a field is a text and its tag") };
        let mut decrypted = *field;
        let text = aead::open(key, &self.hash, &mut decrypted)?;
        let text = *text.first_chunk().expect("a text is a field without its tag");
        self.mix_hash(field);
        Ok(text)
    }

    /// The keys of the session: from initiator to responder, and from responder to initiator (paper, section 5.4.5).
    pub(crate) fn split(&self) -> [Digest32; 2] {
        derive(&self.chaining_key, &[])
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = *hash(&self.hash, data);
    }
}
