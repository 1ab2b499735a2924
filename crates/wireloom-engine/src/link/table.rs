//! The neighbour table: all that most frames need, for whichever thread carries them.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use wireloom_proto::{Instant, PeerId, PeerPath, Routes};
use wireloom_types::{LinkAddress, PublicKey};

use super::Scope;
use crate::{
    drops::EngineDrop,
    packet::ethernet::{Header, HeaderBytes, kind},
    path_mtu::room_exceeded,
};

/// The peers by their link addresses: a snapshot.
#[derive(Clone, Debug)]
pub struct NeighbourTable {
    /// The interface's link address.
    own: LinkAddress,
    neighbours: HashMap<LinkAddress, Arc<PeerPath>>,
    addresses: HashMap<PeerId, LinkAddress>,
}

/// Why a frame cannot simply be sent to one peer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Obstacle<'t> {
    /// It carries another protocol, or nothing.
    NotIp,
    /// It is ARP or neighbour discovery, which stays between neighbours.
    NeighbourProtocol,
    /// It is nothing for any peer: see [`Scope::Nowhere`].
    NotForTheLink,
    /// Its destination is a group.
    Group,
    /// No peer has this link address.
    NoNeighbour,
    /// The peer is unreachable.
    Unreachable(&'t Arc<PeerPath>),
    /// It is longer than the path to the peer carries, which is this many bytes, and must not be fragmented.
    TooBig(usize),
}

impl NeighbourTable {
    pub(super) fn new(own: LinkAddress) -> Self {
        Self { own, neighbours: HashMap::new(), addresses: HashMap::new() }
    }

    /// The peer that a frame goes to. [`Link::decide`](super::Link::decide) documents `longest` and `mtu`, and deals
    /// with obstacles.
    pub(super) fn path_of(
        &self,
        now: Instant,
        header: Header,
        packet: &[u8],
        longest: usize,
        mtu: usize,
    ) -> Result<&Arc<PeerPath>, Obstacle<'_>> {
        let scope = match header.kind {
            kind::IPV4 => Scope::of_v4(packet),
            kind::IPV6 => Scope::of_v6(packet),
            kind::ARP => Scope::Neighbours,
            _ => return Err(Obstacle::NotIp),
        };
        match scope {
            Scope::Anywhere => {}
            Scope::Neighbours => return Err(Obstacle::NeighbourProtocol),
            Scope::Nowhere => return Err(Obstacle::NotForTheLink),
        }
        if header.destination.is_group() {
            return Err(Obstacle::Group);
        }
        let path = self.neighbours.get(&header.destination).ok_or(Obstacle::NoNeighbour)?;
        if !path.is_reachable() {
            return Err(Obstacle::Unreachable(path));
        }
        match room_exceeded(path, now, packet, longest, mtu) {
            Some(room) => Err(Obstacle::TooBig(room)),
            None => Ok(path),
        }
    }

    /// The Ethernet header for a packet from a peer.
    ///
    /// # Errors
    /// [`EngineDrop::NotForTheLink`] when the packet is neighbour discovery or a redirect, which would tell the stack
    /// where other neighbours are, or may be one; [`EngineDrop::NoNeighbour`] when the peer is gone.
    pub(crate) fn inbound_header(
        &self,
        peer: PeerId,
        destination: IpAddr,
        packet: &[u8],
    ) -> Result<HeaderBytes, EngineDrop> {
        let scope = if destination.is_ipv6() { Scope::of_v6(packet) } else { Scope::of_v4(packet) };
        if scope != Scope::Anywhere {
            return Err(EngineDrop::NotForTheLink);
        }
        // The peer may have been removed a moment ago.
        let peer = self.address_of(peer).ok_or(EngineDrop::NoNeighbour)?;
        Ok(Header::inbound(destination, peer, self.own).to_bytes())
    }

    /// All peers.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<PeerPath>> {
        self.neighbours.values()
    }

    pub(super) fn path_at(&self, address: LinkAddress) -> Option<&Arc<PeerPath>> {
        self.neighbours.get(&address)
    }

    fn address_of(&self, peer: PeerId) -> Option<LinkAddress> {
        self.addresses.get(&peer).copied()
    }

    /// The link address of the peer that has an IP address: by its key for link-local addresses, else by the allowed
    /// IPs.
    pub(super) fn owner(&self, address: IpAddr, routes: &Routes) -> Option<LinkAddress> {
        let by_key = match address {
            IpAddr::V6(address) => LinkAddress::of_link_local(address),
            IpAddr::V4(_) => None,
        };
        by_key
            .filter(|address| self.neighbours.contains_key(address))
            .or_else(|| self.address_of(routes.lookup(address)?.id()))
    }

    /// The interface's link address.
    pub(crate) fn own(&self) -> LinkAddress {
        self.own
    }

    pub(super) fn set_own(&mut self, own: LinkAddress) {
        self.own = own;
    }

    /// The key of the peer with this link address.
    pub(crate) fn key_at(&self, address: LinkAddress) -> Option<PublicKey> {
        self.path_at(address).map(|path| *path.public_key())
    }

    pub(super) fn has(&self, path: &PeerPath) -> bool {
        self.addresses.contains_key(&path.id())
    }

    /// Adds a peer, in place of another peer with its link address.
    pub fn insert(&mut self, path: &Arc<PeerPath>) {
        if self.has(path) {
            return;
        }
        let address = LinkAddress::of(*path.public_key());
        self.addresses.insert(path.id(), address);
        if let Some(former) = self.neighbours.insert(address, Arc::clone(path)) {
            self.addresses.remove(&former.id());
        }
    }

    /// Removes the peer with this key, if it is there.
    pub(crate) fn remove(&mut self, public_key: &PublicKey) {
        if let Entry::Occupied(place) = self.neighbours.entry(LinkAddress::of(*public_key))
            && place.get().public_key() == public_key
        {
            self.addresses.remove(&place.remove().id());
        }
    }

    /// Removes all peers.
    pub(crate) fn clear(&mut self) {
        self.neighbours.clear();
        self.addresses.clear();
    }
}
