//! The elements of the firewall's sets: who may send from where.

use std::fmt;

use serde::Serialize;
use wireloom_types::LinkAddress;

use crate::address_range::AddressRange;

/// Addresses that a peer may send from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Source {
    /// The peer, as the packets that come from it name it.
    pub peer: LinkAddress,
    /// From which addresses.
    pub addresses: AddressRange,
}

impl Source {
    /// Some address is in both of one peer. The kernel has no such two in a set (`nft_pipapo_insert`,
    /// net/netfilter/nft_set_pipapo.c).
    pub fn overlaps(&self, other: &Self) -> bool {
        self.peer == other.peer
            && (self.addresses.contains(other.addresses.first())
                || other.addresses.contains(self.addresses.first()))
    }
}

/// As nft writes it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} . {}", self.peer, self.addresses)
    }
}
