//! New keys, as `wg genkey` and `wg genpsk` make them.

use std::io;

use wireloom_types::{KEY_LEN, PresharedKey, PrivateKey};
use zeroize::Zeroizing;

/// Draws a new private key from the kernel's random number generator.
///
/// # Errors
/// The kernel provides no random numbers.
pub fn random_key() -> io::Result<PrivateKey> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *bytes).map_err(io::Error::other)?;
    Ok(PrivateKey::from_bytes(*bytes))
}

/// Draws a new preshared key from the kernel's random number generator.
///
/// # Errors
/// The kernel provides no random numbers.
pub fn random_preshared_key() -> io::Result<PresharedKey> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *bytes).map_err(io::Error::other)?;
    Ok(PresharedKey::from_bytes(*bytes))
}
