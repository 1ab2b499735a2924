//! Who may send from where: what the firewall asks of all that comes out of a link, where a packet
//! bears the link address of the peer whose key opened it.
//!
//! Each claimed prefix is its owner's, but for what narrower claims take out of it: the longest prefix
//! decides, as it does in allowed-IPs. So every address is one peer's at most, and the ranges that are
//! left are disjoint, as the kernel's sets want them. Every peer has its own link-local address besides.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::View;
use crate::{
    address_range::AddressRange, cluster::Node, diff::Touched, kernel::Source, link_address::LinkAddress,
    settings::SourceCheck,
};

impl View<'_> {
    /// The firewall judges what comes out of our interface. Without a link it cannot: packets there
    /// bear no peer's address.
    pub(super) fn judges_sources(&self) -> bool {
        self.is_link() && self.settings.source_check == SourceCheck::Firewall
    }

    /// The peers, by what their packets bear, and who of them may send from where.
    pub(super) fn judgement(&self) -> (BTreeSet<LinkAddress>, BTreeSet<Source>) {
        let nodes = self.cluster.nodes.iter().filter(|_| self.judges_sources());
        let judged = nodes.filter_map(|(name, node)| Some((name, node, self.judged_peer(name, node)?)));
        let judged: Vec<_> = judged.collect();
        let sources = judged.iter().flat_map(|(name, node, peer)| {
            self.owned(name, node).flat_map(|claim| self.left_of(claim, *peer)).chain([link_local(*peer)])
        });
        (judged.iter().map(|(_, _, peer)| *peer).collect(), sources.collect())
    }

    fn judged_peer(&self, name: &str, node: &Node) -> Option<LinkAddress> {
        let is_judged = self.judges_sources() && !self.is_own(name);
        Some(self.link_of(self.peer_key(node).filter(|_| is_judged)?))
    }

    /// What the owner of exactly this claim may send from because of it.
    fn sources_in(&self, claim: IpNet) -> Vec<Source> {
        let peer = self.owner(claim).and_then(|owner| {
            let node = self.cluster.nodes.get(owner)?;
            self.judged_peer(owner, node)
        });
        peer.map(|peer| self.left_of(claim, peer)).unwrap_or_default()
    }

    /// The claim without what narrower ones take out of it.
    fn left_of(&self, claim: IpNet, peer: LinkAddress) -> Vec<Source> {
        let inside = self.index.inside(claim).map(|(inner, _)| inner.into());
        let left = AddressRange::from(claim).without(inside);
        left.into_iter().map(|addresses| Source { peer, addresses }).collect()
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
                let name = self.index.holders(*key).first()?;
                self.judged_peer(name, self.cluster.nodes.get(name)?)
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

fn link_local(peer: LinkAddress) -> Source {
    Source { peer, addresses: AddressRange::from(IpAddr::from(peer.link_local())) }
}
