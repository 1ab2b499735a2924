//! Peers as neighbours, when the next hop decides who gets a packet.
//!
//! A peer has the IP addresses on the link that its node declares, and always the link-local one
//! that follows from its key. All of them are permanent neighbours: nobody has to ask for them,
//! and no limit on learnt neighbours (`gc_thresh3`, which all interfaces share) counts them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use super::View;
use crate::{
    cluster::Node,
    kernel::Family,
    link_address::LinkAddress,
    settings::{PeerLookup, Settings},
};

/// The addresses on the link that a node declares and that are of use: link-local ones follow
/// from the key instead.
pub(crate) fn declared<'a>(node: &'a Node, settings: &Settings) -> impl Iterator<Item = IpAddr> + use<'a> {
    let is_link = settings.peer_lookup == PeerLookup::Gateway;
    let addresses = is_link.then_some(&node.link_addresses).into_iter().flatten().copied();
    addresses.filter(|address| !is_link_local(*address))
}

/// Only on its link does such an address mean anything, so no other table can have it.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl View<'_> {
    pub(super) fn neighbours(&self) -> BTreeMap<IpAddr, LinkAddress> {
        if !self.is_link() {
            return BTreeMap::new();
        }
        let addresses = self.cluster.nodes.values().flat_map(|node| self.link_addresses(node));
        addresses.filter_map(|address| Some((address, self.neighbour(address)?))).collect()
    }

    pub(super) fn is_link(&self) -> bool {
        self.settings.peer_lookup == PeerLookup::Gateway
    }

    /// Every address that the node has on the link, whether it gets it or not.
    pub(crate) fn link_addresses(&self, node: &Node) -> impl Iterator<Item = IpAddr> {
        let key = node.public_key.filter(|_| self.is_link());
        let link_local = key.map(|key| IpAddr::from(self.link_of(key).link_local()));
        declared(node, self.settings).chain(link_local)
    }

    /// The peer that has exactly this address on the link.
    pub(crate) fn neighbour(&self, address: IpAddr) -> Option<LinkAddress> {
        if !self.is_link() {
            return None;
        }
        let name = match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => self.holder_of_link_local(address)?,
            _ => self.owner(IpNet::from(address))?,
        };
        let node = self.cluster.nodes.get(name).filter(|_| !self.is_own(name))?;
        let has_it = is_link_local(address) || node.link_addresses.contains(&address);
        let key = self.peer_key(node).filter(|_| has_it)?;
        Some(self.link_of(key))
    }

    fn holder_of_link_local(&self, address: Ipv6Addr) -> Option<&str> {
        let holders = self.index.link_holders(LinkAddress::of_link_local(address)?);
        holders.first().map(|(name, _)| name.as_str())
    }

    /// The next hop towards a peer. IPv4 may go by an IPv6 next hop (RFC 5549), but not the other
    /// way round, which Linux does not do.
    pub(super) fn gateway(&self, name: &str, node: &Node, family: Family) -> Option<IpAddr> {
        let key = node.public_key.filter(|_| self.is_link())?;
        let owned = |address: &IpAddr| self.owner(IpNet::from(*address)) == Some(name);
        let of = |family| {
            declared(node, self.settings).filter(owned).find(move |address| Family::of(*address) == family)
        };
        let next_hop = of(family).or_else(|| of(Family::V6));
        Some(next_hop.unwrap_or_else(|| self.link_of(key).link_local().into()))
    }
}
