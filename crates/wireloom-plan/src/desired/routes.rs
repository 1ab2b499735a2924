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
        self.route_to(&self.member(self.owner(destination)?)?, destination)
    }

    /// The route to a prefix that this node gets.
    pub(super) fn route_to(&self, owner: &Member<'_>, destination: IpNet) -> Option<RouteKind> {
        let node = owner.node;
        let workload = node.workloads.contains(&destination);
        if owner.is_own {
            // Own addresses need no route: the table `local` comes before ours.
            workload.then_some(RouteKind::Throw)
        } else if self.encrypts_to(owner, workload) {
            let family = Family::of(destination.addr());
            let on_the_link = node.link_addresses.contains(&destination.addr()) && is_single(destination);
            let gateway = if on_the_link { None } else { owner.gateway(family) };
            let mtu = owner.peer.and_then(|peer| self.mtu_to(peer.key, family));
            Some(RouteKind::Device { gateway, source: self.source(family), mtu })
        } else {
            // Refusing is the firewall's work.
            workload.then_some(RouteKind::Throw)
        }
    }

    /// Whether packets for a prefix of this peer enter the tunnel. A host of which we have no proof stays reachable
    /// itself: `"reject"` is about workloads.
    fn encrypts_to(&self, owner: &Member<'_>, workload: bool) -> bool {
        let proven = owner.standing.is_some_and(|standing| standing.egress);
        let rejected = self.settings.unproven_peers == UnprovenPeers::Reject && workload;
        owner.peer.is_some() && (proven || (rejected && owner.node.encrypt && self.own.encrypt))
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
