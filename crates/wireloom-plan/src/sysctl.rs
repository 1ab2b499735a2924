//! The sysctls of underlay interfaces that Wireloom sets.

use serde::{Deserialize, Serialize};

/// The name of the pseudo-interface whose sysctls apply to every interface.
pub const ALL: &str = "all";

/// A sysctl outside our own interface that Wireloom may set (`net.ipv4.conf.IFACE.…`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnderlaySysctl {
    /// Set to loose (2), because ARP requests are subject to source validation and carry no mark.
    RpFilter,
    /// Set to 1, so that source validation uses the packet's mark.
    SrcValidMark,
    /// Set to 0 on [`ALL`]: either it or the interface's own sysctl enables redirects. On a link, packets
    /// from one peer to another leave by the interface that they came in by, which would trigger redirects.
    SendRedirects,
}

impl UnderlaySysctl {
    /// The file name, and the last part of the dotted name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RpFilter => "rp_filter",
            Self::SrcValidMark => "src_valid_mark",
            Self::SendRedirects => "send_redirects",
        }
    }
}
