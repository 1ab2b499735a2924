//! Link mode: the peers are neighbours on an Ethernet link.
//!
//! ```text
//!   network stack: rules, tables, next hops ──▶ "who has 100.64.0.2?" ──▶ ARP or ND, answered here
//!                                          └──▶ frame to the next hop's link address ──▶ its peer
//!   peer ──▶ packet ──▶ frame from the peer's link address ──▶ network stack, firewall
//! ```
//!
//! The interface is a TAP. Routing has chosen the next hop of every packet that comes out of it, so the frame's
//! destination alone names the peer ([`Link::decide`]). The Ethernet header stays here: a plain packet crosses the
//! tunnel, and the peer may run any WireGuard implementation.
//!
//! The module is pure: bytes and times in, bytes and decisions out, without I/O. Nothing is learnt from frames or
//! peers: the keys and the allowed-IPs say who is where. When they change, `Link::announce` corrects what the network
//! stack was told before.

mod cache;
mod neighbour;
mod table;

use std::sync::Arc;

use wireloom_proto::{Instant, PeerPath, Routes};
use wireloom_types::{LinkAddress, PublicKey};

pub use self::table::NeighbourTable;
use self::{cache::NeighbourCache, table::Obstacle};
use crate::{
    drops::EngineDrop,
    forwarding::Decision,
    icmp::{self, Limiter, Problem, Way},
    packet::{
        ethernet::Header,
        ipv4,
        ipv6::{self, Carried},
        protocol::ICMP,
    },
};

/// The link: the neighbours, and what the network stack was told about them.
#[derive(Debug)]
pub struct Link {
    /// Copied before a change while somebody else holds it, as other threads do.
    table: Arc<NeighbourTable>,
    cache: NeighbourCache,
    limiter: Limiter,
}

impl Link {
    /// A link without peers. `own` is the interface's link address.
    #[must_use]
    pub fn new(own: LinkAddress) -> Self {
        Self {
            table: Arc::new(NeighbourTable::new(own)),
            cache: NeighbourCache::default(),
            limiter: Limiter::default(),
        }
    }

    /// The neighbours.
    #[must_use]
    pub fn table(&self) -> &Arc<NeighbourTable> {
        &self.table
    }

    fn table_mut(&mut self) -> &mut NeighbourTable {
        Arc::make_mut(&mut self.table)
    }

    /// The interface's link address.
    pub(crate) fn own(&self) -> LinkAddress {
        self.table.own
    }

    /// Changes the interface's link address. The network stack then forgets its neighbours.
    pub(crate) fn set_own(&mut self, own: LinkAddress) {
        if own != self.table.own {
            self.table_mut().own = own;
            self.cache.clear();
        }
    }

    /// Adds a peer, in place of another peer with its link address.
    pub fn insert(&mut self, path: &Arc<PeerPath>) {
        if !self.table.has(path) {
            self.table_mut().insert(path);
        }
    }

    /// Removes the peer with this key, if it is there.
    pub(crate) fn remove(&mut self, public_key: &PublicKey) {
        if self.key_at(LinkAddress::of(*public_key)) == Some(*public_key) {
            self.table_mut().remove(public_key);
        }
    }

    /// Removes all peers.
    pub(crate) fn clear(&mut self) {
        self.table = Arc::new(NeighbourTable::new(self.table.own));
    }

    /// Corrects what the network stack was told about addresses that have moved since: passes a frame for each to
    /// `tell`. Call it after changes of peers and allowed-IPs.
    pub(crate) fn announce(&mut self, routes: &Routes, mut tell: impl FnMut(&[u8])) {
        let mut frame = Vec::new();
        self.cache.correct(
            |address| self.table.owner(address, routes).unwrap_or(LinkAddress::NOBODY),
            |address, location| {
                neighbour::announce(address, location, self.table.own, &mut frame);
                tell(&frame);
                frame.clear();
            },
        );
    }

    /// The key of the peer with this link address.
    pub(crate) fn key_at(&self, address: LinkAddress) -> Option<PublicKey> {
        self.table.path_at(address).map(|path| *path.public_key())
    }

    /// Decides what is done with a frame from the network stack.
    ///
    /// `longest` is the length in bytes of the longest packet in the frame, which may be a super-packet; `mtu` is the
    /// interface's, in bytes. An answer that the stack has to get at once is written to `answer`, as a frame.
    pub fn decide(
        &mut self,
        now: Instant,
        frame: &[u8],
        longest: usize,
        routes: &Routes,
        mtu: usize,
        answer: &mut Vec<u8>,
    ) -> Decision<'_> {
        let Some((header, packet)) = Header::split(frame) else {
            return Decision::Drop(EngineDrop::NotIp.into());
        };
        let obstacle = match self.table.path_of(now, header, packet, longest, mtu) {
            Ok(path) => return Decision::Peer(path),
            Err(obstacle) => obstacle,
        };
        let mut report = |problem, from| {
            if self.limiter.allows(now) {
                icmp::report(problem, packet, Some(Way { from, to: header.source }), answer);
            }
        };
        match obstacle {
            Obstacle::NotIp => Decision::Drop(EngineDrop::NotIp.into()),
            Obstacle::NotForTheLink => Decision::Drop(EngineDrop::NotForTheLink.into()),
            Obstacle::Group => Decision::AllPeers,
            Obstacle::NeighbourProtocol => {
                if let Some(question) = neighbour::question(header, packet) {
                    let owner = self.table.owner(question.target, routes);
                    // Something else told the stack that a peer has the address. It is asking whether that is still so.
                    let told = owner.is_none() && self.table.path_at(header.destination).is_some();
                    // Without an answer the sender would wait for seconds. With the address of nobody, its packets come
                    // back as errors at once.
                    let location =
                        if told { header.destination } else { owner.unwrap_or(LinkAddress::NOBODY) };
                    // A peer that has stopped answering does not answer here either, so that the stack uses others.
                    if let Some(path) = self.table.path_at(location).filter(|path| !path.is_reachable()) {
                        return Decision::Unreachable(path.id());
                    }
                    if !told {
                        self.cache.note(question.target, location);
                    }
                    neighbour::answer(&question, location, answer);
                }
                Decision::Local
            }
            Obstacle::NoNeighbour => {
                report(Problem::Unreachable, LinkAddress::NOBODY);
                Decision::Drop(EngineDrop::NoNeighbour.into())
            }
            Obstacle::Unreachable(peer) => {
                report(Problem::Unreachable, header.destination);
                Decision::Unreachable(peer)
            }
            Obstacle::TooBig(room) => {
                report(Problem::TooBig(room), header.destination);
                Decision::Drop(EngineDrop::TooBig.into())
            }
        }
    }
}

/// How far a packet may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Anywhere,
    /// It is neighbour discovery, which stays between the network stack and the device.
    Neighbours,
    /// It would tell somebody by which peer to send, which only routing decides, or it may be any of these: it is a
    /// first fragment that ends before its type. A router whose interface's `send_redirects` is 0 sends redirects all
    /// the same while that of `all` is 1 (`IN_DEV_TX_REDIRECTS` in include/linux/inetdevice.h).
    Nowhere,
}

impl Scope {
    /// The scope of an IPv6 packet.
    fn of_v6(packet: &[u8]) -> Self {
        match ipv6::carried(packet) {
            Carried::Icmpv6([neighbour::REDIRECT, ..]) | Carried::Cut => Self::Nowhere,
            Carried::Icmpv6([kind, ..]) if neighbour::NEIGHBOUR_TYPES.contains(kind) => Self::Neighbours,
            Carried::Icmpv6(_) | Carried::Other => Self::Anywhere,
        }
    }

    /// The scope of an IPv4 packet.
    fn of_v4(packet: &[u8]) -> Self {
        const REDIRECT: u8 = 5;
        let Some(header) = ipv4::Header::read(packet) else { return Self::Nowhere };
        if header.protocol() != ICMP || header.is_later_fragment() {
            return Self::Anywhere;
        }
        match packet.get(header.len()) {
            None | Some(&REDIRECT) => Self::Nowhere,
            Some(_) => Self::Anywhere,
        }
    }
}

#[cfg(test)]
mod tests;
