//! How large a laboratory is, and which addresses its parts have.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wireloom_plan::routing::Family;

/// Both families, in the order in which results are shown.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// How large a laboratory is.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Machines: 1 to 26.
    pub nodes: u8,
    /// On each node: 0 to 200.
    pub pods: u8,
    /// `net.ipv4.conf.{all,default}.rp_filter` on every node: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// The bridge to the pods has the first address of the node's block, as bridging network plugins do:
    /// one more source address for the kernel to choose from. Else it has link-local ones alone, as
    /// Calico's nodes do.
    pub block_address: bool,
    /// Bytes. Larger than the tunnel's, and every new TCP stream loses its first flight to path MTU
    /// discovery; network plugins set what the tunnel takes.
    pub pod_mtu: u16,
    /// Every node's main table leads to the other nodes' pods over the underlay, as network plugins see to.
    /// Else only a routing daemon can find them.
    pub routed: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { nodes: 2, pods: 1, rp_filter: 0, block_address: false, pod_mtu: 1500, routed: true }
    }
}

/// One address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4
    pub v4: Ipv4Addr,
    /// IPv6
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of one family.
    #[must_use]
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.of(family))
    }

    /// Both as prefixes that hold nothing else: /32 and /128.
    #[must_use]
    pub fn single(self) -> [IpNet; 2] {
        self.both().map(IpNet::from)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.v4, self.v6)
    }
}

/// Pods take their addresses from here: 10.161.0.0/16 and fd00:10:161::/48.
pub(crate) fn pools() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 161, 0, 0), 16).into(),
        Ipv6Net::new_assert(pod(0, 0).v6, 48).into(),
    ]
}

/// Node `n` (from 1) on the underlay: 192.168.1.n and fd00:192:168:1::n, in a /24 and a /64.
pub(crate) fn host(n: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 1, n),
        v6: Ipv6Addr::new(0xfd00, 0x192, 0x168, 1, 0, 0, 0, n.into()),
    }
}

/// What pods send to when nodes have no address of their block: 169.254.1.1 and fe80::1.
pub(crate) fn link_local() -> Addresses {
    Addresses { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) }
}

/// Address `k` of node `n`'s block; 1 is the node's own where it has one.
pub(crate) fn pod(n: u8, k: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 161, n, k),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x161, n.into(), 0, 0, 0, k.into()),
    }
}

/// Router `n` on a [common link](super::Link): 100.64.0.n and fd64::n.
pub(crate) fn link_address(n: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(100, 64, 0, n), v6: Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, n.into()) }
}

/// Where several routers serve the same.
pub(crate) const SERVICE: Addresses =
    Addresses { v4: Ipv4Addr::new(10, 200, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 1) };

/// Node `n`'s block of pod addresses: 10.161.n.0/24 and fd00:10:161:n::/64.
pub(crate) fn block(n: u8) -> [IpNet; 2] {
    let first = pod(n, 0);
    [Ipv4Net::new_assert(first.v4, 24).into(), Ipv6Net::new_assert(first.v6, 64).into()]
}

/// `node-a` for 1, and so on.
pub(crate) fn node_name(n: u8) -> String {
    format!("node-{}", char::from(b'a' + n - 1))
}
