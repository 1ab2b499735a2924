//! Key generation, as `wg genkey` does it.

use std::io;

use wireloom_types::PrivateKey;
use zeroize::Zeroizing;

/// Draws a new private key from the system's random generator.
///
/// # Errors
/// When the random generator fails.
pub fn generate() -> io::Result<PrivateKey> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(io::Error::other)?;
    Ok(PrivateKey::from_bytes(*bytes))
}
