//! The responder's side: reads the first message and writes the second one.
//!
//! What a stranger can ask for is kept small. An initiation costs one operation on the curve until it has proved that
//! it comes from a peer, and until the caller has found its timestamp to be new:
//!
//! 1. [`ClaimedInitiation::read`] computes `es` and learns who the sender claims to be. Everyone who knows our public
//!    key gets so far.
//! 2. [`ClaimedInitiation::authenticate`], for a peer, uses `ss`, which is computed once per peer. The tag of the
//!    timestamp proves who sent it, but it may be a replay.
//! 3. [`ResponderHandshake::respond`], for a new timestamp, draws the ephemeral key and computes `ee` and `se`.
//!
//! The time until we drop an initiation tells whether the key that its sender claims is that of a peer, as with the
//! kernel. Whoever measures it must know that key already.

use wireloom_types::{PresharedKey, PublicKey};

use super::fields::{self, SealedTimestamp};
use super::identity::{Identity, StaticStatic};
use super::symmetric_state::SymmetricState;
use super::x25519::{EphemeralKey, SharedSecret};
use crate::drop_reason::DropReason;
use crate::handshake::timestamp::Tai64N;
use crate::message::{Initiation, Response};
use crate::randomness::Randomness;
use crate::transport::session::SessionKeys;

/// An initiation that was made for our public key, by a sender who claims to be `peer`.
pub(crate) struct ClaimedInitiation<'m> {
    state: Box<SymmetricState>,
    ephemeral: PublicKey,
    timestamp: &'m SealedTimestamp,
    pub(crate) peer: PublicKey,
}

impl<'m> ClaimedInitiation<'m> {
    /// Reads an initiation as far as its sender (paper, section 5.4.2): e, es, s.
    pub(crate) fn read(
        identity: &Identity,
        message: &'m [u8; Initiation::NOISE_LEN],
    ) -> Result<Self, DropReason> {
        let (e, s, timestamp) = fields::of_initiation(message);
        let ephemeral = PublicKey::from_bytes(*e);
        let mut state = SymmetricState::new(&identity.public_key);

        state.mix_ephemeral(e);
        let key = state.mix_secret_for_key(&SharedSecret::new(&identity.private_key, &ephemeral)?);
        let peer = PublicKey::from_bytes(state.open(&key, s)?);
        Ok(Self { state, ephemeral, timestamp, peer })
    }

    /// Reads the rest: ss, timestamp. `static_static` is that of the peer. Whether the timestamp is new is for the
    /// caller to check.
    pub(crate) fn authenticate(
        mut self,
        identity: &Identity,
        static_static: &mut StaticStatic,
    ) -> Result<ResponderHandshake, DropReason> {
        let key = self.state.mix_secret_for_key(static_static.get(identity, &self.peer)?);
        let timestamp = Tai64N::from_bytes(self.state.open(&key, self.timestamp)?);
        Ok(ResponderHandshake { state: self.state, ephemeral: self.ephemeral, peer: self.peer, timestamp })
    }
}

/// An authentic initiation of a peer, until it is answered.
pub(crate) struct ResponderHandshake {
    state: Box<SymmetricState>,
    ephemeral: PublicKey,
    peer: PublicKey,
    pub(crate) timestamp: Tai64N,
}

impl ResponderHandshake {
    /// Writes the response (paper, section 5.4.3) and returns it with the keys of the session: e, ee, se, psk, nothing.
    pub(crate) fn respond(
        mut self,
        preshared_key: Option<&PresharedKey>,
        randomness: &mut Randomness,
    ) -> Result<([u8; Response::NOISE_LEN], SessionKeys), DropReason> {
        let ephemeral = EphemeralKey::draw(randomness);
        let e = *ephemeral.public.as_bytes();
        let state = &mut self.state;

        state.mix_ephemeral(&e);
        state.mix_secret(&SharedSecret::new(&ephemeral.private, &self.ephemeral)?);
        state.mix_secret(&SharedSecret::new(&ephemeral.private, &self.peer)?);
        let key = state.mix_preshared_key(preshared_key);
        let nothing = state.seal(&key, &[]);
        let [receiving, sending] = state.split();
        Ok((fields::response(&e, &nothing), SessionKeys { sending, receiving }))
    }
}
