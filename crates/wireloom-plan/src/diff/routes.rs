//! Routes of our table. A route that changes is replaced in place (see [`RtnetlinkOp::SetRoute`]), so that
//! no packet ever misses it.

use std::{cmp::Reverse, collections::BTreeSet};

use ipnet::IpNet;

use crate::{
    desired::Desired,
    observed::Observed,
    op::RtnetlinkOp,
    routing::{Route, RouteKind},
};

/// Two steps, with the rules in between.
#[derive(Default)]
pub(super) struct RouteChanges {
    /// Additions, the longest prefixes first: a new wide route (the backstop above all) must not catch
    /// packets for a narrower one that is yet to be added.
    pub(super) early: Vec<RtnetlinkOp>,
    /// Removals, the shortest prefixes first for the same reason.
    pub(super) late: Vec<RtnetlinkOp>,
}

/// Every destination that has, or should have, a route.
pub(super) fn all(observed: &Observed, desired: &Desired) -> BTreeSet<IpNet> {
    observed.routes.iter().map(|route| route.destination).chain(desired.routes.keys().copied()).collect()
}

/// Our route to the destination.
pub(super) fn ours(destination: IpNet, kind: &RouteKind) -> Route {
    Route::ours(destination, kind.clone())
}

pub(super) fn changes(
    observed: &Observed,
    desired: &Desired,
    destinations: impl IntoIterator<Item = IpNet>,
) -> RouteChanges {
    let mut destinations: Vec<_> = destinations.into_iter().collect();
    destinations.sort_unstable_by_key(|destination| (Reverse(destination.prefix_len()), *destination));

    let mut changes = RouteChanges::default();
    for destination in destinations {
        let wanted = desired.routes.get(&destination).map(|kind| ours(destination, kind));
        changes.add(observed, destination, wanted);
    }
    changes.late.reverse();
    changes
}

impl RouteChanges {
    /// Adds the changes for one destination.
    fn add(&mut self, observed: &Observed, destination: IpNet, wanted: Option<Route>) {
        let mut stale: Vec<&Route> = observed
            .routes_to(destination)
            .filter(|route| route.is_ours() && wanted.as_ref() != Some(*route))
            .collect();
        let Some(wanted) = wanted else {
            return self.late.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
        };
        if !observed.routes.contains(&wanted) {
            if observed.is_blocked(&wanted) {
                return self.late.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
            }
            // Replaces the first route with its metric.
            let place = stale.iter().position(|route| route.metric == wanted.metric);
            let replaced = place.map(|place| stale.remove(place));
            let step = match replaced {
                Some(old) if only_loses_its_source(old, &wanted) => &mut self.late,
                _ => &mut self.early,
            };
            step.push(RtnetlinkOp::SetRoute(wanted));
        }
        // A route with another metric could hide ours, so it goes as soon as ours is there.
        self.early.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
    }
}

/// The host's own packets need the preferred source for as long as a rule leads them to our table.
fn only_loses_its_source(old: &Route, wanted: &Route) -> bool {
    match (&old.kind, &wanted.kind) {
        (
            RouteKind::Device { gateway: old, source: Some(_), mtu: old_mtu },
            RouteKind::Device { gateway: new, source: None, mtu: new_mtu },
        ) => (old, old_mtu) == (new, new_mtu),
        _ => false,
    }
}
