//! The device's static key pair, and the secret that it shares with a peer's.

use wireloom_types::{KEY_LEN, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::x25519::{LowOrder, SharedSecret};

/// The device's static key pair. The public key is computed once. The private key lies on the heap, where it stays
/// until it is wiped.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) private_key: Box<PrivateKey>,
    pub(crate) public_key: PublicKey,
}

impl Identity {
    pub(crate) fn new(private_key: PrivateKey) -> Self {
        let public_key = private_key.public_key();
        Self { private_key: Box::new(private_key), public_key }
    }
}

/// `ss`: the secret that the device's static key and a peer's share. It is computed at its first use, because a device
/// may get thousands of peers at once. Only an initiation to the peer, or one whose sender claims to be the peer, uses
/// it, so no stranger has it computed for more keys than there are peers.
#[derive(Default)]
pub(crate) struct StaticStatic(Option<Result<SharedSecret, LowOrder>>);

impl StaticStatic {
    /// The secret of these two keys, which must be the same ones in each call until [`Self::forget`].
    pub(crate) fn get(&mut self, own: &Identity, peer: &PublicKey) -> Result<&SharedSecret, LowOrder> {
        let secret = self.0.get_or_insert_with(|| SharedSecret::new(&own.private_key, peer));
        secret.as_ref().map_err(|low_order| *low_order)
    }

    /// The secret, if it has been computed, to be handed over.
    pub(crate) fn state(&self) -> Option<Zeroizing<[u8; KEY_LEN]>> {
        let secret = self.0.as_ref()?.as_ref().ok()?;
        Some(Zeroizing::new(*secret.as_bytes()))
    }

    /// The secret that was handed over.
    pub(crate) fn from_state(state: Option<&Zeroizing<[u8; KEY_LEN]>>) -> Self {
        Self(state.and_then(SharedSecret::from_bytes).map(Ok))
    }

    /// Wipes the secret, because one of the keys changes.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

impl std::fmt::Debug for StaticStatic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StaticStatic").finish_non_exhaustive()
    }
}
