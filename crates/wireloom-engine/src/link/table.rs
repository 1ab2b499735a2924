//! Who is on the link: all that most frames have to know, for whichever thread carries them.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use wireloom_proto::{
    Instant, PeerId, PeerPath, Routes,
    message::{DATA_OVERHEAD, PADDING},
};
use wireloom_types::{LinkAddress, PublicKey};

use super::{
    frame::{self, HEADER_LEN, Header},
    ip, neighbours_only,
};
use crate::drops::Loss;

/// The peers by their link addresses. Threads that may not change it read copies of it.
#[derive(Clone, Debug)]
pub struct NeighbourTable {
    /// The interface's.
    pub(super) own: LinkAddress,
    neighbours: HashMap<LinkAddress, Neighbour>,
    addresses: HashMap<PeerId, LinkAddress>,
}

#[derive(Clone, Debug)]
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

/// Why a frame does not simply go to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// It carries another protocol, or nothing.
    NotIp,
    /// It is between neighbours: ARP or neighbour discovery.
    Neighbourly,
    /// It goes to many.
    Group,
    /// Nobody has this address.
    Nobody,
    /// The peer does not answer.
    Unreachable(PeerId),
    /// It exceeds what the way to the peer takes, this many bytes, and may not be fragmented.
    TooBig(u16),
}

/// What the network told of a path is doubted after this (RFC 1191, section 6.3).
const LEARNT_LASTS: Duration = Duration::from_secs(600);

/// Every IPv6 link takes packets of this length, in bytes (RFC 8200, section 5), so that this is the
/// least that a "packet too big" may tell.
const V6_MTU_MIN: usize = 1280;
/// The least path MTU that is believed; the kernel's `net.ipv4.route.min_pmtu`.
pub(crate) const PATH_MTU_MIN: u16 = 552;
/// RFC 768, in bytes.
const UDP_HEADER: usize = 8;

impl NeighbourTable {
    pub(super) fn new(own: LinkAddress) -> Self {
        Self { own, neighbours: HashMap::new(), addresses: HashMap::new() }
    }

    /// The peer that a frame goes to; `longest` and `mtu` are those of [`Link::route`](super::Link::route),
    /// which deals with all obstacles.
    pub(super) fn path_of(
        &self,
        now: Instant,
        header: Header,
        packet: &[u8],
        longest: usize,
        mtu: usize,
    ) -> Result<&Arc<PeerPath>, Obstacle> {
        match header.kind {
            frame::IPV4 => {}
            frame::IPV6 if neighbours_only(packet).is_none() => {}
            frame::IPV6 | frame::ARP => return Err(Obstacle::Neighbourly),
            _ => return Err(Obstacle::NotIp),
        }
        if header.destination.is_group() {
            return Err(Obstacle::Group);
        }
        let neighbour = self.neighbours.get(&header.destination).ok_or(Obstacle::Nobody)?;
        if !neighbour.path.is_reachable() {
            return Err(Obstacle::Unreachable(neighbour.path.id()));
        }
        match neighbour.room_exceeded(now, packet, longest, mtu) {
            Some(room) => Err(Obstacle::TooBig(room)),
            None => Ok(&neighbour.path),
        }
    }

    /// The peer that a frame goes to without further ado; `None` when there is anything else to be done
    /// about it, or nothing.
    pub(crate) fn path_of_frame(
        &self,
        now: Instant,
        frame: &[u8],
        longest: usize,
        mtu: usize,
    ) -> Option<&Arc<PeerPath>> {
        let (header, packet) = Header::split(frame)?;
        self.path_of(now, header, packet, longest, mtu).ok()
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
        let peer = self.address_of(peer).ok_or(Loss::NoNeighbour)?;
        Ok(Header::of_arrival(destination, peer, self.own).to_bytes())
    }

    /// Everybody, for packets that go to all.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<PeerPath>> {
        self.neighbours.values().map(|neighbour| &neighbour.path)
    }

    pub(super) fn path_at(&self, address: LinkAddress) -> Option<&Arc<PeerPath>> {
        self.neighbours.get(&address).map(|neighbour| &neighbour.path)
    }

    pub(super) fn address_of(&self, peer: PeerId) -> Option<LinkAddress> {
        self.addresses.get(&peer).copied()
    }

    /// The link address of the peer that has an address.
    pub(super) fn owner(&self, address: IpAddr, routes: &Routes) -> Option<LinkAddress> {
        let by_key = match address {
            IpAddr::V6(address) => LinkAddress::of_link_local(address),
            IpAddr::V4(_) => None,
        };
        by_key
            .filter(|address| self.neighbours.contains_key(address))
            .or_else(|| self.address_of(routes.lookup(address)?.id()))
    }

    pub(super) fn has(&self, path: &PeerPath) -> bool {
        self.addresses.contains_key(&path.id())
    }

    pub(super) fn path_mtu(&self, now: Instant, peer: PeerId) -> Option<u16> {
        self.neighbour(peer)?.path_mtu.now(now)
    }

    pub(super) fn configured_path_mtu(&self, peer: PeerId) -> Option<u16> {
        self.neighbour(peer)?.path_mtu.configured
    }

    fn neighbour(&self, peer: PeerId) -> Option<&Neighbour> {
        self.neighbours.get(self.addresses.get(&peer)?)
    }

    pub(super) fn insert(&mut self, path: &Arc<PeerPath>) {
        let address = LinkAddress::of(*path.public_key());
        let neighbour = Neighbour { path: Arc::clone(path), path_mtu: PathMtu::default() };
        self.addresses.insert(path.id(), address);
        if let Some(former) = self.neighbours.insert(address, neighbour) {
            self.addresses.remove(&former.path.id());
        }
    }

    pub(super) fn remove(&mut self, public_key: &PublicKey) {
        if let Entry::Occupied(place) = self.neighbours.entry(LinkAddress::of(*public_key)) {
            self.addresses.remove(&place.remove().path.id());
        }
    }

    pub(super) fn set_path_mtu(&mut self, peer: PeerId, path_mtu: Option<u16>) {
        let neighbour = self.addresses.get(&peer).and_then(|address| self.neighbours.get_mut(address));
        if let Some(neighbour) = neighbour {
            neighbour.path_mtu.configured = path_mtu;
        }
    }

    pub(super) fn learn_path_mtu(&mut self, now: Instant, remote: IpAddr, path_mtu: u16) {
        for neighbour in self.neighbours.values_mut().filter(|neighbour| is_at(&neighbour.path, remote)) {
            neighbour.path_mtu.learnt = Some((path_mtu.max(PATH_MTU_MIN), now + LEARNT_LASTS));
        }
    }
}

/// Whether this is the address of a peer's endpoint.
pub(super) fn is_at(path: &PeerPath, remote: IpAddr) -> bool {
    path.endpoint().is_some_and(|endpoint| endpoint.remote.ip() == remote)
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

impl PathMtu {
    fn now(self, now: Instant) -> Option<u16> {
        let learnt = self.learnt.filter(|(_, until)| now < *until).map(|(path_mtu, _)| path_mtu);
        self.configured.into_iter().chain(learnt).min()
    }
}
