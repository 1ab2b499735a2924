//! The contents of the nftables table `inet wireloom`.

use std::fmt;

use serde::Serialize;
use wireloom_types::LinkAddress;

use crate::address_range::AddressRange;

/// The table's chains. The elements of its sets are [`Observed::judged_peers`] and [`Observed::sources`].
///
/// [`Observed::judged_peers`]: crate::observed::Observed::judged_peers
/// [`Observed::sources`]: crate::observed::Observed::sources
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Marks incoming WireGuard packets before routing, so that source validation sees the mark that the
    /// reply will have (host mode).
    pub mark_incoming: Option<IncomingMark>,
    /// In link mode, refuses and counts packets from our interface unless their source address is one of
    /// the [`Source`]s of the peer whose link address they come from.
    pub judge_sources: bool,
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
        self.peer == other.peer
            && (self.addresses.contains(other.addresses.first())
                || other.addresses.contains(self.addresses.first()))
    }
}

/// The syntax of nft.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.peer, self.addresses)
    }
}
