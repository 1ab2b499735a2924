//! The size of a laboratory, and its address plan.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wireloom_plan::routing::Family;

/// Both families, in the order in which results are shown.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The size of a laboratory, and what differs between network plugins.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// How many machines: 1 to 26.
    pub nodes: u8,
    /// How many pods on each machine: 0 to 200.
    pub pods: u8,
    /// `net.ipv4.conf.{all,default}.rp_filter` on every node: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// True: the bridge to the pods has the first address of the node's block, as bridging network plugins set
    /// it, and the kernel has one more source address to choose from. False: it has link-local addresses only,
    /// as a Calico node does.
    pub block_address: bool,
    /// The MTU inside the pods, in bytes. With more than the tunnel's, every new TCP stream loses its first
    /// flight to path MTU discovery; network plugins set the tunnel's.
    pub pod_mtu: u32,
    /// True: every node's main table routes the other nodes' pods over the underlay, as network plugins do.
    /// False: that is left to routing daemons.
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
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
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

    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.of(family))
    }

    /// Both addresses as prefixes: a /32 and a /128.
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

/// The pools that hold all pods' addresses: 10.161.0.0/16 and fd00:10:161::/48.
pub(crate) fn pools() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(10, 161, 0, 0), 16).into(),
        Ipv6Net::new_assert(pod(0, 0).v6, 48).into(),
    ]
}

/// The addresses of node `n` (from 1) on the underlay: 192.168.1.n and fd00:192:168:1::n, in a /24 and a /64.
pub(super) fn host(n: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(192, 168, 1, n),
        v6: Ipv6Addr::new(0xfd00, 0x192, 0x168, 1, 0, 0, 0, n.into()),
    }
}

/// The pods' gateway on a node without an address of its block: 169.254.1.1 and fe80::1, as Calico has it.
pub(super) fn link_local() -> Addresses {
    Addresses { v4: Ipv4Addr::new(169, 254, 1, 1), v6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) }
}

/// Addresses `k` of node `n`'s block: 10.161.n.k and fd00:10:161:n::k. With [`Layout::block_address`] the node has
/// number 1 itself.
pub(crate) fn pod(n: u8, k: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 161, n, k),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x161, n.into(), 0, 0, 0, k.into()),
    }
}

/// The addresses of router `n` on a [`Link`](crate::Link): 100.64.0.n and fd64::n.
pub(crate) fn link_address(n: u8) -> Addresses {
    Addresses { v4: Ipv4Addr::new(100, 64, 0, n), v6: Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, n.into()) }
}

/// The addresses of the service that several routers of a [`Link`](crate::Link) offer: 10.200.0.1 and fd00:10:200::1.
pub(crate) const SERVICE: Addresses =
    Addresses { v4: Ipv4Addr::new(10, 200, 0, 1), v6: Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 1) };

/// The blocks of node `n`'s pods: 10.161.n.0/24 and fd00:10:161:n::/64.
pub(super) fn block(n: u8) -> [IpNet; 2] {
    let first = pod(n, 0);
    [Ipv4Net::new_assert(first.v4, 24).into(), Ipv6Net::new_assert(first.v6, 64).into()]
}

/// The name of node `n`: `node-a` for 1, and so on.
pub(super) fn node_name(n: u8) -> String {
    format!("node-{}", char::from(b'a' + n - 1))
}
