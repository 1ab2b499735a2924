//! A node of the cluster as this node sees it.

use std::net::IpAddr;

use wireloom_types::{LinkAddress, PublicKey};

use super::{View, neighbours};
use crate::{cluster::Node, routing::Family, standing::Standing};

/// A node, this one or another, with what is the same for all prefixes that it claims.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) is_own: bool,
    /// Present if it is another node that can encrypt with us.
    pub(super) peer: Option<Identity>,
    /// Present if we have a proof of it.
    pub(super) standing: Option<&'a Standing>,
    /// The declared addresses on the link that it gets.
    pub(super) addresses_on_link: Vec<IpAddr>,
}

/// What identifies a peer.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    /// To the device.
    pub(super) key: PublicKey,
    /// To the link, in link mode.
    pub(super) link_address: Option<LinkAddress>,
}

impl<'a> View<'a> {
    /// The node with this name.
    pub(super) fn member(&self, name: &str) -> Option<Member<'a>> {
        self.cluster.nodes.get_key_value(name).map(|(name, node)| self.member_of(name, node))
    }

    pub(super) fn member_of(&self, name: &'a str, node: &'a Node) -> Member<'a> {
        let is_own = self.is_own(name);
        let owned = |address: &IpAddr| self.owner((*address).into()) == Some(name);
        Member {
            name,
            node,
            is_own,
            peer: node.public_key.filter(|_| !is_own).and_then(|key| self.identity(name, key)),
            standing: self.standings.get(name).filter(|_| !is_own),
            addresses_on_link: neighbours::declared(node, self.settings).filter(owned).collect(),
        }
    }
}

impl Member<'_> {
    /// Its link address, if it is a peer and this is link mode.
    pub(super) fn link_address(&self) -> Option<LinkAddress> {
        self.peer?.link_address
    }

    /// The next hop towards it, if it is a peer and this is link mode. IPv4 may use an IPv6 next hop
    /// (RFC 5549); Linux does not support the reverse.
    pub(super) fn gateway(&self, family: Family) -> Option<IpAddr> {
        let link_address = self.link_address()?;
        let of = |family| self.addresses_on_link.iter().find(|address| Family::of(**address) == family);
        let next_hop = of(family).or_else(|| of(Family::V6)).copied();
        Some(next_hop.unwrap_or_else(|| link_address.link_local().into()))
    }

    /// Its neighbour entries.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = (IpAddr, LinkAddress)> {
        self.link_address().into_iter().flat_map(|link_address| {
            let addresses = self.addresses_on_link.iter().copied().chain([link_address.link_local().into()]);
            addresses.map(move |address| (address, link_address))
        })
    }
}
