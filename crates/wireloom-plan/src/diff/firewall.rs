//! The firewall. It admits new sources before anything else is set up, and stops admitting old ones after
//! everything else is removed. The guard is the other way round: it stops refusing before the routes lead past the
//! tunnel, and begins to refuse once they lead into it. Each of the two is one transaction, in which ranges change
//! without a gap.

use std::collections::BTreeSet;

use crate::{
    desired::Desired,
    firewall::{Firewall, Guard, GuardSet, Guarded, Source},
    observed::Observed,
    op::FirewallOp,
    touched::Touched,
};
use wireloom_types::LinkAddress;

/// With more removals than this, all sources are replaced at once: for each removal, the kernel moves the
/// bits of all remaining elements (`pipapo_drop`, net/netfilter/nft_set_pipapo.c).
const MANY: usize = 500;

/// Two transactions, with everything else in between.
#[derive(Default)]
pub(super) struct FirewallChanges {
    pub(super) early: Vec<FirewallOp>,
    pub(super) late: Vec<FirewallOp>,
}

/// All changes of the firewall.
pub(super) fn all(observed: &Observed, desired: &Desired) -> FirewallChanges {
    let mut changes = FirewallChanges::default();
    let Some(wanted) = &desired.firewall else {
        changes.late.extend(observed.firewall.as_ref().map(|_| FirewallOp::Remove));
        return changes;
    };
    let anew = observed.firewall.as_ref().is_some_and(|present| present.altered);
    let present = observed.firewall.as_ref().filter(|_| !anew);
    let meanwhile = Firewall {
        mark_incoming: wanted.mark_incoming.clone().or_else(|| present?.mark_incoming.clone()),
        judge_sources: wanted.judge_sources || present.is_some_and(|present| present.judge_sources),
        guard: guard_meanwhile(wanted, present),
        segment_v6: wanted.segment_v6,
        altered: false,
    };
    if present != Some(&meanwhile) {
        changes.early.push(FirewallOp::Set { firewall: meanwhile.clone(), anew });
    }
    if wanted.judge_sources {
        let none = (BTreeSet::new(), BTreeSet::new());
        let (peers, sources) = match present {
            Some(_) => (&observed.judged_peers, &observed.sources),
            None => (&none.0, &none.1),
        };
        changes.set_elements(
            desired,
            [difference(&desired.judged_peers, peers), difference(peers, &desired.judged_peers)],
            [difference(&desired.sources, sources), difference(sources, &desired.sources)],
        );
    }
    if wanted.guard.is_some() {
        if present.is_some_and(|present| present.guard.is_some()) {
            changes.guard(
                difference(&desired.guarded, &observed.guarded),
                difference(&observed.guarded, &desired.guarded),
            );
        } else {
            // At once, whatever routing is like.
            changes.early.extend(desired.guarded.iter().copied().map(FirewallOp::Guard));
        }
    }
    if *wanted != meanwhile {
        changes.late.push(FirewallOp::Set { firewall: wanted.clone(), anew: false });
    }
    changes
}

/// The guard until everything else is changed. Out of host mode, the rule that leads hosts' packets into the tunnel is
/// still there, and with it what spares some of them that.
fn guard_meanwhile(wanted: &Firewall, present: Option<&Firewall>) -> Option<Guard> {
    let present = present.and_then(|present| present.guard.as_ref());
    let Some(wanted) = &wanted.guard else { return present.cloned() };
    let datagrams = wanted.datagrams.clone().or_else(|| present?.datagrams.clone());
    Some(Guard { datagrams, ..wanted.clone() })
}

/// The changes for what changes of the cluster touched.
pub(super) fn touched(observed: &Observed, desired: &Desired, touched: &Touched) -> FirewallChanges {
    let Touched { judged_peers: peers, sources, guarded, .. } = touched;
    let mut changes = FirewallChanges::default();
    changes.set_elements(
        desired,
        [
            only(peers, &desired.judged_peers, &observed.judged_peers),
            only(peers, &observed.judged_peers, &desired.judged_peers),
        ],
        [
            only(sources, &desired.sources, &observed.sources),
            only(sources, &observed.sources, &desired.sources),
        ],
    );
    changes.guard(
        only(guarded, &desired.guarded, &observed.guarded),
        only(guarded, &observed.guarded, &desired.guarded),
    );
    changes
}

impl FirewallChanges {
    /// Adds the peers and sources that are new, and removes the old ones.
    fn set_elements(
        &mut self,
        desired: &Desired,
        [new_peers, old_peers]: [Vec<LinkAddress>; 2],
        [new, old]: [Vec<Source>; 2],
    ) {
        self.early.extend(new_peers.into_iter().map(|peer| FirewallOp::JudgePeer { peer }));
        let (in_the_way, old): (Vec<_>, Vec<_>) = old.into_iter().partition(|old| overlaps_any(*old, &new));
        if in_the_way.len() > MANY || new.len() == desired.sources.len() && !new.is_empty() {
            let mut sources = desired.sources.clone();
            sources.extend(&old);
            self.early.push(FirewallOp::ReplaceSources { sources });
        } else {
            self.early.extend(in_the_way.into_iter().map(FirewallOp::RefuseSource));
            self.early.extend(new.into_iter().map(FirewallOp::AdmitSource));
        }
        if old.len() > MANY {
            self.late.push(FirewallOp::ReplaceSources { sources: desired.sources.clone() });
        } else {
            self.late.extend(old.into_iter().map(FirewallOp::RefuseSource));
        }
        self.late.extend(old_peers.into_iter().map(|peer| FirewallOp::ForgetPeer { peer }));
    }
}

impl FirewallChanges {
    /// Adds the elements that are new, and removes the old ones.
    fn guard(&mut self, new: Vec<Guarded>, old: Vec<Guarded>) {
        // In host mode the sets have our own addresses, and theirs.
        let refuses = |element: &Guarded| REFUSE.contains(&element.set);
        let (new_refusals, new): (Vec<_>, Vec<_>) = new.into_iter().partition(refuses);
        let (old_refusals, old): (Vec<_>, Vec<_>) = old.into_iter().partition(refuses);
        // What another element takes the place of stays refused meanwhile.
        let (replaced, ended): (Vec<_>, Vec<_>) =
            old_refusals.into_iter().partition(|old| has_successor(old, &new_refusals, &REFUSE));
        // What is exempt no more stays so until the routes are there. A set never holds two elements that overlap.
        let (spared, old): (Vec<_>, Vec<_>) = old.into_iter().partition(|old| {
            matches!(old.set, GuardSet::Exempt | GuardSet::Tolerated) && !has_successor(old, &new, &[old.set])
        });
        self.early.extend(old.into_iter().chain(ended).map(FirewallOp::Unguard));
        self.early.extend(new.into_iter().map(FirewallOp::Guard));
        self.late.extend(replaced.into_iter().chain(spared).map(FirewallOp::Unguard));
        self.late.extend(new_refusals.into_iter().map(FirewallOp::Guard));
    }
}

/// The sets that refuse, or say for whom: what moves between this node and a peer leaves one for another.
const REFUSE: [GuardSet; 3] = [GuardSet::Own, GuardSet::RefusedOut, GuardSet::RefusedIn];

/// Whether a new element of one of these sets has an address in common with the old one. The new ones are sorted, and
/// those of a set are disjoint.
fn has_successor(old: &Guarded, new: &[Guarded], sets: &[GuardSet]) -> bool {
    sets.iter().copied().any(|set| {
        let end = (set, old.addresses.last());
        let after = new.partition_point(|new| (new.set, new.addresses.first()) <= end);
        let last = after.checked_sub(1).map(|last| &new[last]).filter(|last| last.set == set);
        last.is_some_and(|last| last.addresses.last() >= old.addresses.first())
    })
}

/// Whether a new source has an address in common with the old one. The new ones are sorted and disjoint.
fn overlaps_any(old: Source, new: &[Source]) -> bool {
    let end = (old.peer, old.addresses.last());
    let after = new.partition_point(|new| (new.peer, new.addresses.first()) <= end);
    after.checked_sub(1).is_some_and(|last| new[last].overlaps(&old))
}

fn difference<T: Ord + Copy>(these: &BTreeSet<T>, those: &BTreeSet<T>) -> Vec<T> {
    these.difference(those).copied().collect()
}

/// The touched ones that only the first set has.
fn only<T: Ord + Copy>(touched: &BTreeSet<T>, these: &BTreeSet<T>, those: &BTreeSet<T>) -> Vec<T> {
    touched.iter().filter(|one| these.contains(one) && !those.contains(one)).copied().collect()
}
