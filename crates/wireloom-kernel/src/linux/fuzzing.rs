//! Doors for `fuzz/`.

use wireloom_plan::connections::Connection;

/// The connection that a socket of the kernel's answer has, if it is of interest.
#[must_use]
pub fn connection(answer: &[u8]) -> Option<Connection> {
    super::connections::Socket::connection(answer)
}
