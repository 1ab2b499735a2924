//! The routes of our table. Longest prefix wins there, so a single address that is borrowed from
//! another node's block goes to the node that has it.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::View;
use crate::{
    kernel::{Family, RouteKind},
    settings::KeylessPeers,
};

impl View<'_> {
    pub(super) fn routes(&self) -> BTreeMap<IpNet, RouteKind> {
        let destinations = self.index.prefixes().chain(self.cluster.pools.iter().copied());
        destinations.filter_map(|to| Some((to, self.route(to)?))).collect()
    }

    /// What the table says of exactly this destination.
    pub(crate) fn route(&self, destination: IpNet) -> Option<RouteKind> {
        self.route_of_claim(destination).or_else(|| self.backstop(destination))
    }

    fn route_of_claim(&self, destination: IpNet) -> Option<RouteKind> {
        let owner = self.owner(destination)?;
        let node = self.cluster.nodes.get(owner)?;
        let workload = node.workloads.contains(&destination);
        if self.is_own(owner) {
            // Own addresses need nothing: the table `local` comes before ours.
            workload.then_some(RouteKind::Throw)
        } else if self.peer_key(node).is_some() {
            let family = Family::of(destination.addr());
            let on_the_link = node.link_addresses.contains(&destination.addr()) && is_single(destination);
            let gateway = if on_the_link { None } else { self.gateway(owner, node, family) };
            Some(RouteKind::Device { gateway, source: self.source(family) })
        } else {
            // A host that cannot encrypt stays reachable as itself; only workloads are judged.
            workload.then_some(match self.settings.keyless_peers {
                KeylessPeers::Plaintext => RouteKind::Throw,
                KeylessPeers::Reject => RouteKind::Unreachable,
            })
        }
    }

    /// Nothing of a pool leaves in plaintext, whoever will claim it.
    fn backstop(&self, destination: IpNet) -> Option<RouteKind> {
        let reject = self.settings.keyless_peers == KeylessPeers::Reject;
        (reject && self.cluster.pools.contains(&destination)).then_some(RouteKind::Unreachable)
    }

    /// The source of the host's own packets into the tunnel. Left to itself the kernel may take a
    /// pod-facing address, which the far end's allowed-IPs refuse.
    pub(super) fn source(&self, family: Family) -> Option<IpAddr> {
        if !self.settings.encrypt_host_traffic {
            return None;
        }
        self.addresses_here().find(|address| Family::of(*address) == family)
    }
}

fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}
