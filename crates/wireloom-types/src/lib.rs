//! The types that Wireloom's crates share.
//!
//! | module | holds |
//! |---|---|
//! | `key` | public, private and preshared keys, in base64 and in hex |
//! | `link_address` | the Ethernet address that stands for a peer in link mode |
//! | `preshared_hash` | what may be shown of a preshared key |
//! | `mode` | which peer gets a packet, and who checks its source: the two decisions that WireGuard ties together |
//! | `directory` | which directories may hold sockets, locks, state and keys |
//! | [`exit_status`] | how a device says why it has ended |
//! | [`limits`] | the protocol's limits |
//! | [`interface`] | the names by which programs recognise an interface |
//! | [`path_probe`] | by what the device recognises an agent's probes of a path |
//!
//! This crate is at the bottom: it depends on no other crate of ours, does no I/O, reads no clock and draws no
//! randomness.

mod directory;
pub mod exit_status;
pub mod interface;
mod key;
pub mod limits;
mod link_address;
mod mode;
pub mod path_probe;
mod preshared_hash;

pub use self::{
    directory::{DirectoryError, check_directory},
    key::{KEY_LEN, KeyError, PresharedKey, PrivateKey, PublicKey},
    link_address::{LinkAddress, LinkAddressError},
    mode::{ChoiceError, Mode, ModeError, PeerLookup, SourceCheck},
    preshared_hash::{PresharedKeyHash, PresharedKeyHashError},
};
