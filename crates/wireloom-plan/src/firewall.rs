//! The contents of the nftables table `inet wireloom`.

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;
use wireloom_types::LinkAddress;

use crate::address_range::AddressRange;

/// The table's chains. The elements of its sets are [`Observed::judged_peers`], [`Observed::sources`] and
/// [`Observed::guarded`].
///
/// [`Observed::judged_peers`]: crate::observed::Observed::judged_peers
/// [`Observed::sources`]: crate::observed::Observed::sources
/// [`Observed::guarded`]: crate::observed::Observed::guarded
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Marks incoming WireGuard packets before routing, so that source validation sees the mark that the
    /// reply will have (host mode).
    pub mark_incoming: Option<IncomingMark>,
    /// In link mode, refuses and counts packets from our interface unless their source address is one of
    /// the [`Source`]s of the peer whose link address they come from.
    pub judge_sources: bool,
    /// Refuses in plaintext what must be encrypted.
    pub guard: Option<Guard>,
    /// The longest TCP segment, bytes, that handshakes over IPv6 through our interface may ask for: a path carries no
    /// IPv6 packet of the least MTU without fragments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment_v6: Option<u16>,
    /// Somebody changed the table: it holds something that no operation of ours creates, or lacks something
    /// that ours create. Never desired.
    pub altered: bool,
}

/// Marking of incoming WireGuard packets, in prerouting at raw priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IncomingMark {
    /// UDP destination port.
    pub port: u16,
    /// OR-ed into the packet's mark.
    pub mark: u32,
}

/// The chains of the guard: what should be encrypted neither leaves nor enters in plaintext, whatever routing says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Guard {
    /// In host mode: the incoming and outgoing encrypted datagrams, which pass. Absent in scoped mode, where answers to
    /// connections that came in directly pass instead, with [`Guard::mark`].
    pub datagrams: Option<IncomingMark>,
    /// The mark of WireGuard's own packets, OR-ed into what is direct all the same, so that the rule does not match it:
    /// answers to connections that came in directly, and in host mode what is exempt.
    pub mark: u32,
    /// Whether everything in a pool is refused in plaintext, not only what belongs to proven peers.
    pub reject: bool,
    /// The interfaces other than ours that lead to other machines.
    pub outward: BTreeSet<String>,
    /// An IPv4 address of ours that the far end accepts in the tunnel: the source of ICMP errors about packets between
    /// workloads.
    pub error_source_v4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub error_source_v6: Option<Ipv6Addr>,
}

/// A set of the guard, of addresses of both families (in nftables one set each).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardSet {
    /// This node's workloads; in host mode also its own addresses.
    Own,
    /// The pools; without declared ones, every node's workload CIDRs.
    Pools,
    /// Addresses of nodes that lie in a pool or in a workload CIDR: no workloads. Empty in host mode.
    Nodes,
    /// In host mode: addresses of no workloads from and to which packets are direct.
    Exempt,
    /// In host mode: addresses of nodes from and to which packets in plaintext are taken, though none are sent.
    Tolerated,
    /// Where nothing may be sent in plaintext: the workloads of proven peers, in host mode also their addresses.
    /// Elements count what they refuse.
    RefusedOut,
    /// From where nothing is taken in plaintext. Elements count what they refuse.
    RefusedIn,
}

impl GuardSet {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Own,
        Self::Pools,
        Self::Nodes,
        Self::Exempt,
        Self::Tolerated,
        Self::RefusedOut,
        Self::RefusedIn,
    ];
}

/// An element of a set of the guard. Those of one set do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Guarded {
    /// The set.
    pub set: GuardSet,
    /// The addresses.
    pub addresses: AddressRange,
}

/// Addresses that a peer may send from: an element of the table's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source {
    /// The source link address of the peer's packets.
    pub peer: LinkAddress,
    /// The addresses.
    pub addresses: AddressRange,
}

impl Source {
    /// Both are of the same peer and have an address in common. A set of the kernel never holds two such
    /// elements (`nft_pipapo_insert`, net/netfilter/nft_set_pipapo.c).
    pub fn overlaps(&self, other: &Self) -> bool {
        self.peer == other.peer && self.addresses.overlaps(&other.addresses)
    }
}

/// The syntax of nft.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.peer, self.addresses)
    }
}
