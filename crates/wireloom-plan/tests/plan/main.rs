//! What the planner promises:
//!
//! - `rules`: the rules, the order in which they are added and removed, and the effects of the kernel's loose
//!   matching of delete requests
//! - `routes`: the table: keyless nodes, shared keys, borrowed addresses, the backstop, foreign routes
//! - `peers`: keys, endpoints, and allowed-IPs that move between peers
//! - `names`: endpoints by name: what is looked up when, and which address is used
//! - `modes`: packets between hosts and pods, in each mode and across live switches
//! - `link`: link mode: neighbours, next hops, the routes to neighbours, and the modes once more
//! - `targets`: whom the prober of paths asks
//! - `sources`: the addresses that the firewall lets each peer send from, and when the firewall changes
//! - `bypass`: what may pass by the guard
//! - `ownership`: whose table it is, and what others have in it
//! - `host`: sysctls, firewall, interface, and the removal of everything
//! - `twin`: the in-memory kernel does what Linux was measured to do
//! - `json`: the JSON form of operations
//! - `guard`: whose addresses are workloads, and where plaintext is refused
//! - `health`: what is so on a node, each finding and each verdict
//! - `holdback`: removals of many nodes at once are held back
//! - `warnings`: the warnings to the operator
//! - `properties`: from arbitrary kernels to arbitrary meshes
//! - `incremental`: updating change by change gives the same as planning from scratch
//!
//! `world` provides machines with in-memory kernels, and packets between them.

mod bypass;
mod guard;
mod health;
mod holdback;
mod host;
mod incremental;
mod json;
mod link;
mod modes;
mod names;
mod ownership;
mod paths;
mod peers;
mod prober;
mod properties;
mod routes;
mod rules;
mod sources;
mod targets;
mod twin;
mod universe;
mod warnings;
mod world;
