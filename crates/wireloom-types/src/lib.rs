//! What every part of Wireloom says the same way: keys, link addresses, the two decisions that WireGuard ties
//! together, the protocol's limits, and the names by which programs find an interface.
//!
//! This crate is at the bottom: it depends on no other crate of ours, and has no I/O, clock or randomness.

pub mod interface;
mod key;
pub mod limits;
mod link_address;
mod mode;

pub use self::{
    key::{KEY_LEN, KeyError, PresharedKey, PrivateKey, PublicKey},
    link_address::{LinkAddress, LinkAddressError},
    mode::{ChoiceError, Mode, ModeError, PeerLookup, SourceCheck},
};
