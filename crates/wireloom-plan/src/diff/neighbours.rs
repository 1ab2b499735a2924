//! Neighbours in link mode, and the routes to them in the table `main`.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    desired::{Desired, is_link_local},
    observed::Observed,
    op::RtnetlinkOp,
};

/// Two steps, with routes and rules in between.
#[derive(Default)]
pub(super) struct NeighbourChanges {
    /// Additions: a route with a neighbour as its next hop must find it.
    pub(super) early: Vec<RtnetlinkOp>,
    /// Removals.
    pub(super) late: Vec<RtnetlinkOp>,
}

/// Every address that has, or should have, a neighbour or a route to it.
pub(super) fn all(observed: &Observed, desired: &Desired) -> BTreeSet<IpAddr> {
    let present = observed.neighbours.keys().chain(&observed.link_routes);
    present.chain(desired.neighbours.keys()).copied().collect()
}

pub(super) fn changes(
    observed: &Observed,
    desired: &Desired,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> NeighbourChanges {
    let mut changes = NeighbourChanges::default();
    let (mut routes, mut old_neighbours) = (Vec::new(), Vec::new());
    for address in addresses {
        let wanted = desired.neighbours.get(&address);
        let present = observed.neighbours.get(&address);
        match (present, wanted) {
            (_, Some(link_address)) if present != wanted => {
                changes.early.push(RtnetlinkOp::SetNeighbour { address, link_address: *link_address });
            }
            (Some(_), None) => old_neighbours.push(RtnetlinkOp::RemoveNeighbour { address }),
            _ => {}
        }
        let routed = observed.link_routes.contains(&address);
        match wanted.is_some() && !is_link_local(address) {
            true if !routed => routes.push(RtnetlinkOp::AddLinkRoute { address }),
            false if routed => changes.late.push(RtnetlinkOp::RemoveLinkRoute { address }),
            _ => {}
        }
    }
    // Requests of one kind in a row, which the shell sends together.
    changes.early.extend(routes);
    changes.late.extend(old_neighbours);
    changes
}
