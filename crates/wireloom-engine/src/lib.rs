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
//! * [`engine`] ties them to the protocol. Its thread carries data both ways, and is the only one on a
//!   machine with few cores; more of them carry one queue each and `punt` what is not for every packet.
//! * [`link`] makes the peers neighbours on a link, when routing is to choose among them; [`mode`] is
//!   what else there is to choose.
//! * [`control`] is the socket that `wg` speaks to.
//! * [`interface`] makes a process of it all: the userspace interface.
//!
//! This crate is the only home of unsafe code and of data file descriptors.

mod admission;
mod bell;
mod cipher;
mod clock;
pub mod control;
mod crew;
mod departure;
mod doze;
pub mod drops;
pub mod engine;
pub mod interface;
pub mod link;
pub mod offload;
mod privilege;
mod punt;
mod queue;
mod reception;
mod slow_path;
mod standing_queue;
mod threads;
pub mod tun;
pub mod turn;
pub mod udp;
mod worker;
