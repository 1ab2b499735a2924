//! The link: peers as neighbours, as on an Ethernet.
//!
//! ```text
//!   network stack: rules, tables, next hops ──▶ "who has 100.64.0.2?" ──▶ ARP or ND, answered here
//!                                          └──▶ frame to the next hop's link address ──▶ its peer
//!   peer ──▶ packet ──▶ frame from the peer's link address ──▶ network stack, firewall
//! ```
//!
//! The interface is a TAP. Routing has chosen the next hop of each packet that comes out of it, so that
//! the peer is found by the frame's destination alone ([`Link::route`]). The Ethernet header stays here:
//! what crosses the tunnel is a plain packet, and the peer at the other end may be any WireGuard.
//!
//! All of this is bytes in, bytes out. Nothing is learnt from frames or peers; who is where follows from
//! the keys and the allowed IPs. When those change, the stack is told at once what it had asked for
//! before ([`Link::announce`]).

mod cache;
mod end;
mod frame;
mod icmp;
mod ip;
mod neighbour;
mod table;

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use wireloom_proto::{DropReason, Instant, PeerId, PeerPath, Routes, inner};
use wireloom_types::{LinkAddress, PublicKey};

pub use self::table::NeighbourTable;
use self::{
    cache::NeighbourCache,
    frame::Header,
    icmp::{Limiter, Trouble},
    table::Obstacle,
};
pub(crate) use self::{end::LinkEnd, frame::HEADER_LEN, table::PATH_MTU_MIN};
use crate::drops::Loss;

/// The link: who is on it, and what the network stack was told of that.
#[derive(Debug)]
pub struct Link {
    /// Changed in place, unless other threads have it: then a copy of it is, once before each
    /// publication.
    table: Arc<NeighbourTable>,
    /// What other threads read; `None` while there are none.
    published: Option<PublishedTable>,
    cache: NeighbourCache,
    limiter: Limiter,
}

/// The table as it was published last.
pub(crate) type PublishedTable = Arc<ArcSwap<NeighbourTable>>;

/// Where a frame goes.
#[derive(Debug)]
pub enum Way<'a> {
    /// Its packet, to one peer.
    Peer(&'a Arc<PeerPath>),
    /// Its packet, to every peer.
    Everyone,
    /// It was for this end of the link.
    Here,
    /// Nowhere.
    Lost(Loss),
    /// Nowhere, for the protocol's reason.
    Dropped(DropReason),
    /// Nowhere, until this peer is found again.
    PeerLost(PeerId),
}

impl<'a> Way<'a> {
    /// The way of a bare packet: to the peer whose allowed IPs have its destination.
    #[must_use]
    pub fn of_packet(packet: &[u8], routes: &'a Routes) -> Self {
        match inner::Packet::parse(packet) {
            Ok(packet) => match routes.lookup(packet.destination) {
                Some(path) => Self::Peer(path),
                None => Self::Dropped(DropReason::NoPeerForDestination),
            },
            Err(reason) => Self::Dropped(reason),
        }
    }
}

impl Link {
    /// A link without peers, whose own address is this.
    #[must_use]
    pub fn new(own: LinkAddress) -> Self {
        Self {
            table: Arc::new(NeighbourTable::new(own)),
            published: None,
            cache: NeighbourCache::default(),
            limiter: Limiter::default(),
        }
    }

    /// The neighbours as they are now.
    #[must_use]
    pub fn table(&self) -> &Arc<NeighbourTable> {
        &self.table
    }

    /// Shares the table with other threads, which see its changes after [`Self::publish`].
    pub(crate) fn share(&mut self) -> PublishedTable {
        let published = || Arc::new(ArcSwap::new(Arc::clone(&self.table)));
        Arc::clone(self.published.get_or_insert_with(published))
    }

    /// Lets other threads see what has changed.
    pub(crate) fn publish(&self) {
        if let Some(published) = &self.published
            && !Arc::ptr_eq(&published.load(), &self.table)
        {
            published.store(Arc::clone(&self.table));
        }
    }

    fn table_mut(&mut self) -> &mut NeighbourTable {
        Arc::make_mut(&mut self.table)
    }

    pub(crate) fn own(&self) -> LinkAddress {
        self.table.own
    }

    /// Takes another address, upon which the network stack forgets its neighbours.
    pub(crate) fn set_own(&mut self, own: LinkAddress) {
        if own != self.table.own {
            self.table_mut().own = own;
            self.cache.clear();
        }
    }

    /// Makes a peer a neighbour, or keeps it with what is known of it. It takes the place of whoever had
    /// its address.
    pub fn insert(&mut self, path: &Arc<PeerPath>) {
        if !self.table.has(path) {
            self.table_mut().insert(path);
        }
    }

    /// The peer with this key, if there was one, is no neighbour any more.
    pub(crate) fn remove(&mut self, public_key: &PublicKey) {
        if self.key_at(LinkAddress::of(*public_key)) == Some(*public_key) {
            self.table_mut().remove(public_key);
        }
    }

    /// There are no neighbours any more.
    pub(crate) fn clear(&mut self) {
        self.table = Arc::new(NeighbourTable::new(self.table.own));
    }

    /// Tells the network stack, frame by frame, where the addresses are that it was told something else of.
    /// To be called after changes of peers and allowed IPs.
    pub(crate) fn announce(&mut self, routes: &Routes, mut tell: impl FnMut(&[u8])) {
        let mut frame = Vec::new();
        self.cache.correct(
            |address| self.table.owner(address, routes).unwrap_or(LinkAddress::NOBODY),
            |address, there| {
                neighbour::announce(address, there, self.table.own, &mut frame);
                tell(&frame);
                frame.clear();
            },
        );
    }

    /// Sets or forgets the path MTU of a peer, as somebody who knows it says.
    pub(crate) fn set_path_mtu(&mut self, peer: PeerId, path_mtu: Option<u16>) {
        if self.table.configured_path_mtu(peer) != path_mtu {
            self.table_mut().set_path_mtu(peer, path_mtu);
        }
    }

    /// Believes what the network told about the way to the peers at this address.
    pub(crate) fn learn_path_mtu(&mut self, now: Instant, remote: IpAddr, path_mtu: u16) {
        // Others' ways are nobody's news, and no reason to copy the table.
        if self.table.peers().any(|path| table::is_at(path, remote)) {
            tracing::debug!("the path MTU to {remote} is {path_mtu}");
            self.table_mut().learn_path_mtu(now, remote, path_mtu);
        }
    }

    /// The path MTU of a peer, if one is known.
    pub(crate) fn path_mtu(&self, now: Instant, peer: PeerId) -> Option<u16> {
        self.table.path_mtu(now, peer)
    }

    /// The key of the peer with this address.
    pub(crate) fn key_at(&self, address: LinkAddress) -> Option<PublicKey> {
        self.table.path_at(address).map(|path| *path.public_key())
    }

    /// Decides where a frame goes that the network stack sent. What the stack is to be told at once is
    /// written to `answer`, as a frame; `longest` is the length of the longest packet in the frame, which
    /// may be a super-packet, and `mtu` the interface's.
    pub fn route(
        &mut self,
        now: Instant,
        frame: &[u8],
        longest: usize,
        routes: &Routes,
        mtu: usize,
        answer: &mut Vec<u8>,
    ) -> Way<'_> {
        let Some((header, packet)) = Header::split(frame) else { return Way::Lost(Loss::NotIp) };
        let obstacle = match self.table.path_of(now, header, packet, longest, mtu) {
            Ok(path) => return Way::Peer(path),
            Err(obstacle) => obstacle,
        };
        let mut report = |trouble, from| {
            if self.limiter.allows(now) {
                icmp::report(trouble, packet, from, header.source, answer);
            }
        };
        match obstacle {
            Obstacle::NotIp => Way::Lost(Loss::NotIp),
            Obstacle::Group => Way::Everyone,
            Obstacle::Neighbourly => {
                if let Some(question) = neighbour::question(header, packet) {
                    let there = match self.table.owner(question.target, routes) {
                        // Somebody else told the stack where it is; now it asks whether that is still so.
                        None if self.table.path_at(header.destination).is_some() => header.destination,
                        // Silence instead of nobody's link address would let the sender wait for
                        // seconds: what is sent there comes back as an error at once.
                        owner => {
                            let there = owner.unwrap_or(LinkAddress::NOBODY);
                            self.cache.note(question.target, there);
                            there
                        }
                    };
                    neighbour::answer(&question, there, answer);
                }
                Way::Here
            }
            Obstacle::Nobody => {
                report(Trouble::Unreachable, LinkAddress::NOBODY);
                Way::Lost(Loss::NoNeighbour)
            }
            Obstacle::Unreachable(peer) => {
                report(Trouble::Unreachable, header.destination);
                Way::PeerLost(peer)
            }
            Obstacle::TooBig(room) => {
                report(Trouble::TooBig(room), header.destination);
                Way::Lost(Loss::TooBig)
            }
        }
    }
}

/// The ICMPv6 message of a packet that is for neighbours only.
fn neighbours_only(packet: &[u8]) -> Option<&[u8]> {
    let message = ip::icmpv6(packet)?;
    message.first().is_some_and(|kind| neighbour::NEIGHBOUR_TYPES.contains(kind)).then_some(message)
}

#[cfg(test)]
mod tests;
