//! The sets of the guard: two for each [`GuardSet`], one a family.

use wireloom_plan::{
    firewall::{GuardSet, Guarded},
    routing::Family,
};

use super::set::Set;

/// The set for a family.
pub(super) fn set(set: GuardSet, family: Family) -> Set {
    let (v4, v6, counts) = match set {
        GuardSet::Own => ("own4", "own6", false),
        GuardSet::Pools => ("pools4", "pools6", false),
        GuardSet::Nodes => ("nodes4", "nodes6", false),
        GuardSet::Exempt => ("exempt4", "exempt6", false),
        GuardSet::Tolerated => ("tolerated4", "tolerated6", false),
        GuardSet::RefusedOut => ("refused_out4", "refused_out6", true),
        GuardSet::RefusedIn => ("refused_in4", "refused_in6", true),
    };
    match family {
        Family::V4 => Set { name: v4, kind: &["ipv4_addr"], intervals: true, counts },
        Family::V6 => Set { name: v6, kind: &["ipv6_addr"], intervals: true, counts },
    }
}

/// The set that holds an element.
pub(super) fn of(element: &Guarded) -> Set {
    set(element.set, Family::of(element.addresses.first()))
}

/// All of them, and what they are for.
pub(super) fn all() -> impl Iterator<Item = (GuardSet, Set)> {
    GuardSet::ALL.into_iter().flat_map(|of| FAMILIES.map(|family| (of, set(of, family))))
}

/// Both.
pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
