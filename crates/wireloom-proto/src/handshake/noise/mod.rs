//! The Noise handshake IKpsk2 (paper, section 5.4), over `curve25519-dalek`, `blake2` and the cipher of data messages.
//!
//! | file | holds |
//! |---|---|
//! | `identity` | the device's key pair |
//! | `x25519` | ephemeral keys and shared secrets |
//! | `kdf` | hashing, and deriving keys from keys |
//! | `fields` | where the parts of a message are |
//! | `aead` | encrypting and authenticating the fields of a message |
//! | `symmetric_state` | the chaining key and the hash that both sides carry through a handshake |
//! | `initiator`, `responder` | the two messages, from either side |
//!
//! Names are Noise's: `e` is an ephemeral key and `s` a static one, and `es` is the secret that the initiator's `e` and
//! the responder's `s` share. All that is secret lies on the heap or on the stack of the call that made it. What lies
//! on the heap is wiped where it lies when it is dropped; the stack is wiped by
//! [`on_wiped_stack`](crate::wiped_stack::on_wiped_stack), in which the device calls all of this.

mod aead;
mod fields;
mod identity;
mod initiator;
mod kdf;
mod responder;
mod symmetric_state;
#[cfg(test)]
mod tests;
mod x25519;

pub(crate) use self::identity::{Identity, StaticStatic};
pub(crate) use self::initiator::InitiatorHandshake;
pub(crate) use self::responder::ClaimedInitiation;
