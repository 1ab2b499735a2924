//! X25519: ephemeral keys, and the secrets that two key pairs share (paper, section 5.4: `DH` and `DH-Generate`).

use curve25519_dalek::MontgomeryPoint;
use wireloom_types::{KEY_LEN, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use crate::drop_reason::DropReason;
use crate::randomness::Randomness;

/// The other side's public key is a point of low order, so that anyone can compute the shared secret: it is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LowOrder;

impl From<LowOrder> for DropReason {
    fn from(_: LowOrder) -> Self {
        Self::BadCiphertext
    }
}

/// The secret that a private key and a public key share. It is never zero, lies on the heap, and is wiped on drop.
pub(crate) struct SharedSecret(Box<Zeroizing<[u8; KEY_LEN]>>);

impl SharedSecret {
    /// Fails for points of low order (RFC 7748, section 6.1), as the kernel does.
    pub(crate) fn new(own: &PrivateKey, other: &PublicKey) -> Result<Self, LowOrder> {
        let point = MontgomeryPoint(*other.as_bytes()).mul_clamped(*own.expose_bytes());
        let secret = Self(Box::new(Zeroizing::new(point.to_bytes())));
        // Points are compared in constant time.
        if point == MontgomeryPoint([0; KEY_LEN]) { Err(LowOrder) } else { Ok(secret) }
    }

    /// The secret that was handed over. `None` when it is zero.
    pub(crate) fn from_bytes(bytes: &Zeroizing<[u8; KEY_LEN]>) -> Option<Self> {
        (**bytes != [0; KEY_LEN]).then(|| Self(Box::new(bytes.clone())))
    }

    pub(crate) fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// A key pair for one handshake.
pub(crate) struct EphemeralKey {
    pub(crate) private: Box<PrivateKey>,
    pub(crate) public: PublicKey,
}

impl EphemeralKey {
    /// Draws a key pair that the generator forgets.
    pub(crate) fn draw(randomness: &mut Randomness) -> Self {
        Self::from_private(PrivateKey::from_bytes(*randomness.draw_secret()))
    }

    /// The key pair with this private key.
    pub(super) fn from_private(private: PrivateKey) -> Self {
        let private = Box::new(private);
        let public = private.public_key();
        Self { private, public }
    }
}
