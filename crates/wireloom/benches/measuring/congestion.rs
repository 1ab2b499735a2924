//! The congestion control of every load.

/// A sysctl for every machine. Its default may be an algorithm that probes for bandwidth and paces what it sends, which
/// caps a fast tunnel. It must change before there is a socket: iperf3's own option comes too late for the pacing.
pub(crate) const RENO: (&str, &str) = ("net/ipv4/tcp_congestion_control", "reno");
