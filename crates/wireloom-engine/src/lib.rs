//! Moves packets between a machine's network stack and its WireGuard peers.
//!
//! ```text
//!            ┌──── Worker, one for each queue ─────┐
//!   Tun ─────┤ DataPath: batches, sealing, opening ├───── Udp
//!            └──────────────────┬──────────────────┘
//!               signals, punts  │
//!            ┌──────────────────▼──────────────────┐
//!            │ Engine   Device: handshakes, timers │
//!            └──────────────────▲──────────────────┘
//!                      requests │ replies
//!               control socket, one thread per client
//! ```
//!
//! From the outside, this crate is a process ([`process::Interface`]) and the parser of its control socket
//! ([`control::Parser`]). The pure parts that are benchmarked are public, too: [`forwarding`], [`link`], [`offload`],
//! [`packet`].
//!
//! Inside, from the top down:
//!
//! * `process`: the main loop, the workers' threads, privileges, clocks;
//! * `engine`: ties the protocol's device to the data path, and answers the control socket. Its thread is the control
//!   thread. Workers on threads of their own carry the packets of one queue each;
//! * `data_path`: both directions of one queue, outbound and inbound;
//! * `punt`: the way from the workers to the control thread, for whatever needs the device;
//! * `tun` and `udp`: the interface and the port, a trait each, with Linux behind it and an in-memory twin for tests;
//! * `batch`: datagrams that are handled together, sealed or not yet;
//! * [`forwarding`] and [`link`]: which peer gets a packet, by allowed-IPs or, in link mode, by the next hop;
//! * [`answer`]: what the network stack is told at once about a packet that it sent;
//! * [`drops`]: counters of dropped packets;
//! * `path_mtu` and `icmp`: which packets are too long for their way, and how their senders are told;
//! * [`offload`] and [`packet`]: super-packets, and the headers of all protocols;
//! * `handover`: how one process gives the interface to the next, while packets flow;
//! * `kept_timestamp`: what outlives the process, so that peers accept its handshakes after a clock was set back;
//! * `directory` and `socket_file`: directories that nobody else can put files in, sockets of processes that have died;
//! * `runtime`: turns, wake-ups, busy polling, the crypto pool;
//! * `sync`: what the crypto pool's threads share, with stand-ins for model checks.
//!
//! This crate is the only home of unsafe code and of the descriptors that packets pass through.

pub mod answer;
mod batch;
pub mod control;
mod data_path;
mod directory;
pub mod drops;
mod engine;
pub mod forwarding;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handover;
mod icmp;
mod kept_timestamp;
pub mod link;
pub mod offload;
pub mod packet;
mod path_mtu;
pub mod process;
mod punt;
mod runtime;
mod socket_file;
mod sync;
mod tun;
mod udp;
