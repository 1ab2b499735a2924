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

mod address;
mod cache;
mod frame;
mod icmp;
mod ip;
mod neighbour;

use std::{
    collections::{HashMap, hash_map::Entry},
    mem,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use wireloom_proto::{
    DropReason, Instant, PeerId, PeerPath, PublicKey, Routes, inner,
    message::{DATA_OVERHEAD, PADDING},
};

pub use self::address::LinkAddress;
pub(crate) use self::frame::HEADER_LEN;
use self::{
    cache::NeighbourCache,
    frame::Header,
    icmp::{Limiter, Trouble},
    neighbour::Question,
};
use crate::drops::Loss;

/// The peers by their link addresses.
#[derive(Debug)]
pub struct Link {
    /// The interface's.
    own: LinkAddress,
    neighbours: HashMap<LinkAddress, Neighbour>,
    addresses: HashMap<PeerId, LinkAddress>,
    cache: NeighbourCache,
    limiter: Limiter,
}

#[derive(Debug)]
struct Neighbour {
    path: Arc<PeerPath>,
    path_mtu: PathMtu,
}

/// The largest IP packet that the underlay takes to a peer, in bytes, as far as known.
#[derive(Clone, Copy, Debug, Default)]
struct PathMtu {
    configured: Option<u16>,
    /// What the network told, and until when it is believed.
    learnt: Option<(u16, Instant)>,
}

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

/// What the network told of a path is doubted after this (RFC 1191, section 6.3).
const LEARNT_LASTS: Duration = Duration::from_secs(600);

/// Every IPv6 link takes packets of this length, in bytes (RFC 8200, section 5), so that this is the
/// least that a "packet too big" may tell.
const V6_MTU_MIN: usize = 1280;
/// The least path MTU that is believed; the kernel's `net.ipv4.route.min_pmtu`.
pub(crate) const PATH_MTU_MIN: u16 = 552;

impl Link {
    /// A link without peers, whose own address is this.
    #[must_use]
    pub fn new(own: LinkAddress) -> Self {
        Self {
            own,
            neighbours: HashMap::new(),
            addresses: HashMap::new(),
            cache: NeighbourCache::default(),
            limiter: Limiter::default(),
        }
    }

    pub(crate) fn own(&self) -> LinkAddress {
        self.own
    }

    /// Takes another address, upon which the network stack forgets its neighbours.
    pub(crate) fn set_own(&mut self, own: LinkAddress) {
        if own != self.own {
            self.own = own;
            self.cache.clear();
        }
    }

    /// Makes a peer a neighbour, or keeps it with what is known of it. It takes the place of whoever had
    /// its address.
    pub fn insert(&mut self, path: &Arc<PeerPath>) {
        let address = LinkAddress::of(path.public_key());
        let neighbour = Neighbour { path: Arc::clone(path), path_mtu: PathMtu::default() };
        self.addresses.insert(path.id(), address);
        match self.neighbours.entry(address) {
            Entry::Vacant(place) => {
                place.insert(neighbour);
            }
            Entry::Occupied(mut place) if place.get().path.id() != path.id() => {
                let former = place.insert(neighbour);
                self.addresses.remove(&former.path.id());
            }
            Entry::Occupied(_) => {}
        }
    }

    /// The peer with this key, if there was one, is no neighbour any more.
    pub(crate) fn remove(&mut self, public_key: &PublicKey) {
        if let Entry::Occupied(place) = self.neighbours.entry(LinkAddress::of(public_key))
            && place.get().path.public_key() == public_key
        {
            self.addresses.remove(&place.remove().path.id());
        }
    }

    /// There are no neighbours any more.
    pub(crate) fn clear(&mut self) {
        self.neighbours.clear();
        self.addresses.clear();
    }

    /// Tells the network stack, frame by frame, where the addresses are that it was told something else of.
    /// To be called after changes of peers and allowed IPs.
    pub(crate) fn announce(&mut self, routes: &Routes, mut tell: impl FnMut(&[u8])) {
        let mut cache = mem::take(&mut self.cache);
        let mut frame = Vec::new();
        cache.correct(
            |address| self.owner(address, routes).unwrap_or(LinkAddress::NOBODY),
            |address, there| {
                neighbour::announce(address, there, self.own, &mut frame);
                tell(&frame);
                frame.clear();
            },
        );
        self.cache = cache;
    }

    /// Sets or forgets the path MTU of a peer, as somebody who knows it says.
    pub(crate) fn set_path_mtu(&mut self, peer: PeerId, path_mtu: Option<u16>) {
        if let Some(neighbour) = self.neighbour_mut(peer) {
            neighbour.path_mtu.configured = path_mtu;
        }
    }

    /// Believes what the network told about the way to the peers at this address.
    pub(crate) fn learn_path_mtu(&mut self, now: Instant, remote: IpAddr, path_mtu: u16) {
        let path_mtu = path_mtu.max(PATH_MTU_MIN);
        for neighbour in self.neighbours.values_mut() {
            if neighbour.path.endpoint().is_some_and(|endpoint| endpoint.remote.ip() == remote) {
                tracing::debug!("the path MTU to {remote} is {path_mtu}");
                neighbour.path_mtu.learnt = Some((path_mtu, now + LEARNT_LASTS));
            }
        }
    }

    /// The path MTU of a peer, if one is known.
    pub(crate) fn path_mtu(&self, now: Instant, peer: PeerId) -> Option<u16> {
        self.neighbours.get(self.addresses.get(&peer)?)?.path_mtu.now(now)
    }

    /// The key of the peer with this address.
    pub(crate) fn key_at(&self, address: LinkAddress) -> Option<PublicKey> {
        self.neighbours.get(&address).map(|neighbour| *neighbour.path.public_key())
    }

    /// Everybody, for packets that go to all.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<PeerPath>> {
        self.neighbours.values().map(|neighbour| &neighbour.path)
    }

    fn neighbour_mut(&mut self, peer: PeerId) -> Option<&mut Neighbour> {
        self.neighbours.get_mut(self.addresses.get(&peer)?)
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
        match header.kind {
            frame::ARP => {
                if let Some(question) = neighbour::arp_question(header, packet) {
                    self.answer(header, &question, routes, answer);
                }
                return Way::Here;
            }
            frame::IPV6 => {
                if let Some(message) = neighbours_only(packet) {
                    if let Some(question) = neighbour::solicited(header, packet, message) {
                        self.answer(header, &question, routes, answer);
                    }
                    return Way::Here;
                }
            }
            frame::IPV4 => {}
            _ => return Way::Lost(Loss::NotIp),
        }
        if header.destination.is_group() {
            return Way::Everyone;
        }
        self.route_to_one(now, header, packet, longest, mtu, answer)
    }

    fn route_to_one(
        &mut self,
        now: Instant,
        header: Header,
        packet: &[u8],
        longest: usize,
        mtu: usize,
        answer: &mut Vec<u8>,
    ) -> Way<'_> {
        let neighbour = self.neighbours.get(&header.destination);
        let limiter = &mut self.limiter;
        let mut report = |trouble, from| {
            if limiter.allows(now) {
                icmp::report(trouble, packet, from, header.source, answer);
            }
        };
        let Some(neighbour) = neighbour else {
            report(Trouble::Unreachable, LinkAddress::NOBODY);
            return Way::Lost(Loss::NoNeighbour);
        };
        if !neighbour.path.is_reachable() {
            report(Trouble::Unreachable, header.destination);
            return Way::PeerLost(neighbour.path.id());
        }
        if let Some(room) = neighbour.room_exceeded(now, packet, longest, mtu) {
            report(Trouble::TooBig(room), header.destination);
            return Way::Lost(Loss::TooBig);
        }
        Way::Peer(&neighbour.path)
    }

    /// Answers with the peer that has the address, or else with nobody's link address: what is sent
    /// there comes back as an error at once, where silence would let the sender wait for seconds.
    fn answer(&mut self, header: Header, question: &Question, routes: &Routes, answer: &mut Vec<u8>) {
        let there = match self.owner(question.target, routes) {
            // Somebody else told the stack where it is; now it asks whether that is still so.
            None if self.neighbours.contains_key(&header.destination) => header.destination,
            owner => {
                let there = owner.unwrap_or(LinkAddress::NOBODY);
                self.cache.note(question.target, there);
                there
            }
        };
        neighbour::answer(question, there, answer);
    }

    /// The link address of the peer that has an address.
    fn owner(&self, address: IpAddr, routes: &Routes) -> Option<LinkAddress> {
        let by_key = match address {
            IpAddr::V6(address) => LinkAddress::of_link_local(address),
            IpAddr::V4(_) => None,
        };
        by_key
            .filter(|address| self.neighbours.contains_key(address))
            .or_else(|| self.addresses.get(&routes.lookup(address)?.id()).copied())
    }

    /// The Ethernet header for a packet that came from a peer.
    ///
    /// # Errors
    /// [`Loss::NotForTheLink`] when it would tell the stack who its neighbours are.
    pub(crate) fn arrival(
        &self,
        peer: PeerId,
        destination: IpAddr,
        packet: &[u8],
    ) -> Result<[u8; HEADER_LEN], Loss> {
        if destination.is_ipv6() && neighbours_only(packet).is_some() {
            return Err(Loss::NotForTheLink);
        }
        // A peer that was removed a moment ago: who it was is not known any more.
        let peer = self.addresses.get(&peer).ok_or(Loss::NoNeighbour)?;
        Ok(Header::of_arrival(destination, *peer, self.own).to_bytes())
    }
}

impl Neighbour {
    /// The longest packet for this peer when this one, whose segments are up to `longest` bytes long, exceeds
    /// it and may not be fragmented on its way.
    fn room_exceeded(&self, now: Instant, packet: &[u8], longest: usize, mtu: usize) -> Option<u16> {
        let path_mtu = usize::from(self.path_mtu.now(now)?);
        let is_v6 = packet.first()? >> 4 == 6;
        let fragments = !is_v6 && packet.get(6)? & 0x40 == 0;
        let outer_header = if self.path.endpoint()?.remote.is_ipv4() { ip::V4_HEADER } else { ip::V6_HEADER };
        let payload = path_mtu.saturating_sub(outer_header + UDP_HEADER + DATA_OVERHEAD);
        // A packet as long as the interface's MTU is not padded.
        let room = if payload >= mtu { mtu } else { payload - payload % PADDING };
        let room = if is_v6 { room.max(V6_MTU_MIN) } else { room };
        (longest > room && !fragments).then_some(room as u16)
    }
}

/// RFC 768, in bytes.
const UDP_HEADER: usize = 8;

impl PathMtu {
    fn now(self, now: Instant) -> Option<u16> {
        let learnt = self.learnt.filter(|(_, until)| now < *until).map(|(path_mtu, _)| path_mtu);
        self.configured.into_iter().chain(learnt).min()
    }
}

/// The ICMPv6 message of a packet that is for neighbours only.
fn neighbours_only(packet: &[u8]) -> Option<&[u8]> {
    let message = ip::icmpv6(packet)?;
    message.first().is_some_and(|kind| neighbour::NEIGHBOUR_TYPES.contains(kind)).then_some(message)
}

#[cfg(test)]
mod tests;
