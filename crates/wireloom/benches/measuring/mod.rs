//! Loads and their figures, for all benches of the program.

pub(crate) mod datagrams;
pub(crate) mod machine;
pub(crate) mod streams;
pub(crate) mod summary;

use std::net::IpAddr;

use wireloom_lab::Space;

/// A sysctl for every machine. Its default may be an algorithm that probes for bandwidth and paces what it sends, which
/// caps a fast tunnel. It must change before there is a socket: iperf3's own option comes too late for the pacing.
pub(crate) const RENO: (&str, &str) = ("net/ipv4/tcp_congestion_control", "reno");

/// One end of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End<'a> {
    pub(crate) space: &'a Space,
    /// Where the other end reaches it.
    pub(crate) address: IpAddr,
}

/// The way of a load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) from: End<'a>,
    pub(crate) to: End<'a>,
}
