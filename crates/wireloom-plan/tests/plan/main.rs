//! What the planner promises, as a table of contents:
//!
//! - `rules`: which rules there are, in which order they come and go, and what the kernel's loose
//!   matching of delete requests does to them
//! - `routes`: the table: keyless nodes, shared keys, borrowed addresses, the backstop, foreign routes
//! - `peers`: keys, endpoints, allowed-IPs and who they pass between
//! - `modes`: packets between hosts and pods, in each mode and across live switches
//! - `link`: peers as neighbours: next hops, the routes to them, and the modes all over again
//! - `sources`: who may send from where, and what of the firewall changes when
//! - `host`: sysctls, firewall, link, and everything taken away again
//! - `kernel`: the in-memory kernel does what Linux was measured to do
//! - `warnings`: what the operator is told
//! - `properties`: from arbitrary kernels to arbitrary meshes
//! - `incremental`: one changed node at a time is the same as from nothing
//!
//! `world` is the ground they stand on: machines with in-memory kernels, and packets between them.

mod host;
mod incremental;
mod json;
mod kernel;
mod link;
mod modes;
mod peers;
mod properties;
mod routes;
mod rules;
mod sources;
mod universe;
mod warnings;
mod world;
