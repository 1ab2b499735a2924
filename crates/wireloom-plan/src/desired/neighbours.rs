//! Peers as neighbours, when the next hop decides who gets a packet.
//!
//! A peer has the IP addresses on the link that its node declares, and always the link-local one
//! that follows from its key. All of them are permanent neighbours: nobody has to ask for them,
//! and no limit on learnt neighbours (`gc_thresh3`, which all interfaces share) counts them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PeerLookup};

use super::View;
use crate::{cluster::Node, settings::Settings};

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
        self.member(name)?.neighbours().find(|(its, _)| *its == address).map(|(_, link)| link)
    }

    fn holder_of_link_local(&self, address: Ipv6Addr) -> Option<&str> {
        let holders = self.index.link_holders(LinkAddress::of_link_local(address)?);
        holders.first().map(|(name, _)| name.as_str())
    }
}
