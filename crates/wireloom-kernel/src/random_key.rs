//! New private keys: what `wg genkey` does.

use std::io;

use wireloom_types::{KEY_LEN, PrivateKey};
use zeroize::Zeroizing;

/// Draws a new private key from the system's random generator.
///
/// # Errors
/// The system has no randomness to give.
pub fn random_key() -> io::Result<PrivateKey> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *bytes).map_err(io::Error::other)?;
    Ok(PrivateKey::from_bytes(*bytes))
}
