//! Warnings about the cluster and the settings, by subject.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PublicKey};

use super::{View, claims::Claim, member::Member};
use crate::{cluster::Node, settings::Scope, warning::Warning};

impl<'a> View<'a> {
    /// Warnings that are not about one node or one claim.
    pub(super) fn general_warnings(&self) -> impl Iterator<Item = Warning> {
        let keys = self.index.shared_keys().filter_map(|key| self.warning_of_key(key));
        let link_addresses = self.index.shared_link_addresses();
        let link_addresses = link_addresses.filter_map(|address| self.warning_of_link_address(address));
        self.own_warnings().into_iter().chain(self.warnings_of_families()).chain(keys).chain(link_addresses)
    }

    /// Every warning that a change of this other node can add or remove.
    pub(crate) fn warnings_about(&self, name: &str, nodes: [Option<&Node>; 2]) -> BTreeSet<Warning> {
        let mut warnings: BTreeSet<_> = self.warnings_of_families().collect();
        warnings.extend(self.member(name).into_iter().flat_map(|member| self.warnings_of_member(&member)));
        // A change may touch thousands of claims inside one wide claim: look at each once.
        let mut prefixes = BTreeSet::new();
        for node in nodes.into_iter().flatten() {
            warnings.extend(node.public_key.and_then(|key| self.warning_of_key(key)));
            warnings.extend(
                node.public_key.and_then(|key| self.warning_of_link_address(self.link_address_of(key))),
            );
            for prefix in self.claimed(node) {
                prefixes.insert(prefix);
                if is_block(prefix) {
                    // Stop at the first that is known: the wider ones around it are known too, or follow.
                    let _ = self.index.around(prefix).find(|wider| !prefixes.insert(*wider));
                }
            }
        }
        let claims = prefixes.into_iter().filter_map(|prefix| self.index.claim(prefix));
        warnings.extend(claims.flat_map(|claim| self.warnings_of_claim(&claim)));
        warnings
    }

    /// Warnings about this node alone.
    fn own_warnings(&self) -> BTreeSet<Warning> {
        let mut warnings = BTreeSet::new();
        match self.own.public_key {
            None => {
                warnings.insert(Warning::OwnNodeKeyless);
            }
            Some(membership) if membership != self.host.public_key => {
                warnings.insert(Warning::OwnKeyDiffers { key_file: self.host.public_key, membership });
            }
            Some(_) => {}
        }
        if self.settings.encrypt_host_traffic {
            warnings.extend(self.exempt_pools());
            let others = self.host.here.iter().map(IpNet::addr);
            let here: BTreeSet<_> = self.addresses_here().chain(others).collect();
            let elsewhere = self.own.addresses.difference(&here).copied();
            warnings.extend(elsewhere.map(|address| Warning::AddressNotHere { address }));
        } else {
            // The other end takes addresses in our workload CIDRs.
            for address in self.own.underlay_addresses() {
                let source = self.scope().find(|source| source.contains(&address));
                warnings.extend(source.map(|source| Warning::AddressInScope { address, source }));
            }
            // Interfaces of pods and their bridges have workloads' addresses by right; those to other machines do not.
            let here = self.host.here_outward.iter().copied();
            let declared = |address: &IpAddr| {
                [&self.own.addresses, &self.own.tunnel_addresses].iter().any(|all| all.contains(address))
            };
            let taken =
                |address: &IpAddr| self.own.workloads.iter().any(|workload| workload.contains(address));
            let undeclared = here.filter(|address| taken(address) && !declared(address));
            warnings.extend(undeclared.map(|address| Warning::AddressNotDeclared { address }));
        }
        warnings.extend(self.warning_of_port());
        let uncovered = self.own.workloads.iter().copied().filter(|workload| !self.is_covered(*workload));
        warnings.extend(uncovered.map(|workload| Warning::UncoveredWorkload { workload }));
        warnings
    }

    /// The warning about an endpoint that leads elsewhere than to the device.
    fn warning_of_port(&self) -> Option<Warning> {
        let endpoint = self.own.endpoint?;
        let listen_port = self.settings.listen_port;
        let address = endpoint.ip().to_canonical();
        let here = self.addresses_here().any(|own| own == address)
            || self.host.here.iter().any(|here| here.addr() == address);
        (endpoint.port() != listen_port).then_some(Warning::ListenPortDiffers { listen_port, endpoint, here })
    }

    /// A single address in a pool may well be a node's.
    fn exempt_pools(&self) -> impl Iterator<Item = Warning> {
        let blocks = self.settings.encrypt_host_exempt.iter().filter(|prefix| is_block(**prefix));
        blocks.flat_map(|prefix| {
            let overlaps = move |pool: &&IpNet| pool.contains(prefix) || prefix.contains(*pool);
            let pools = self.cluster.pools.iter().filter(overlaps);
            pools.map(|pool| Warning::ExemptPool { prefix: *prefix, pool: *pool })
        })
    }

    /// Warnings about families that the mesh uses and this node has no address of.
    fn warnings_of_families(&self) -> impl Iterator<Item = Warning> {
        let used = self.families().filter(|_| self.settings.encrypt_host_traffic);
        let missing = used.filter(|family| self.source(*family).is_none());
        missing.map(|family| Warning::NoOwnAddress { family })
    }

    /// Warnings about one node.
    pub(super) fn warnings_of_member(&self, member: &Member<'_>) -> impl Iterator<Item = Warning> + use<> {
        let node = || member.name.to_owned();
        let nothing = member.node.workloads.is_empty() && member.node.link_addresses.is_empty();
        let nothing = nothing.then(|| Warning::NodeWithoutWorkloads { node: node() });
        // Of our own ones the rules tell more.
        let pooled = self.settings.scope == Scope::Pool && !self.cluster.pools.is_empty();
        let host_mode = self.settings.encrypt_host_traffic;
        let judged = pooled && !member.is_own;
        let outside = |workload: &&IpNet| !self.cluster.pools.iter().any(|pool| pool.contains(*workload));
        let outside = member.node.workloads.iter().filter(outside).filter(|_| judged);
        let outside: Vec<_> = outside
            .map(|workload| Warning::WorkloadOutsidePools { node: node(), workload: *workload, host_mode })
            .collect();
        warning_of_key_and_endpoint(member).into_iter().chain(nothing).chain(outside)
    }

    /// The warning about a key, if several nodes claim it.
    fn warning_of_key(&self, public_key: PublicKey) -> Option<Warning> {
        let nodes = self.index.holders(public_key);
        (nodes.len() > 1).then(|| Warning::SharedKey {
            public_key,
            nodes: nodes.to_vec(),
            kept_by: self.rightful_holder(public_key).map(str::to_owned),
        })
    }

    /// The warning about a link address, if several keys hash to it. (One key that several nodes claim has a
    /// warning of its own.)
    fn warning_of_link_address(&self, link_address: LinkAddress) -> Option<Warning> {
        let holders = self.index.link_address_holders(link_address);
        let (_, first) = holders.first()?;
        let nodes = || holders.iter().map(|(name, _)| name.clone()).collect();
        let several = holders.iter().any(|(_, key)| key != first);
        several.then(|| Warning::SharedLinkAddress { link_address, nodes: nodes() })
    }

    /// Warnings about a claimed prefix: equal claims, and narrower claims inside it. A single address inside
    /// another node's block is borrowed, which is intended.
    pub(super) fn warnings_of_claim(&self, claim: &Claim<'a>) -> impl Iterator<Item = Warning> + use<> {
        let (prefix, owner) = (claim.prefix, self.first(claim.claimants).unwrap_or_default());
        let refused = || claim.claimants.iter().filter(|name| *name != owner).cloned().collect();
        let contested = (claim.claimants.len() > 1).then(|| {
            let taken_by = owner.to_owned();
            Warning::ContestedPrefix { prefix, taken_by, refused: refused() }
        });
        let mut others = claim.inside().filter_map(|(inner, nodes)| {
            (is_block(inner) && nodes.iter().any(|name| name != owner)).then_some(inner)
        });
        let nested = others.next().map(|inner| {
            let count = 1 + others.count();
            Warning::NestedPrefixes { prefix, node: owner.to_owned(), inner, count }
        });
        contested.into_iter().chain(nested)
    }
}

/// The warning about what another node's record lacks.
fn warning_of_key_and_endpoint(member: &Member<'_>) -> Option<Warning> {
    let node = || member.name.to_owned();
    match (member.node.public_key, member.node.endpoint) {
        _ if member.is_own => None,
        (None, _) if member.standing.is_some_and(|standing| standing.egress) => {
            Some(Warning::ProvenNodeKeyless { node: node() })
        }
        (None, _) => Some(Warning::KeylessNode { node: node() }),
        (Some(_), None) if member.node.endpoint_name.is_none() => Some(Warning::NoEndpoint { node: node() }),
        (Some(_), _) => None,
    }
}

/// Whether a prefix holds more than a single address.
fn is_block(prefix: IpNet) -> bool {
    prefix.prefix_len() < prefix.max_prefix_len()
}
