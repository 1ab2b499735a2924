//! Moves packets between a machine's network stack and its WireGuard peers.
//!
//! ```text
//!            ┌────────────── Engine ───────────────┐
//!   Tun ─────┤ DataPath: batches, sealing, opening ├───── Udp
//!            │ Device:   handshakes, timers        │
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
//! * `engine`: ties the protocol's device to the data path, and answers the control socket. Its thread carries both
//!   directions of the first queue. On a machine with more cores, workers carry one further queue each;
//! * `data_path`: both directions of one queue, outbound and inbound;
//! * `punt`: the way from the workers to the engine, for whatever needs the device or the link;
//! * `tun` and `udp`: the interface and the port, a trait each, with Linux behind it and an in-memory twin for tests;
//! * `batch`: datagrams that are handled together, sealed or not yet;
//! * [`forwarding`] and [`link`]: which peer gets a packet, by allowed-IPs or, in link mode, by the next hop;
//! * `path_mtu` and `icmp`: which packets are too long for their way, and how their senders are told;
//! * [`offload`] and [`packet`]: super-packets, and the headers of all protocols;
//! * `runtime`: turns, wake-ups, busy polling, the crypto pool.
//!
//! This crate is the only home of unsafe code and of the descriptors that packets pass through.

mod batch;
pub mod control;
mod data_path;
pub mod drops;
mod engine;
pub mod forwarding;
mod icmp;
pub mod link;
pub mod offload;
pub mod packet;
mod path_mtu;
pub mod process;
mod punt;
mod runtime;
mod tun;
mod udp;
