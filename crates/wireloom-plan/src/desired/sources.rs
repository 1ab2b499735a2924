//! Who may send from where: what the firewall asks of all that comes out of a link, where a packet
//! bears the link address of the peer whose key opened it.
//!
//! Each claimed prefix is its owner's, but for what narrower claims take out of it: the longest prefix
//! decides, as it does in allowed-IPs. So every address is one peer's at most, and the ranges that are
//! left are disjoint, as the kernel's sets want them. Every peer has its own link-local address besides.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, SourceCheck};

use super::{View, claims::Claim, member::Member};
use crate::{address_range::AddressRange, kernel::Source, touched::Touched};

impl View<'_> {
    /// The firewall judges what comes out of our interface. Without a link it cannot: packets there
    /// bear no peer's address.
    pub(super) fn judges_sources(&self) -> bool {
        self.is_link() && self.settings.source_check == SourceCheck::Firewall
    }

    /// The peer, by what its packets bear.
    pub(super) fn judged_peer(&self, member: &Member<'_>) -> Option<LinkAddress> {
        member.link().filter(|_| self.judges_sources())
    }

    /// What the owner of exactly this prefix may send from because of it.
    fn sources_in(&self, prefix: IpNet) -> Vec<Source> {
        let claim = self.index.claim(prefix);
        let sources = claim.and_then(|claim| {
            let owner = self.member(self.first(claim.claimants)?)?;
            Some(left_of(&claim, self.judged_peer(&owner)?))
        });
        sources.unwrap_or_default()
    }

    /// The peers and sources that have to do with what a change touched.
    pub(crate) fn judgement_of(&self, touched: &Touched) -> (BTreeSet<LinkAddress>, BTreeSet<Source>) {
        if !self.judges_sources() {
            return Default::default();
        }
        let peers: BTreeSet<_> = touched
            .peers
            .iter()
            .filter_map(|key| {
                let member = self.member(self.index.holders(*key).first()?)?;
                self.judged_peer(&member)
            })
            .collect();
        // A claim that comes or goes makes or fills a hole in the next wider one.
        let around =
            touched.destinations.iter().filter_map(|destination| self.index.around(*destination).next());
        let claims: BTreeSet<_> = touched.destinations.iter().copied().chain(around).collect();
        let sources = claims.into_iter().flat_map(|claim| self.sources_in(claim));
        let sources = sources.chain(peers.iter().map(|peer| link_local(*peer))).collect();
        (peers, sources)
    }
}

/// The claim without what narrower ones take out of it.
pub(super) fn left_of(claim: &Claim<'_>, peer: LinkAddress) -> Vec<Source> {
    let inside = claim.inside().map(|(inner, _)| inner.into());
    let left = AddressRange::from(claim.prefix).without(inside);
    left.into_iter().map(|addresses| Source { peer, addresses }).collect()
}

/// Its own, whatever it claims.
pub(super) fn link_local(peer: LinkAddress) -> Source {
    Source { peer, addresses: AddressRange::from(IpAddr::from(peer.link_local())) }
}
