//! Moves packets between a machine's network stack and its WireGuard peers.
//!
//! ```text
//!           ┌───────────── Engine ──────────────┐
//!   Tun ────┤ Worker: batches, sealing, opening ├──── Udp
//!           │ Device: handshakes, timers        │
//!           └────────────────▲──────────────────┘
//!                   requests │ replies
//!            control socket, one thread a client
//! ```
//!
//! * [`tun`] and [`udp`] are what packets come from and go to: a trait each, with Linux behind it and
//!   a twin in memory.
//! * [`offload`] cuts the super-packets that come from the network stack, and joins those that go to it.
//! * [`engine`] ties them to the protocol; one thread carries data both ways.
//! * [`control`] is the socket that `wg` speaks to.
//! * [`interface`] makes a process of it all: the userspace interface.
//!
//! This crate is the only home of unsafe code and of data file descriptors.

mod clock;
pub mod control;
pub mod drops;
pub mod engine;
pub mod interface;
pub mod keys;
pub mod offload;
mod privilege;
pub mod tun;
pub mod udp;
mod worker;

pub use wireloom_proto::{KeyError, PresharedKey, PrivateKey, PublicKey};
