//! Routes of our table that should lead packets for other nodes into the tunnel.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::Facts;
use crate::{
    cluster::Node,
    op::{Op, RtnetlinkOp},
    routing::{Route, RouteKind},
};

/// What packets for other nodes meet in our table instead of a route into the tunnel.
pub(super) struct Astray<'a> {
    /// The destinations to which no route leads into the tunnel, and one should.
    pub(super) missing: BTreeSet<IpNet>,
    /// Routes that lead elsewhere: those of others, and ours that an agent would remove.
    elsewhere: Vec<&'a Route>,
    /// What is refused where no narrower route is.
    refused: Vec<IpNet>,
    host_mode: bool,
}

impl<'a> Astray<'a> {
    pub(super) fn of(facts: &Facts<'a>) -> Self {
        let observed = facts.observed;
        let removed: BTreeSet<&Route> = facts
            .plan
            .into_iter()
            .flat_map(|plan| &plan.ops)
            .filter_map(|op| match op {
                Op::Rtnetlink(RtnetlinkOp::RemoveRoute(route)) => Some(route),
                _ => None,
            })
            .collect();
        let elsewhere = observed.routes.iter().filter(|route| {
            !matches!(route.kind, RouteKind::Device { .. }) && (!route.is_ours() || removed.contains(route))
        });
        let stays = |route: &&Route| route.kind == RouteKind::Unreachable && !removed.contains(route);
        Self {
            missing: missing(facts),
            elsewhere: elsewhere.collect(),
            refused: observed.routes.iter().filter(stays).map(|route| route.destination).collect(),
            host_mode: facts.settings.encrypt_host_traffic,
        }
    }

    /// Whether packets for a node do not all reach the tunnel.
    pub(super) fn concerns(&self, node: &Node) -> bool {
        self.prefixes(node).any(|to| self.misses(to) || self.leads_elsewhere(to))
    }

    /// Whether all of those that do not reach the tunnel are refused by another route of the table.
    pub(super) fn refuses(&self, node: &Node) -> bool {
        let stops = |to: IpNet| self.refused.iter().any(|around| around.contains(&to));
        self.prefixes(node).all(|to| !self.leads_elsewhere(to) && (!self.misses(to) || stops(to)))
    }

    fn misses(&self, to: IpNet) -> bool {
        self.missing.contains(&to)
    }

    fn leads_elsewhere(&self, to: IpNet) -> bool {
        // Of two routes to one destination the kernel takes that with the lower metric.
        let comes_first = |route: &Route| {
            route.destination != to || route.metric <= Route::ours(to, RouteKind::Throw).metric
        };
        self.elsewhere.iter().any(|route| to.contains(&route.destination) && comes_first(route))
    }

    /// What of a node may have a route into the tunnel.
    pub(super) fn prefixes(&self, node: &Node) -> impl Iterator<Item = IpNet> {
        let hosts = if self.host_mode { node.underlay_addresses() } else { BTreeSet::new() };
        node.workloads
            .iter()
            .copied()
            .chain(hosts.into_iter().map(IpNet::from))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

/// The destinations of the routes into the tunnel that an agent would set and that are not there. Without a plan nobody
/// knows which ones there should be: then it is every workload CIDR without one.
fn missing(facts: &Facts<'_>) -> BTreeSet<IpNet> {
    let leads_into_tunnel = |to: IpNet, wanted: Option<&RouteKind>| {
        facts.observed.routes_to(to).any(|route| match (&route.kind, wanted) {
            (RouteKind::Device { gateway, .. }, Some(RouteKind::Device { gateway: wanted, .. })) => {
                gateway == wanted
            }
            (RouteKind::Device { .. }, _) => true,
            _ => false,
        })
    };
    let Some(plan) = facts.plan else {
        let nodes = facts.cluster.into_iter().flat_map(|cluster| &cluster.nodes);
        let others = nodes.filter(|(name, _)| **name != facts.settings.node);
        let workloads = others.flat_map(|(_, node)| &node.workloads).copied();
        return workloads.filter(|to| !leads_into_tunnel(*to, None)).collect();
    };
    let set = plan.ops.iter().filter_map(|op| match op {
        Op::Rtnetlink(RtnetlinkOp::SetRoute(route)) => Some(route),
        _ => None,
    });
    let into_tunnel = set.filter(|route| matches!(route.kind, RouteKind::Device { .. }));
    let missing = into_tunnel.filter(|route| !leads_into_tunnel(route.destination, Some(&route.kind)));
    missing.map(|route| route.destination).collect()
}
