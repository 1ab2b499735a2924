//! A node of the cluster as this one sees it: what is the same for all that it claims.

use std::net::IpAddr;

use wireloom_types::{LinkAddress, PublicKey};

use super::{View, neighbours};
use crate::{cluster::Node, kernel::Family};

/// A node, this one or another.
pub(super) struct Member<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) is_own: bool,
    /// Another node that can encrypt with us is our peer.
    pub(super) peer: Option<Identity>,
    /// Those of its declared addresses on the link that it gets.
    pub(super) link_addresses: Vec<IpAddr>,
}

/// Who a peer is.
#[derive(Clone, Copy)]
pub(super) struct Identity {
    /// For the device.
    pub(super) key: PublicKey,
    /// Where peers are neighbours.
    pub(super) link: Option<LinkAddress>,
}

impl<'a> View<'a> {
    /// The node of this name.
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
            peer: node.public_key.filter(|_| !is_own).and_then(|key| self.identity(key)),
            link_addresses: neighbours::declared(node, self.settings).filter(owned).collect(),
        }
    }
}

impl Member<'_> {
    /// Its link address, if it is a peer on a link.
    pub(super) fn link(&self) -> Option<LinkAddress> {
        self.peer?.link
    }

    /// The next hop towards it, if it is a peer on a link. IPv4 may go by an IPv6 next hop (RFC 5549), but
    /// not the other way round, which Linux does not do.
    pub(super) fn gateway(&self, family: Family) -> Option<IpAddr> {
        let link = self.link()?;
        let of = |family| self.link_addresses.iter().find(|address| Family::of(**address) == family);
        let next_hop = of(family).or_else(|| of(Family::V6)).copied();
        Some(next_hop.unwrap_or_else(|| link.link_local().into()))
    }

    /// The addresses that it has as a neighbour.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = (IpAddr, LinkAddress)> {
        self.link().into_iter().flat_map(|link| {
            let addresses = self.link_addresses.iter().copied().chain([link.link_local().into()]);
            addresses.map(move |address| (address, link))
        })
    }
}
