//! The claims to workload CIDRs, decided: no two nodes' may overlap, but for single addresses where those are borrowed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::claimant::{Claimant, Rules};

/// A CIDR, and the place of its claimant among the claimants.
type Claim = (IpNet, usize);

/// The claims that are lost: each with its claimant, and the reason in a sentence. Those that do not count are lost
/// already.
pub(super) fn resolve<'a>(
    claimants: &[Claimant<'a>],
    rules: &Rules<'_>,
    counts: impl Fn(&str, &IpNet) -> bool,
) -> Vec<(IpNet, Claimant<'a>, String)> {
    let cidrs = |(place, claimant): (usize, &Claimant<'a>)| {
        let workloads = claimant.node.workloads.iter().filter(|cidr| counts(claimant.name, cidr));
        workloads.map(move |cidr| (*cidr, place)).collect::<Vec<_>>()
    };
    let mut claims: Vec<Claim> = claimants.iter().enumerate().flat_map(cidrs).collect();
    // A CIDR sorts directly before everything that lies in it: what overlaps is a group of neighbours.
    claims.sort_unstable();
    let mut lost = Vec::new();
    let mut rest = claims.as_slice();
    while let [(outer, _), ..] = rest {
        let len = rest.iter().take_while(|(cidr, _)| outer.contains(cidr)).count();
        let (group, after) = rest.split_at(len);
        rest = after;
        let judge = Judge { claimants, rules };
        if !judge.all_agree(group) {
            judge.decide(group, &mut lost);
        }
    }
    lost
}

struct Judge<'a, 'r> {
    claimants: &'r [Claimant<'a>],
    rules: &'r Rules<'r>,
}

impl<'a> Judge<'a, '_> {
    /// Whether a group is one CIDR and distinct single addresses that may lie in it.
    fn all_agree(&self, group: &[Claim]) -> bool {
        let [outer, inside @ ..] = group else { return true };
        let distinct = group.windows(2).all(|pair| pair[0].0 != pair[1].0);
        distinct && inside.iter().all(|inner| self.may_lie_inside(*inner, *outer))
    }

    fn may_lie_inside(&self, inner: Claim, outer: Claim) -> bool {
        let (cidr, place) = inner;
        let is_single = cidr.prefix_len() == cidr.max_prefix_len();
        let is_borrowed = || self.rules.borrowing && self.rules.pools.iter().any(|pool| pool.contains(&cidr));
        is_single && cidr != outer.0 && (place == outer.1 || is_borrowed())
    }

    /// Gives the CIDRs of a group to those who come first, as long as they do not overlap with what is given already.
    fn decide(&self, group: &[Claim], lost: &mut Vec<(IpNet, Claimant<'a>, String)>) {
        let mut ranked = group.to_vec();
        ranked.sort_by_cached_key(|(cidr, place)| {
            let claimant = self.claimants[*place];
            let before = self.rules.before.nodes.get(claimant.name);
            let is_established = before.is_some_and(|node| node.workloads.contains(cidr));
            (claimant.rank(is_established), *cidr)
        });
        let mut given = Given::default();
        for claim in ranked {
            match given.overlap(claim, self) {
                None => given.add(claim),
                Some(other) => {
                    let loser = self.claimants[claim.1];
                    lost.push((claim.0, loser, reason(claim.0, other.0, self.claimants[other.1].name)));
                }
            }
        }
    }
}

/// CIDRs that are given to nodes.
#[derive(Default)]
struct Given {
    claims: BTreeMap<IpNet, usize>,
    lengths: BTreeSet<u8>,
}

impl Given {
    fn add(&mut self, (cidr, place): Claim) {
        self.claims.insert(cidr, place);
        self.lengths.insert(cidr.prefix_len());
    }

    /// What overlaps with the claim and may not.
    fn overlap(&self, claim: Claim, judge: &Judge<'_, '_>) -> Option<Claim> {
        let (cidr, _) = claim;
        let mut around = self.lengths.range(..=cidr.prefix_len()).filter_map(|length| {
            let outer = IpNet::new(cidr.addr(), *length).ok()?.trunc();
            Some((outer, *self.claims.get(&outer)?))
        });
        let inside = self.claims.range(cidr..).take_while(|(inner, _)| cidr.contains(*inner));
        let mut inside = inside.map(|(inner, place)| (*inner, *place));
        let outer = around.find(|outer| !judge.may_lie_inside(claim, *outer));
        outer.or_else(|| inside.find(|inner| !judge.may_lie_inside(*inner, claim)))
    }
}

fn reason(cidr: IpNet, other: IpNet, holder: &str) -> String {
    let relation = if cidr == other {
        "which".to_owned()
    } else if other.contains(&cidr) {
        format!("which lies inside {other} that")
    } else {
        format!("which holds {other} that")
    };
    format!("it claims {cidr}, {relation} {holder:?} has; give each block to one node")
}
