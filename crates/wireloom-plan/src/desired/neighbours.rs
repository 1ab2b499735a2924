//! Link mode: peers are neighbours, and the next hop decides which peer gets a packet.
//!
//! A peer has the IP addresses on the link that its node declares, and the link-local address that follows
//! from its key. All of them are permanent neighbours: nobody has to solicit them, and they do not count
//! towards the limit on learnt neighbours (`gc_thresh3`, which all interfaces share).

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use wireloom_types::{LinkAddress, PeerLookup};

use super::View;
use crate::{cluster::Node, settings::Settings};

/// The addresses on the link that a node declares, except link-local ones, which follow from the key
/// instead. Empty except in link mode.
pub(crate) fn declared<'a>(node: &'a Node, settings: &Settings) -> impl Iterator<Item = IpAddr> + use<'a> {
    let link_mode = settings.peer_lookup == PeerLookup::Gateway;
    let addresses = link_mode.then_some(&node.link_addresses).into_iter().flatten().copied();
    addresses.filter(|address| !is_link_local(*address))
}

/// Whether an address has a meaning on its link only, so that no route in another table can lead to it.
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

impl View<'_> {
    pub(super) fn in_link_mode(&self) -> bool {
        self.settings.peer_lookup == PeerLookup::Gateway
    }

    /// Every address on the link that the node claims, whether it gets it or not.
    pub(crate) fn addresses_on_link(&self, node: &Node) -> impl Iterator<Item = IpAddr> {
        let key = node.public_key.filter(|_| self.in_link_mode());
        let link_local = key.map(|key| IpAddr::from(self.link_address_of(key).link_local()));
        declared(node, self.settings).chain(link_local)
    }

    /// The link address of the peer that has exactly this address on the link.
    pub(crate) fn neighbour(&self, address: IpAddr) -> Option<LinkAddress> {
        if !self.in_link_mode() {
            return None;
        }
        let name = match address {
            IpAddr::V6(address) if address.is_unicast_link_local() => self.holder_of_link_local(address)?,
            _ => self.owner(IpNet::from(address))?,
        };
        self.member(name)?.neighbours().find(|(its, _)| *its == address).map(|(_, link_address)| link_address)
    }

    fn holder_of_link_local(&self, address: Ipv6Addr) -> Option<&str> {
        let holders = self.index.link_address_holders(LinkAddress::of_link_local(address)?);
        holders.first().and_then(|(_, key)| self.rightful_holder(*key))
    }
}
