//! Keys: Curve25519 key pairs and preshared keys. `wg` writes them in base64, the control socket in hex.

use std::{fmt, str::FromStr};

use base64ct::{Base64, Encoding};
use curve25519_dalek::MontgomeryPoint;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Length of a key, in bytes.
pub const KEY_LEN: usize = 32;

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not base64 of 32 bytes.
    #[error("not a WireGuard key: expected 44 characters of base64, as `wg` prints them")]
    Base64,
    /// The text is not hex of 32 bytes.
    #[error("not a WireGuard key: expected 64 hexadecimal digits")]
    Hex,
}

/// A Curve25519 public key, which identifies a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// A Curve25519 private key, clamped. It is wiped on drop, and `Debug` does not show it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LEN]);

/// A symmetric key that two peers share and mix into their handshakes. It is wiped on drop, and `Debug` does not show
/// it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PublicKey {
    /// The key with these bytes. Any 32 bytes are a public key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Reads a key in base64, as `wg` writes it.
    ///
    /// # Errors
    /// [`KeyError::Base64`] when the text is not base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(|bytes| Self(*bytes))
    }

    /// Reads a key in hex, upper or lower case, as the control socket carries it.
    ///
    /// # Errors
    /// [`KeyError::Hex`] when the text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        decode_hex(text).map(|bytes| Self(*bytes))
    }

    /// The key in lower-case hex.
    #[must_use]
    pub fn to_hex(&self) -> String {
        base16ct::lower::encode_string(&self.0)
    }
}

impl fmt::Display for PublicKey {
    /// Base64, as `wg` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl Serialize for PublicKey {
    /// Base64, as `wg` writes it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    /// Base64, as `wg` writes it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl PrivateKey {
    /// The key with these bytes, clamped as X25519 requires (RFC 7748, section 5). To make a new key, draw the bytes
    /// from the system's random generator.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(curve25519_dalek::scalar::clamp_integer(bytes))
    }

    /// The bytes of the key, which are secret.
    #[must_use]
    pub const fn expose_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key of this private key. Every call computes it again, with X25519.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        PublicKey(MontgomeryPoint::mul_base_clamped(self.0).to_bytes())
    }

    /// Reads a key in base64, as `wg genkey` writes it.
    ///
    /// # Errors
    /// [`KeyError::Base64`] when the text is not base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(|bytes| Self::from_bytes(*bytes))
    }

    /// Reads a key in hex, upper or lower case, as the control socket carries it.
    ///
    /// # Errors
    /// [`KeyError::Hex`] when the text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        decode_hex(text).map(|bytes| Self::from_bytes(*bytes))
    }

    /// The key in base64, which is secret and wiped on drop.
    #[must_use]
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(&self.0))
    }

    /// The key in lower-case hex, which is secret and wiped on drop.
    #[must_use]
    pub fn expose_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(base16ct::lower::encode_string(&self.0))
    }
}

impl PartialEq for PrivateKey {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(secret)")
    }
}

impl PresharedKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key, which are secret.
    #[must_use]
    pub const fn expose_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Reads a key in base64, as `wg genpsk` writes it.
    ///
    /// # Errors
    /// [`KeyError::Base64`] when the text is not base64 of 32 bytes.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        decode_base64(text).map(|bytes| Self(*bytes))
    }

    /// Reads a key in hex, upper or lower case, as the control socket carries it.
    ///
    /// # Errors
    /// [`KeyError::Hex`] when the text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        decode_hex(text).map(|bytes| Self(*bytes))
    }

    /// The key in base64, which is secret and wiped on drop.
    #[must_use]
    pub fn expose_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(Base64::encode_string(&self.0))
    }

    /// The key in lower-case hex, which is secret and wiped on drop.
    #[must_use]
    pub fn expose_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(base16ct::lower::encode_string(&self.0))
    }

    /// Whether every byte is zero, which `wg` and the control socket use for "no preshared key".
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.ct_eq(&[0; KEY_LEN]).into()
    }
}

impl PartialEq for PresharedKey {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(secret)")
    }
}

fn decode_base64(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    match Base64::decode(text, &mut *bytes) {
        Ok(decoded) if decoded.len() == KEY_LEN => Ok(bytes),
        _ => Err(KeyError::Base64),
    }
}

fn decode_hex(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    match base16ct::mixed::decode(text, &mut *bytes) {
        Ok(decoded) if decoded.len() == KEY_LEN => Ok(bytes),
        _ => Err(KeyError::Hex),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE64: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    #[test]
    fn keys_read_back_from_base64_and_hex() {
        let public = PublicKey::from_bytes([1; KEY_LEN]);
        assert_eq!(public.to_string(), BASE64);
        assert_eq!(BASE64.parse(), Ok(public));
        assert_eq!(PublicKey::from_hex(&public.to_hex()), Ok(public));
        assert_eq!(PublicKey::from_hex(&"0A".repeat(32)), Ok(PublicKey::from_bytes([10; 32])));
        let private = PrivateKey::from_bytes([0xff; KEY_LEN]);
        assert_eq!(PrivateKey::from_base64(&private.expose_base64()), Ok(private.clone()));
        assert_eq!(PrivateKey::from_hex(&private.expose_hex()), Ok(private));
        let psk = PresharedKey::from_base64(BASE64).unwrap();
        assert_eq!(PresharedKey::from_hex(&psk.expose_hex()), Ok(psk));
    }

    /// RFC 7748, section 6.1: Bob's key pair.
    #[test]
    fn the_public_key_of_a_private_key_is_that_of_the_rfc() {
        let private = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
        assert_eq!(PrivateKey::from_hex(private).unwrap().public_key().to_hex(), public);
    }

    #[test]
    fn private_keys_are_clamped() {
        let low = PrivateKey::from_bytes([0; KEY_LEN]);
        assert_eq!(low.expose_bytes()[0], 0);
        assert_eq!(low.expose_bytes()[31], 0x40);
        let high = PrivateKey::from_bytes([0xff; KEY_LEN]);
        assert_eq!((high.expose_bytes()[0], high.expose_bytes()[31]), (0xf8, 0x7f));
    }

    #[test]
    fn texts_of_another_length_or_alphabet_are_refused() {
        let short = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ==";
        let long = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
        for text in ["", "AQ==", short, long, &BASE64[..43], &BASE64.replace('B', "!"), "é"] {
            assert_eq!(PublicKey::from_base64(text), Err(KeyError::Base64), "{text}");
            assert_eq!(PrivateKey::from_base64(text), Err(KeyError::Base64), "{text}");
        }
        for text in ["", "01", &"01".repeat(31), &"01".repeat(33), &"0g".repeat(32), BASE64] {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::Hex), "{text}");
            assert_eq!(PresharedKey::from_hex(text), Err(KeyError::Hex), "{text}");
        }
    }

    #[test]
    fn a_preshared_key_of_zeros_is_recognised() {
        assert!(PresharedKey::from_bytes([0; KEY_LEN]).is_zero());
        assert!(!PresharedKey::from_bytes([1; KEY_LEN]).is_zero());
    }

    #[test]
    fn debug_output_shows_no_secrets() {
        let private = PrivateKey::from_bytes([1; KEY_LEN]);
        assert_eq!(format!("{private:?}"), "PrivateKey(secret)");
        let psk = PresharedKey::from_bytes([1; KEY_LEN]);
        assert_eq!(format!("{psk:?}"), "PresharedKey(secret)");
        let public = PublicKey::from_bytes([1; KEY_LEN]);
        assert_eq!(format!("{public:?}"), format!("PublicKey({BASE64})"));
    }
}
