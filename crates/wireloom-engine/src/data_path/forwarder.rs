//! How a data path forwards: by allowed-IPs, by a link that it owns, or by a copy of the link's neighbours.

use std::{ops::Deref, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use wireloom_proto::{DropReason, Instant, PeerId, Routes, Transport};

use crate::{
    drops::EngineDrop,
    forwarding::Decision,
    icmp::{self, Limiter, Problem},
    link::{Link, NeighbourTable},
    offload::virtio::VirtioHeader,
    packet::ethernet,
    path_mtu::room_exceeded,
    punt::Punter,
};

/// The neighbour table as its owner published it last.
pub(crate) type PublishedTable = Arc<ArcSwap<NeighbourTable>>;

/// What decides where packets go.
#[derive(Debug)]
pub(crate) enum Forwarder {
    /// The peers' allowed-IPs, and a limit on errors about packets that cannot be sent.
    AllowedIps(Limiter),
    /// The link, in the engine's own data path.
    Link(Link),
    /// The neighbours, in any other data path. It sends the frames that go to one peer and punts all others.
    Neighbours { table: PublishedTable, punter: Punter },
}

/// A forwarder with the tables of this moment, for the length of a batch.
pub(super) enum Lookup<'f> {
    AllowedIps {
        routes: Guard<Arc<Routes>>,
        limiter: &'f mut Limiter,
        /// The last peer that was found to have an endpoint: packets come in streams.
        known: Option<PeerId>,
    },
    Link {
        link: &'f mut Link,
        routes: Guard<Arc<Routes>>,
    },
    Neighbours {
        table: Guard<Arc<NeighbourTable>>,
        punter: &'f Punter,
    },
}

/// The neighbours of this moment, for the length of a batch.
pub(super) enum Neighbours<'f> {
    Own(&'f NeighbourTable),
    Published(Guard<Arc<NeighbourTable>>),
}

impl Deref for Neighbours<'_> {
    type Target = NeighbourTable;

    fn deref(&self) -> &NeighbourTable {
        match self {
            Self::Own(table) => table,
            Self::Published(table) => table,
        }
    }
}

impl Forwarder {
    pub(super) fn lookup(&mut self, transport: &Transport) -> Lookup<'_> {
        match self {
            Self::AllowedIps(limiter) => {
                Lookup::AllowedIps { routes: transport.routes(), limiter, known: None }
            }
            Self::Link(link) => Lookup::Link { link, routes: transport.routes() },
            Self::Neighbours { table, punter } => Lookup::Neighbours { table: table.load(), punter },
        }
    }

    /// The neighbours, in link mode.
    pub(super) fn neighbours(&self) -> Option<Neighbours<'_>> {
        match self {
            Self::AllowedIps(_) => None,
            Self::Link(link) => Some(Neighbours::Own(link.table())),
            Self::Neighbours { table, .. } => Some(Neighbours::Published(table.load())),
        }
    }
}

impl Lookup<'_> {
    /// The length in bytes of the Ethernet header that precedes each packet.
    pub(super) fn ethernet_len(&self) -> usize {
        match self {
            Self::AllowedIps { .. } => 0,
            Self::Link { .. } | Self::Neighbours { .. } => ethernet::HEADER_LEN,
        }
    }

    /// Decides what is done with a frame, or a bare packet; [`Link::decide`] documents the arguments. `None` when only
    /// the link's owner can decide: the frame has to be punted then.
    #[inline]
    pub(super) fn decide(
        &mut self,
        now: Instant,
        frame: &[u8],
        longest: usize,
        mtu: usize,
        answer: &mut Vec<u8>,
    ) -> Option<Decision<'_>> {
        match self {
            Self::AllowedIps { routes, limiter, known } => {
                let decision = Decision::by_allowed_ips(frame, routes);
                let (reason, problem) = match decision {
                    Decision::Peer(path) if *known != Some(path.id()) && path.endpoint().is_none() => {
                        (DropReason::NoEndpoint.into(), Problem::Unreachable)
                    }
                    Decision::Peer(path) => {
                        *known = Some(path.id());
                        match room_exceeded(path, now, frame, longest, mtu) {
                            Some(room) => (EngineDrop::TooBig.into(), Problem::TooBig(room)),
                            None => return Some(decision),
                        }
                    }
                    Decision::Drop(reason) if reason == DropReason::NoPeerForDestination.into() => {
                        (reason, Problem::Unreachable)
                    }
                    other => return Some(other),
                };
                // As the kernel's WireGuard does (`wg_xmit` in drivers/net/wireguard/device.c).
                if limiter.allows(now) {
                    icmp::report(problem, frame, None, answer);
                }
                Some(Decision::Drop(reason))
            }
            Self::Link { link, routes } => Some(link.decide(now, frame, longest, routes, mtu, answer)),
            Self::Neighbours { table, .. } => {
                table.path_of_frame(now, frame, longest, mtu).map(Decision::Peer)
            }
        }
    }

    /// Hands a frame to the link's owner.
    pub(super) fn punt(&self, header: VirtioHeader, frame: &[u8]) {
        if let Self::Neighbours { punter, .. } = self {
            punter.punt_frame(header, frame);
        }
    }

    /// The neighbour table, if this is the link's owner.
    pub(super) fn own_neighbours(&self) -> Option<Arc<NeighbourTable>> {
        match self {
            Self::Link { link, .. } => Some(Arc::clone(link.table())),
            Self::AllowedIps { .. } | Self::Neighbours { .. } => None,
        }
    }
}
