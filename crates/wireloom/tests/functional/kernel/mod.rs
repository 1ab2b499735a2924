//! The agent's work on the kernel: rules, routes, sysctls, nftables, and the kernel's own WireGuard.

#[cfg(feature = "kernel-wireguard")]
mod backend;
#[cfg(feature = "kernel-wireguard")]
mod fleets;
#[cfg(feature = "kernel-wireguard")]
mod instances;
mod machine;
mod roundtrip;
mod twin;
