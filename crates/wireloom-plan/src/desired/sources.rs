//! The addresses that each peer may send from. In link mode the firewall checks them: a packet from our
//! interface has the link address of the peer whose key decrypted it as its source link address.
//!
//! A claimed prefix belongs to its owner, except for the parts that narrower claims take out of it: the
//! longest prefix decides, as it does for allowed-IPs. So every address belongs to at most one peer, and the
//! remaining ranges do not overlap, as the kernel's sets require. In addition, every peer has its link-local
//! address.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, SourceCheck};

use super::{View, claims::Claim, member::Member};
use crate::{address_range::AddressRange, firewall::Source, touched::Touched};

impl View<'_> {
    /// Whether the firewall checks the sources of packets from our interface. It can in link mode only:
    /// otherwise packets have no link address.
    pub(super) fn judges_sources(&self) -> bool {
        self.in_link_mode() && self.settings.source_check == SourceCheck::Firewall
    }

    /// The link address of the peer, if the firewall checks its packets.
    pub(super) fn judged_peer(&self, member: &Member<'_>) -> Option<LinkAddress> {
        member.link_address().filter(|_| self.judges_sources())
    }

    /// The sources that the owner of exactly this prefix has because of it.
    fn sources_in(&self, prefix: IpNet) -> Vec<Source> {
        let claim = self.index.claim(prefix);
        let sources = claim.and_then(|claim| {
            let owner = self.member(self.first(claim.claimants)?)?;
            Some(admitted(&claim, self.judged_peer(&owner)?))
        });
        sources.unwrap_or_default()
    }

    /// The peers and sources that depend on what a change touched.
    pub(crate) fn sources_of(&self, touched: &Touched) -> (BTreeSet<LinkAddress>, BTreeSet<Source>) {
        if !self.judges_sources() {
            return Default::default();
        }
        let peers: BTreeSet<_> = touched
            .peers
            .iter()
            .filter_map(|key| {
                let member = self.member(self.rightful_holder(*key)?)?;
                self.judged_peer(&member)
            })
            .collect();
        let sources = self.with_those_around(touched).into_iter().flat_map(|claim| self.sources_in(claim));
        let sources = sources.chain(peers.iter().map(|peer| link_local(*peer))).collect();
        (peers, sources)
    }

    /// The claims that a change touched, and the next wider one around each: a claim that is added or removed makes or
    /// fills a hole in that.
    pub(super) fn with_those_around(&self, touched: &Touched) -> BTreeSet<IpNet> {
        let around =
            touched.destinations.iter().filter_map(|destination| self.index.around(*destination).next());
        touched.destinations.iter().copied().chain(around).collect()
    }
}

/// The claim without the narrower claims inside it.
pub(super) fn remainder(claim: &Claim<'_>) -> Vec<AddressRange> {
    let inside = claim.inside().map(|(inner, _)| inner.into());
    AddressRange::from(claim.prefix).without(inside)
}

/// What the peer may send from because of a claim that it gets.
pub(super) fn admitted(claim: &Claim<'_>, peer: LinkAddress) -> Vec<Source> {
    remainder(claim).into_iter().map(|addresses| Source { peer, addresses }).collect()
}

/// The peer's link-local address, which it has whatever it claims.
pub(super) fn link_local(peer: LinkAddress) -> Source {
    Source { peer, addresses: AddressRange::from(IpAddr::from(peer.link_local())) }
}
