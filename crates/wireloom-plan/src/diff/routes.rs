//! Routes of our table. A route that must become another is replaced in place (see
//! [`RtnetlinkOp::SetRoute`]), so that no packet ever misses it.

use std::{cmp::Reverse, collections::BTreeSet};

use ipnet::IpNet;

use crate::{
    desired::Desired,
    kernel::{Observed, Route, RouteKind},
    op::RtnetlinkOp,
};

/// Two steps, with the rules in between.
#[derive(Default)]
pub(super) struct RouteChanges {
    /// Set, the longest prefixes first: a new wide route (the backstop above all) must not catch
    /// what a narrower one that is still to come is for.
    pub(super) early: Vec<RtnetlinkOp>,
    /// Removed, the shortest prefixes first, for the same reason.
    pub(super) late: Vec<RtnetlinkOp>,
}

/// Every destination that has or shall have a route.
pub(super) fn all(observed: &Observed, desired: &Desired) -> BTreeSet<IpNet> {
    observed.routes.iter().map(|route| route.destination).chain(desired.routes.keys().copied()).collect()
}

/// The route of ours to the destination.
pub(super) fn ours(destination: IpNet, kind: &RouteKind) -> Route {
    Route::ours(destination, kind.clone())
}

/// Somebody else's route stands where this one should be: to set ours would replace it.
pub(super) fn is_blocked(observed: &Observed, wanted: &Route) -> bool {
    observed.routes_to(wanted.destination).any(|route| !route.is_ours() && route.metric == wanted.metric)
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
        changes.settle(observed, destination, wanted);
    }
    changes.late.reverse();
    changes
}

impl RouteChanges {
    /// What is to do about one destination.
    fn settle(&mut self, observed: &Observed, destination: IpNet, wanted: Option<Route>) {
        let mut stale: Vec<&Route> = observed
            .routes_to(destination)
            .filter(|route| route.is_ours() && wanted.as_ref() != Some(*route))
            .collect();
        let Some(wanted) = wanted else {
            return self.late.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
        };
        if !observed.routes.contains(&wanted) {
            if is_blocked(observed, &wanted) {
                return self.late.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
            }
            // Takes the place of the first of its metric.
            let place = stale.iter().position(|route| route.metric == wanted.metric);
            let replaced = place.map(|place| stale.remove(place));
            let step = match replaced {
                Some(old) if only_loses_its_source(old, &wanted) => &mut self.late,
                _ => &mut self.early,
            };
            step.push(RtnetlinkOp::SetRoute(wanted));
        }
        // One of another metric could hide ours, so it goes as soon as ours is there.
        self.early.extend(stale.into_iter().cloned().map(RtnetlinkOp::RemoveRoute));
    }
}

/// The host's own packets need the source for as long as a rule leads them here.
fn only_loses_its_source(old: &Route, wanted: &Route) -> bool {
    match (&old.kind, &wanted.kind) {
        (
            RouteKind::Device { gateway: old, source: Some(_) },
            RouteKind::Device { gateway: new, source: None },
        ) => old == new,
        _ => false,
    }
}
