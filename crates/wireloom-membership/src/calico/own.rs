//! This node's own workloads and tunnel addresses.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{affinity::Block, annotations::Annotations};
use crate::kubernetes::settings::Workloads;

/// What is known of the blocks of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// Nothing yet.
    #[default]
    Unknown,
    /// Calico's IPAM gives no addresses here: there are no affinities, or no such objects.
    None,
    /// Other hosts have blocks, this one has none (yet).
    OfOthers,
    /// Those of this host; at least one.
    Own(BTreeSet<IpNet>),
    /// This host had some, and has given back the last one. Other hosts get it now.
    GivenBack,
}

impl Blocks {
    /// From the blocks of this host, and whether any host has one.
    pub(crate) fn new(own: &BTreeSet<Block>, any: bool) -> Self {
        match (own.is_empty(), any) {
            (false, _) => Self::Own(own.iter().map(|block| block.cidr).collect()),
            (true, true) => Self::OfOthers,
            (true, false) => Self::None,
        }
    }

    /// What is known when `now` follows on this: that this host had blocks is not forgotten.
    pub(crate) fn then(&self, now: Self) -> Self {
        match (self, &now) {
            (_, Self::Own(_)) | (Self::Unknown | Self::None | Self::OfOthers, _) => now,
            (Self::Own(_) | Self::GivenBack, _) => Self::GivenBack,
        }
    }

    /// This node's workloads, if its Node has these `podCIDRs`; `None` as long as nobody has given it any. A tunnel
    /// address that the IPAM took from elsewhere is one of them: other nodes accept no other sources.
    ///
    /// A cluster whose hosts have blocks does not use `podCIDRs`, so a host without a block waits for its first one:
    /// what its `podCIDRs` contain may be other hosts' blocks. One that has given back its last block has none until it
    /// gets another.
    pub(crate) fn workloads(
        &self,
        choice: Workloads,
        pod_cidrs: Option<BTreeSet<IpNet>>,
        annotations: &Annotations,
    ) -> Option<BTreeSet<IpNet>> {
        let mut workloads = match (choice, self) {
            (Workloads::PodCidrs, _) | (Workloads::Auto, Self::None) => pod_cidrs?,
            (_, Self::Own(blocks)) => blocks.clone(),
            (_, Self::GivenBack) => BTreeSet::new(),
            (Workloads::Auto, Self::Unknown | Self::OfOthers) => return None,
            (Workloads::Calico, Self::Unknown | Self::None | Self::OfOthers) => return None,
        };
        workloads.extend(outside(&annotations.tunnel_addresses, &workloads));
        Some(workloads)
    }
}

/// The addresses that lie in none of the blocks, as prefixes of one address each.
pub(super) fn outside(addresses: &BTreeSet<IpAddr>, blocks: &BTreeSet<IpNet>) -> BTreeSet<IpNet> {
    let is_outside = |address: &&IpAddr| !blocks.iter().any(|block| block.contains(*address));
    addresses.iter().filter(is_outside).map(|address| IpNet::from(*address)).collect()
}
