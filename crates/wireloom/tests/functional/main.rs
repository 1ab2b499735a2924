//! The program with real packets, in network namespaces that each test makes for itself.
//!
//! | module | shows |
//! |---|---|
//! | [`kernel_roundtrip`] | that the kernel gives back what the shell wrote, and the planner's twin of it does as it does |
//! | [`laboratory`] | that the laboratory measures what it claims to, and leaves nothing behind |
//! | [`device`] | the userspace interface: its life, its control socket, what it does to bad packets |
//! | [`interop`] | the userspace interface with wireguard-go at the other end |
//!
//! `cargo test --features functional` runs them, as root or not (a test binary that may not make
//! namespaces starts itself again in a user namespace). They need Debian's `iproute2`, `iputils-ping`,
//! `nftables`, `util-linux`, `wireguard-tools` and `wireguard-go`; a missing one fails with its name.

mod device;
mod interop;
mod kernel_roundtrip;
mod laboratory;
mod tunnel;

use std::path::Path;

/// The program under test.
fn wireloom() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_wireloom"))
}
