//! The neighbour table: all that most frames need, for whichever thread carries them.

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

use super::neighbours_only;
use crate::{
    drops::EngineDrop,
    packet::{
        ethernet::{Header, HeaderBytes, kind},
        ip_version, ipv4, ipv6, udp,
    },
};

/// The peers by their link addresses. Its owner changes it; other threads read copies.
#[derive(Clone, Debug)]
pub struct NeighbourTable {
    /// The interface's link address.
    pub(super) own: LinkAddress,
    neighbours: HashMap<LinkAddress, Neighbour>,
    addresses: HashMap<PeerId, LinkAddress>,
}

#[derive(Clone, Debug)]
struct Neighbour {
    path: Arc<PeerPath>,
    path_mtu: PathMtu,
}

/// The largest IP packet that the underlay carries to a peer, in bytes, as far as known.
#[derive(Clone, Copy, Debug, Default)]
struct PathMtu {
    configured: Option<usize>,
    /// What the network reported, and when that expires.
    learnt: Option<(usize, Instant)>,
}

/// Why a frame cannot simply be sent to one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It carries another protocol, or nothing.
    NotIp,
    /// It is ARP or neighbour discovery, which stays between neighbours.
    NeighbourProtocol,
    /// Its destination is a group.
    Group,
    /// No peer has this link address.
    NoNeighbour,
    /// The peer is unreachable.
    Unreachable(PeerId),
    /// It is longer than the path to the peer carries, which is this many bytes, and must not be fragmented.
    TooBig(usize),
}

/// How long a path MTU from the network is used (RFC 1191, section 6.3).
const LEARNT_LASTS: Duration = Duration::from_secs(600);

/// The smallest path MTU that is accepted, in bytes: the kernel's `net.ipv4.route.min_pmtu`.
pub(crate) const PATH_MTU_MIN: usize = 552;

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
    ) -> Result<&Arc<PeerPath>, Obstacle> {
        match header.kind {
            kind::IPV4 => {}
            kind::IPV6 if neighbours_only(packet).is_none() => {}
            kind::IPV6 | kind::ARP => return Err(Obstacle::NeighbourProtocol),
            _ => return Err(Obstacle::NotIp),
        }
        if header.destination.is_group() {
            return Err(Obstacle::Group);
        }
        let neighbour = self.neighbours.get(&header.destination).ok_or(Obstacle::NoNeighbour)?;
        if !neighbour.path.is_reachable() {
            return Err(Obstacle::Unreachable(neighbour.path.id()));
        }
        match neighbour.room_exceeded(now, packet, longest, mtu) {
            Some(room) => Err(Obstacle::TooBig(room)),
            None => Ok(&neighbour.path),
        }
    }

    /// The peer that a frame can simply be sent to. `None` when only the link's owner can decide.
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

    /// The Ethernet header for a packet from a peer.
    ///
    /// # Errors
    /// [`EngineDrop::NotForTheLink`] when the packet is neighbour discovery, which would tell the stack where other
    /// neighbours are; [`EngineDrop::NoNeighbour`] when the peer is gone.
    pub(crate) fn inbound_header(
        &self,
        peer: PeerId,
        destination: IpAddr,
        packet: &[u8],
    ) -> Result<HeaderBytes, EngineDrop> {
        if destination.is_ipv6() && neighbours_only(packet).is_some() {
            return Err(EngineDrop::NotForTheLink);
        }
        // The peer may have been removed a moment ago.
        let peer = self.address_of(peer).ok_or(EngineDrop::NoNeighbour)?;
        Ok(Header::inbound(destination, peer, self.own).to_bytes())
    }

    /// All peers.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<PeerPath>> {
        self.neighbours.values().map(|neighbour| &neighbour.path)
    }

    pub(super) fn path_at(&self, address: LinkAddress) -> Option<&Arc<PeerPath>> {
        self.neighbours.get(&address).map(|neighbour| &neighbour.path)
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

    pub(super) fn has(&self, path: &PeerPath) -> bool {
        self.addresses.contains_key(&path.id())
    }

    pub(super) fn path_mtu(&self, now: Instant, peer: PeerId) -> Option<usize> {
        self.neighbour(peer)?.path_mtu.at(now)
    }

    pub(super) fn configured_path_mtu(&self, peer: PeerId) -> Option<usize> {
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

    pub(super) fn set_path_mtu(&mut self, peer: PeerId, path_mtu: Option<usize>) {
        let neighbour = self.addresses.get(&peer).and_then(|address| self.neighbours.get_mut(address));
        if let Some(neighbour) = neighbour {
            neighbour.path_mtu.configured = path_mtu;
        }
    }

    pub(super) fn learn_path_mtu(&mut self, now: Instant, remote: IpAddr, path_mtu: usize) {
        for neighbour in self.neighbours.values_mut().filter(|neighbour| is_at(&neighbour.path, remote)) {
            neighbour.path_mtu.learnt = Some((path_mtu.max(PATH_MTU_MIN), now + LEARNT_LASTS));
        }
    }
}

/// Whether a peer's endpoint has this address.
pub(super) fn is_at(path: &PeerPath, remote: IpAddr) -> bool {
    path.endpoint().is_some_and(|endpoint| endpoint.remote.ip() == remote)
}

impl Neighbour {
    /// The length in bytes of the longest packet that the path carries, if this packet exceeds it and must not be
    /// fragmented. The packet's segments are up to `longest` bytes long.
    fn room_exceeded(&self, now: Instant, packet: &[u8], longest: usize, mtu: usize) -> Option<usize> {
        let path_mtu = self.path_mtu.at(now)?;
        let is_v6 = ip_version(packet)? == 6;
        let may_be_fragmented = !is_v6 && !ipv4::Header::read(packet)?.dont_fragment();
        let outer_header =
            if self.path.endpoint()?.remote.is_ipv4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let payload = path_mtu.saturating_sub(outer_header + udp::HEADER_LEN + DATA_OVERHEAD);
        // A packet as long as the interface's MTU is not padded.
        let room = if payload >= mtu { mtu } else { payload - payload % PADDING };
        // Every IPv6 link carries packets of the minimum MTU, so a "packet too big" may not name less.
        let room = if is_v6 { room.max(ipv6::MTU_MIN) } else { room };
        (longest > room && !may_be_fragmented).then_some(room)
    }
}

impl PathMtu {
    /// The path MTU that counts at this time: the smaller one of those that are known.
    fn at(self, now: Instant) -> Option<usize> {
        let learnt = self.learnt.filter(|(_, until)| now < *until).map(|(path_mtu, _)| path_mtu);
        self.configured.into_iter().chain(learnt).min()
    }
}
