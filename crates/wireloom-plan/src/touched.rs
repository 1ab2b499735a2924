//! What changes of the cluster touched: all that a plan has to compare after them.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PublicKey};

use crate::firewall::{Guarded, Source};

/// The objects that changes of the cluster touched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) peers: BTreeSet<PublicKey>,
    pub(crate) destinations: BTreeSet<IpNet>,
    pub(crate) neighbours: BTreeSet<IpAddr>,
    pub(crate) judged_peers: BTreeSet<LinkAddress>,
    pub(crate) sources: BTreeSet<Source>,
    pub(crate) guarded: BTreeSet<Guarded>,
}

impl Touched {
    pub(crate) fn extend(&mut self, other: Self) {
        self.peers.extend(other.peers);
        self.destinations.extend(other.destinations);
        self.neighbours.extend(other.neighbours);
        self.judged_peers.extend(other.judged_peers);
        self.sources.extend(other.sources);
        self.guarded.extend(other.guarded);
    }
}
