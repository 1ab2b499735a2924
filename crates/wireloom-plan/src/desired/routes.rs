//! The routes of our table. The longest prefix wins, so a single address that is borrowed from another node's
//! block is routed to the node that has it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{View, member::Member};
use crate::{
    routing::{Family, RouteKind},
    settings::UnprovenPeers,
};

impl View<'_> {
    /// The route to exactly this destination.
    pub(crate) fn route(&self, destination: IpNet) -> Option<RouteKind> {
        let owner = self.owner(destination).and_then(|name| self.member(name));
        owner.and_then(|owner| self.route_to(&owner, destination)).or_else(|| self.backstop(destination))
    }

    /// The route to a prefix that this node gets.
    pub(super) fn route_to(&self, owner: &Member<'_>, destination: IpNet) -> Option<RouteKind> {
        let node = owner.node;
        let workload = node.workloads.contains(&destination);
        if owner.is_own {
            // Own addresses need no route: the table `local` comes before ours.
            workload.then_some(RouteKind::Throw)
        } else if owner.peer.is_some() {
            let family = Family::of(destination.addr());
            let on_the_link = node.link_addresses.contains(&destination.addr()) && is_single(destination);
            let gateway = if on_the_link { None } else { owner.gateway(family) };
            Some(RouteKind::Device { gateway, source: self.source(family) })
        } else {
            // A host that cannot encrypt stays reachable itself; the setting is about workloads.
            workload.then_some(match self.settings.unproven_peers {
                UnprovenPeers::Plaintext => RouteKind::Throw,
                UnprovenPeers::Reject => RouteKind::Unreachable,
            })
        }
    }

    /// Keeps every address of a pool from leaving in plaintext, even before a node claims it.
    fn backstop(&self, destination: IpNet) -> Option<RouteKind> {
        let reject = self.settings.unproven_peers == UnprovenPeers::Reject;
        (reject && self.cluster.pools.contains(&destination)).then_some(RouteKind::Unreachable)
    }

    /// The preferred source of the host's own packets into the tunnel. Without one the kernel may choose a
    /// pod-facing address, which is not among this node's allowed-IPs at the other end.
    pub(super) fn source(&self, family: Family) -> Option<IpAddr> {
        self.sources[family as usize]
    }
}

fn is_single(prefix: IpNet) -> bool {
    prefix.prefix_len() == prefix.max_prefix_len()
}
