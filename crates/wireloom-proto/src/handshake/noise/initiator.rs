//! The initiator's side: writes the first message and reads the second one.

use std::fmt;

use wireloom_types::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::fields;
use super::identity::{Identity, StaticStatic};
use super::symmetric_state::SymmetricState;
use super::x25519::{EphemeralKey, LowOrder, SharedSecret};
use crate::drop_reason::DropReason;
use crate::handshake::timestamp::Tai64N;
use crate::message::{Initiation, Response};
use crate::randomness::Randomness;
use crate::transport::session::SessionKeys;

/// A handshake that we have begun, until its response arrives.
pub(crate) struct InitiatorHandshake {
    state: Box<SymmetricState>,
    ephemeral: EphemeralKey,
}

impl InitiatorHandshake {
    /// Begins a handshake and writes its first message (paper, section 5.4.2): e, es, s, ss, timestamp.
    ///
    /// Fails when the peer's public key is a point of low order.
    pub(crate) fn begin(
        identity: &Identity,
        peer: &PublicKey,
        static_static: &mut StaticStatic,
        timestamp: Tai64N,
        randomness: &mut Randomness,
    ) -> Result<(Self, [u8; Initiation::NOISE_LEN]), LowOrder> {
        let static_static = static_static.get(identity, peer)?;
        let ephemeral = EphemeralKey::draw(randomness);
        let e = *ephemeral.public.as_bytes();
        let mut state = SymmetricState::new(peer);

        state.mix_ephemeral(&e);
        let key = state.mix_secret_for_key(&SharedSecret::new(&ephemeral.private, peer)?);
        let s = state.seal(&key, identity.public_key.as_bytes());
        let key = state.mix_secret_for_key(static_static);
        let timestamp = state.seal(&key, timestamp.as_bytes());
        Ok((Self { state, ephemeral }, fields::initiation(&e, &s, &timestamp)))
    }

    /// The chaining key, the hash and the ephemeral private key, to be handed over.
    pub(crate) fn parts(&self) -> [Zeroizing<[u8; KEY_LEN]>; 3] {
        let (chaining_key, hash) = self.state.parts();
        [chaining_key, hash, self.ephemeral.private.expose_bytes()].map(|part| Zeroizing::new(*part))
    }

    /// The handshake that was handed over.
    pub(crate) fn from_parts([chaining_key, hash, ephemeral]: [&[u8; KEY_LEN]; 3]) -> Self {
        Self {
            state: SymmetricState::from_parts(chaining_key, hash),
            ephemeral: EphemeralKey::from_private(PrivateKey::from_bytes(*ephemeral)),
        }
    }

    /// Reads the response and returns the keys of the session (paper, section 5.4.3): e, ee, se, psk, nothing. A forged
    /// response does not change the handshake.
    pub(crate) fn finish(
        &self,
        identity: &Identity,
        preshared_key: Option<&PresharedKey>,
        message: &[u8; Response::NOISE_LEN],
    ) -> Result<SessionKeys, DropReason> {
        let (e, nothing) = fields::of_response(message);
        let responder = PublicKey::from_bytes(*e);
        let mut state = self.state.clone();

        state.mix_ephemeral(e);
        state.mix_secret(&SharedSecret::new(&self.ephemeral.private, &responder)?);
        state.mix_secret(&SharedSecret::new(&identity.private_key, &responder)?);
        let key = state.mix_preshared_key(preshared_key);
        let [] = state.open(&key, nothing)?;
        let [sending, receiving] = state.split();
        Ok(SessionKeys { sending, receiving })
    }
}

impl fmt::Debug for InitiatorHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitiatorHandshake").finish_non_exhaustive()
    }
}
