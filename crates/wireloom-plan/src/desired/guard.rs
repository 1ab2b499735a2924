//! The elements of the guard's sets: which addresses are workloads, whose they are, and where plaintext is refused.
//!
//! As in [`super::sources`], the longest prefix decides, so a borrowed address belongs to the node that has it, and the
//! ranges of a set do not overlap.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{View, claims::Claim, member::Member, sources::remainder};
use crate::{
    address_range::AddressRange,
    cluster::Node,
    firewall::{Guard, GuardSet, Guarded, IncomingMark},
    routing::Family,
    settings::{HostTransition, UnprovenPeers},
    touched::Touched,
};

impl View<'_> {
    /// The guard's chains.
    pub(super) fn guard(&self, datagrams: Option<IncomingMark>) -> Option<Guard> {
        let [v4, v6] = self.tunnel_addresses;
        self.settings.guard.then(|| Guard {
            datagrams,
            mark: self.settings.fwmark,
            reject: self.settings.unproven_peers == UnprovenPeers::Reject,
            outward: self.host.outward.clone(),
            error_source_v4: v4.and_then(as_v4),
            error_source_v6: v6.and_then(as_v6),
        })
    }

    /// This node's address inside the tunnel, which the far end accepts because it lies in our workloads: the declared
    /// one; else the machine's own address in a workload CIDR. Of several it is the one whose prefix is longest short
    /// of a single address: the pods' bridge's, not that of a device that encapsulates.
    pub(super) fn tunnel_address(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &IpAddr| Family::of(*address) == family;
        let declared = self.own.tunnel_addresses.iter().copied().find(of_family);
        declared.or_else(|| {
            let here = self.host.here.iter().filter(|here| of_family(&here.addr()));
            let block = |here: &&IpNet| here.prefix_len() < here.max_prefix_len();
            let ours = here
                .filter(block)
                .filter(|here| self.own.workloads.iter().any(|workload| workload.contains(&here.addr())));
            ours.max_by_key(|here| here.prefix_len()).map(IpNet::addr)
        })
    }

    /// The elements because of a prefix that this node claims and gets.
    pub(super) fn guarded_in(&self, claim: &Claim<'_>, owner: &Member<'_>) -> Vec<Guarded> {
        let addresses_count = self.settings.encrypt_host_traffic;
        let counts = owner.node.workloads.contains(&claim.prefix)
            || (addresses_count && owner.node.addresses.contains(&claim.prefix.addr()));
        if !self.settings.guard || !counts {
            return Vec::new();
        }
        let proven = |direction: bool| direction && !owner.is_own;
        let standing = owner.standing.copied();
        let sets = [
            (GuardSet::Own, owner.is_own),
            (GuardSet::RefusedOut, proven(standing.is_some_and(|standing| standing.egress))),
            (GuardSet::RefusedIn, proven(standing.is_some_and(|standing| standing.ingress))),
        ];
        let sets = sets.into_iter().filter_map(|(set, belongs)| belongs.then_some(set));
        let ranges = remainder(claim);
        sets.flat_map(|set| ranges.iter().map(move |addresses| Guarded { set, addresses: *addresses }))
            .collect()
    }

    /// The elements that depend on the claims that a change touched.
    pub(crate) fn guarded_of(&self, touched: &Touched) -> BTreeSet<Guarded> {
        if !self.settings.guard {
            return BTreeSet::new();
        }
        let claims =
            self.with_those_around(touched).into_iter().filter_map(|prefix| self.index.claim(prefix));
        claims
            .filter_map(|claim| Some((self.member(self.first(claim.claimants)?)?, claim)))
            .flat_map(|(owner, claim)| self.guarded_in(&claim, &owner))
            .collect()
    }

    /// The elements that depend on all nodes together.
    pub(crate) fn guarded_of_all(&self) -> BTreeSet<Guarded> {
        if !self.settings.guard {
            return BTreeSet::new();
        }
        let workloads = self.cluster.nodes.values().flat_map(|node| &node.workloads);
        let pools = outermost(self.cluster.pools.iter().chain(workloads));
        let is_inside = |address: &IpAddr| is_in(&pools, *address);
        let mut guarded = BTreeSet::new();
        let hosts =
            self.cluster.nodes.values().flat_map(|node| node.addresses.difference(&node.tunnel_addresses));
        let hosts = hosts.copied();
        if self.settings.encrypt_host_traffic {
            // A record may claim any CIDR that no node has. Where the operator has declared pools, it cannot lead what
            // he exempts into the tunnel.
            let declared = outermost(&self.cluster.pools);
            let never_exempt = if declared.is_empty() { &pools } else { &declared };
            let exempt = self.exempt_ranges(never_exempt).map(|addresses| (GuardSet::Exempt, addresses));
            guarded.extend(exempt.map(|(set, addresses)| Guarded { set, addresses }));
            let further = hosts
                .filter_map(|host| Some((self.exempt_host(host, is_in(never_exempt, host))?, host.into())));
            guarded.extend(further.map(|(set, addresses)| Guarded { set, addresses }));
        } else {
            let inside = hosts.filter(is_inside);
            guarded.extend(inside.map(|host| Guarded { set: GuardSet::Nodes, addresses: host.into() }));
        }
        guarded.extend(pools.iter().map(|pool| Guarded { set: GuardSet::Pools, addresses: (*pool).into() }));
        guarded
    }

    /// The exempt addresses outside these pools, which are sorted and do not overlap.
    fn exempt_ranges(&self, pools: &[IpNet]) -> impl Iterator<Item = AddressRange> {
        let all = &self.settings.encrypt_host_exempt;
        let widest =
            all.iter().filter(|prefix| !all.iter().any(|other| other != *prefix && other.contains(*prefix)));
        widest.filter(|prefix| !pools.iter().any(|pool| pool.contains(*prefix))).flat_map(|prefix| {
            let inside = pools.iter().copied().filter(|pool| prefix.contains(pool));
            AddressRange::from(*prefix).without(inside.map(AddressRange::from))
        })
    }

    /// The set that holds a node's address in host mode, if it is not part of [`View::exempt_ranges`].
    fn exempt_host(&self, host: IpAddr, is_in_a_pool: bool) -> Option<GuardSet> {
        match (self.is_exempt(host), self.settings.host_transition) {
            (true, _) => is_in_a_pool.then_some(GuardSet::Exempt),
            (false, Some(HostTransition::Accept)) => Some(GuardSet::Exempt),
            (false, Some(HostTransition::Prefer)) => Some(GuardSet::Tolerated),
            (false, None) => None,
        }
    }

    /// Whether the settings name the address as one that stays direct.
    pub(super) fn is_exempt(&self, address: IpAddr) -> bool {
        self.settings.encrypt_host_exempt.iter().any(|prefix| prefix.contains(&address))
    }

    /// Whether the elements that depend on all nodes may change when a node other than ours does.
    pub(crate) fn changes_for_all(&self, [old, new]: [Option<&Node>; 2]) -> bool {
        let in_a_pool = |prefix: &IpNet| self.cluster.pools.iter().any(|pool| pool.contains(prefix));
        let matters = |node: Option<&Node>| -> [BTreeSet<IpNet>; 2] {
            let Some(node) = node else { return Default::default() };
            let outside = node.workloads.iter().copied().filter(|workload| !in_a_pool(workload));
            let addresses =
                node.addresses.difference(&node.tunnel_addresses).map(|address| IpNet::from(*address));
            let claimed = |address: &IpNet| {
                node.workloads.iter().any(|workload| workload.contains(address))
                    || !self.index.claimants(*address).is_empty()
                    || self.index.around(*address).next().is_some()
            };
            let is_element = |address: &IpNet| {
                let inside = || in_a_pool(address) || claimed(address);
                if self.settings.encrypt_host_traffic {
                    self.settings.host_transition.is_some() || (self.is_exempt(address.addr()) && inside())
                } else {
                    inside()
                }
            };
            [outside.collect(), addresses.filter(is_element).collect()]
        };
        self.settings.guard && matters(old) != matters(new)
    }
}

/// The prefixes that lie in no other one, sorted.
fn outermost<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Vec<IpNet> {
    let mut all: Vec<IpNet> = prefixes.into_iter().copied().collect();
    all.sort_unstable();
    // A prefix comes before all that it contains.
    let mut outermost: Vec<IpNet> = Vec::new();
    for prefix in all {
        if outermost.last().is_none_or(|last| !last.contains(&prefix)) {
            outermost.push(prefix);
        }
    }
    outermost
}

/// Whether the address is in one of these prefixes, which are sorted and do not overlap.
fn is_in(prefixes: &[IpNet], address: IpAddr) -> bool {
    let after = prefixes.partition_point(|prefix| *prefix <= IpNet::from(address));
    after.checked_sub(1).is_some_and(|last| prefixes[last].contains(&address))
}

fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}
