//! The program with real packets, in network namespaces that each test makes for itself.
//!
//! | module | shows |
//! |---|---|
//! | [`laboratory`] | that the laboratory measures what it claims to, and leaves nothing behind |
//! | [`agent`] | that the agent repairs what others break, and takes every setting live |
//! | [`demo`] | that `wireloom-demo` keeps its promises, as root and not, and `--keep` |
//! | [`matrix`] | who reaches whom, encrypted or not, in each mode, and what switching it costs |
//! | [`rules`] | the policy rules as iproute2 prints them, live changes of pools and scope |
//! | [`membership`] | changes of the mesh file: keys, endpoints, nodes, borrowed addresses, mistakes |
//! | [`upgrade`] | that an unscoped rule gives way in the right order, and others' objects stay |
//! | [`restart`] | that an agent's end costs no packet, and `down` leaves nothing |
//! | [`reports`] | what `plan` and `status` tell, for people and for programs |
//! | [`trouble`] | what is said when the work cannot be done |
//! | [`kernel_roundtrip`] | that the kernel gives back what the shell wrote, and the planner's twin of it does as it does |
//! | [`link_agent`] | the matrix, the modes and the repairs with peers as neighbours (`[link]` in agent.toml) |
//! | `kernel_wireguard` | the kernel's WireGuard as the agents' back end (feature `kernel-wireguard`) |
//! | `kernel_fleet` | fleets on it: beside userspace nodes, harmed by strangers, large (feature `kernel-wireguard`) |
//! | [`link_mesh`] | the tests of the mesh once more, with peers as neighbours |
//! | [`link_firewall`] | that a peer sends from where it may and from nowhere else, as the agent keeps it |
//! | [`device`] | the userspace interface: its life, its control socket, what it does to bad packets |
//! | [`threads`] | the userspace interface with several threads: order, life and configuration are as with one |
//! | [`interop`] | the userspace interface with wireguard-go or the kernel's WireGuard at the other end |
//! | [`data_path`] | that bytes arrive whole, in the right packets, on good networks and bad ones |
//! | [`link_routing`] | routing daemons on a common link: BIRD, FRR and babeld, as docs/link-mode.md has them |
//! | [`link_device`] | the userspace interface as a link: its life, its modes, multicast, standard peers |
//! | [`link_next_hops`] | next hops as peers: gateways, tables, ECMP, IPv4 by IPv6 |
//! | [`link_errors`] | errors in milliseconds, addresses that move, path MTUs |
//!
//! [`fleet`], [`tunnel`], [`neighbours`], [`monitor`], [`transfer`], [`relay`] and [`frames`] are what they are built
//! with.
//!
//! `cargo test --features functional` runs them, as root or not (a test binary that may not make
//! namespaces starts itself again in a user namespace). They need Debian's `iproute2`, `iputils-ping`,
//! `nftables`, `util-linux`, `ethtool`, `tcpdump`, `wireguard-tools`, `wireguard-go`, `bird2`, `frr` and `babeld`; a missing one
//! fails with its name. Tests of the feature `kernel-wireguard` need a kernel that has it: they belong into
//! the virtual machine of `tests/vm`, where most of the others run as well.

mod agent;
mod data_path;
mod demo;
mod device;
mod fleet;
mod frames;
mod interop;
#[cfg(feature = "kernel-wireguard")]
mod kernel_fleet;
mod kernel_roundtrip;
#[cfg(feature = "kernel-wireguard")]
mod kernel_wireguard;
mod laboratory;
mod link_agent;
mod link_device;
mod link_errors;
mod link_firewall;
mod link_mesh;
mod link_next_hops;
mod link_routing;
mod matrix;
mod membership;
mod monitor;
mod neighbours;
mod relay;
mod reports;
mod restart;
mod rules;
mod threads;
mod transfer;
mod trouble;
mod tunnel;
mod upgrade;

use std::path::Path;

/// The program under test.
fn wireloom() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wireloom"))
}
