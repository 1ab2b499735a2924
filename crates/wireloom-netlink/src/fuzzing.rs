//! Doors for `fuzz/`.

use crate::{Messages, RawMessage, Refusal};

/// The messages of a datagram, as a socket delivers it.
#[must_use]
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages::of(datagram)
}

/// The refusal that a message is, given its error code.
#[must_use]
pub fn refusal(message: &RawMessage<'_>, code: i32) -> Refusal {
    message.refusal(code)
}
