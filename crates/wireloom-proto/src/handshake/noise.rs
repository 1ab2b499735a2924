//! The Noise handshake IKpsk2 (paper, section 5.4). `snow` runs it, with our keys, our randomness and our X25519.
//!
//! Known limitation: `snow` does not wipe its memory. When a handshake ends, its chaining key, from which the session's
//! keys are derived, and a copy of the preshared key stay in freed memory until that is overwritten. Our own
//! copies of private, ephemeral, preshared and session keys are wiped on drop.

use std::fmt;
use std::sync::{Arc, LazyLock};

use curve25519_dalek::MontgomeryPoint;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::Rng;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use wireloom_types::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::handshake::timestamp::Tai64N;
use crate::message::{Initiation, Response};
use crate::transport::session::SessionKeys;

static PARAMETERS: LazyLock<NoiseParams> =
    LazyLock::new(|| "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("snow knows this pattern"));
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The position of the preshared key in IKpsk2: the end of the second message.
const PSK_POSITION: usize = 2;
/// Replaces an absent preshared key (paper, section 5.2).
const NO_PSK: [u8; KEY_LEN] = [0; KEY_LEN];

/// The device's static key pair. The public key is computed once.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) private_key: PrivateKey,
    pub(crate) public_key: PublicKey,
}

impl Identity {
    pub(crate) fn new(private_key: PrivateKey) -> Self {
        let public_key = private_key.public_key();
        Self { private_key, public_key }
    }
}

/// A handshake that we have begun, until its response arrives.
pub(crate) struct InitiatorHandshake(snow::HandshakeState);

impl InitiatorHandshake {
    /// Begins a handshake and writes its first message.
    ///
    /// Fails when the peer's public key is a point of low order, because anyone can compute the shared secret then.
    pub(crate) fn begin(
        identity: &Arc<Identity>,
        peer: &PublicKey,
        timestamp: Tai64N,
        rng: &mut ChaCha20Rng,
    ) -> Result<(Self, [u8; Initiation::NOISE_LEN]), snow::Error> {
        let mut noise = builder(identity, rng)?.remote_public_key(peer.as_bytes())?.build_initiator()?;
        let mut message = [0; Initiation::NOISE_LEN];
        noise.write_message(timestamp.as_bytes(), &mut message)?;
        Ok((Self(noise), message))
    }

    /// Reads the response and returns the keys of the session. A forged response does not change the handshake.
    pub(crate) fn finish(
        &mut self,
        preshared_key: Option<&PresharedKey>,
        message: &[u8; Response::NOISE_LEN],
    ) -> Result<SessionKeys, DropReason> {
        set_psk(&mut self.0, preshared_key).map_err(|_| DropReason::BadCiphertext)?;
        self.0.read_message(message, &mut []).map_err(|_| DropReason::BadCiphertext)?;
        let (sending, receiving) = split(&mut self.0);
        Ok(SessionKeys { sending, receiving })
    }
}

impl fmt::Debug for InitiatorHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InitiatorHandshake").finish_non_exhaustive()
    }
}

/// An authentic initiation of a peer, until it is answered.
pub(crate) struct ResponderHandshake {
    noise: snow::HandshakeState,
    pub(crate) peer: PublicKey,
    pub(crate) timestamp: Tai64N,
}

impl ResponderHandshake {
    /// Reads an initiation: who sent it, and when. Whether the peer is configured and the timestamp new is for the
    /// caller to check.
    pub(crate) fn read(
        identity: &Arc<Identity>,
        message: &[u8; Initiation::NOISE_LEN],
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, DropReason> {
        let mut read = || -> Result<Self, snow::Error> {
            let mut noise = builder(identity, rng)?.build_responder()?;
            let mut timestamp = [0; Tai64N::LEN];
            noise.read_message(message, &mut timestamp)?;
            let peer =
                noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(snow::Error::Input)?;
            Ok(Self { noise, peer: PublicKey::from_bytes(peer), timestamp: Tai64N::from_bytes(timestamp) })
        };
        read().map_err(|_| DropReason::BadCiphertext)
    }

    /// Writes the response and returns it with the keys of the session.
    pub(crate) fn respond(
        mut self,
        preshared_key: Option<&PresharedKey>,
    ) -> Result<([u8; Response::NOISE_LEN], SessionKeys), DropReason> {
        let mut write = || -> Result<_, snow::Error> {
            set_psk(&mut self.noise, preshared_key)?;
            let mut message = [0; Response::NOISE_LEN];
            self.noise.write_message(&[], &mut message)?;
            let (receiving, sending) = split(&mut self.noise);
            Ok((message, SessionKeys { sending, receiving }))
        };
        write().map_err(|_| DropReason::BadCiphertext)
    }
}

fn builder<'a>(identity: &'a Arc<Identity>, rng: &mut ChaCha20Rng) -> Result<snow::Builder<'a>, snow::Error> {
    let mut ephemeral = Zeroizing::new([0; KEY_LEN]);
    rng.fill_bytes(&mut *ephemeral);
    let resolver = Resolver { identity: Arc::clone(identity), ephemeral };
    snow::Builder::with_resolver(PARAMETERS.clone(), Box::new(resolver))
        .local_private_key(identity.private_key.expose_bytes())?
        .prologue(PROLOGUE)
}

fn set_psk(
    noise: &mut snow::HandshakeState,
    preshared_key: Option<&PresharedKey>,
) -> Result<(), snow::Error> {
    let key = preshared_key.map_or(&NO_PSK, PresharedKey::expose_bytes);
    noise.set_psk(PSK_POSITION, key)
}

/// The keys of a finished handshake: from initiator to responder, and from responder to initiator.
fn split(noise: &mut snow::HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (to_responder, to_initiator) = noise.dangerously_get_raw_split();
    (Zeroizing::new(to_responder), Zeroizing::new(to_initiator))
}

/// Gives one handshake its ephemeral key and our X25519. The hash and the cipher are those of `snow`.
struct Resolver {
    identity: Arc<Identity>,
    ephemeral: Zeroizing<[u8; KEY_LEN]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(OneEphemeral(Some(self.ephemeral.clone()))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519 {
                identity: Arc::clone(&self.identity),
                private_key: Zeroizing::new([0; KEY_LEN]),
                public_key: [0; KEY_LEN],
            })),
            DHChoice::Curve448 => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The randomness of one handshake: 32 bytes, for its only ephemeral key. They can be taken once only, so that no
/// mistake can use an ephemeral key twice.
struct OneEphemeral(Option<Zeroizing<[u8; KEY_LEN]>>);

impl Random for OneEphemeral {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let ephemeral = self.0.take().ok_or(snow::Error::Rng)?;
        if dest.len() != ephemeral.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(&*ephemeral);
        Ok(())
    }
}

/// X25519 that knows the device's public key, so that a handshake need not compute it again. It refuses points of low
/// order (RFC 7748, section 6.1), as the kernel does.
struct X25519 {
    identity: Arc<Identity>,
    private_key: Zeroizing<[u8; KEY_LEN]>,
    public_key: [u8; KEY_LEN],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, private_key: &[u8]) {
        self.private_key.copy_from_slice(private_key);
        let own = self.identity.private_key.expose_bytes();
        self.public_key = if aws_lc_rs::constant_time::verify_slices_are_equal(own, private_key).is_ok() {
            *self.identity.public_key.as_bytes()
        } else {
            MontgomeryPoint::mul_base_clamped(*self.private_key).to_bytes()
        };
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        rng.try_fill_bytes(&mut *self.private_key)?;
        self.public_key = MontgomeryPoint::mul_base_clamped(*self.private_key).to_bytes();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public_key
    }

    fn privkey(&self) -> &[u8] {
        &*self.private_key
    }

    fn dh(&self, public_key: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let public_key = *public_key.first_chunk().ok_or(snow::Error::Dh)?;
        let shared = MontgomeryPoint(public_key).mul_clamped(*self.private_key);
        if shared == MontgomeryPoint([0; KEY_LEN]) {
            return Err(snow::Error::Dh);
        }
        out[..KEY_LEN].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}
