//! How a data path forwards: by allowed-IPs, or by the link's neighbours.

use std::sync::Arc;

use arc_swap::Guard;
use wireloom_proto::{DropReason, Instant, PeerId, Routes, Transport};

use crate::{
    answer::Answer,
    drops::EngineDrop,
    forwarding::Decision,
    icmp::Problem,
    link::{Link, NeighbourTable},
    packet::ethernet,
    path_mtu::room_exceeded,
};

/// What decides where packets go.
#[derive(Clone, Debug)]
pub(crate) enum Forwarder {
    /// The peers' allowed-IPs.
    AllowedIps,
    /// The neighbours on the link.
    Link(Arc<Link>),
}

/// A forwarder with the tables of this moment, for the length of a batch.
pub(super) enum Lookup<'f> {
    AllowedIps {
        routes: Guard<Arc<Routes>>,
        /// The last peer that was found to have an endpoint: packets come in streams.
        known: Option<PeerId>,
    },
    Link {
        link: &'f Link,
        table: Guard<Arc<NeighbourTable>>,
    },
}

impl Forwarder {
    pub(super) fn lookup(&self, transport: &Transport) -> Lookup<'_> {
        match self {
            Self::AllowedIps => Lookup::AllowedIps { routes: transport.routes(), known: None },
            Self::Link(link) => Lookup::Link { link, table: link.table() },
        }
    }

    /// The neighbours, in link mode.
    pub(super) fn neighbours(&self) -> Option<Guard<Arc<NeighbourTable>>> {
        match self {
            Self::AllowedIps => None,
            Self::Link(link) => Some(link.table()),
        }
    }
}

impl Lookup<'_> {
    /// The length in bytes of the Ethernet header that precedes each packet.
    pub(super) fn ethernet_len(&self) -> usize {
        match self {
            Self::AllowedIps { .. } => 0,
            Self::Link { .. } => ethernet::HEADER_LEN,
        }
    }

    /// Decides what is done with a frame, or a bare packet; [`Link::decide`] documents the arguments.
    #[inline]
    pub(super) fn decide(
        &mut self,
        now: Instant,
        frame: &[u8],
        longest: usize,
        mtu: usize,
        answer: &mut Answer,
    ) -> Decision<'_> {
        match self {
            Self::AllowedIps { routes, known } => {
                let decision = Decision::by_allowed_ips(frame, routes);
                let (reason, problem) = match decision {
                    Decision::Peer(path) if *known != Some(path.id()) && path.endpoint().is_none() => {
                        (DropReason::NoEndpoint.into(), Problem::Unreachable)
                    }
                    Decision::Peer(path) => {
                        *known = Some(path.id());
                        match room_exceeded(path, now, frame, longest, mtu) {
                            Some(room) => (EngineDrop::TooBig.into(), Problem::TooBig(room)),
                            None => return decision,
                        }
                    }
                    Decision::Drop(reason) if reason == DropReason::NoPeerForDestination.into() => {
                        (reason, Problem::Unreachable)
                    }
                    other => return other,
                };
                // As the kernel's WireGuard does (`wg_xmit` in drivers/net/wireguard/device.c).
                answer.report(now, problem, frame, None);
                Decision::Drop(reason)
            }
            Self::Link { link, table } => link.decide(table, now, frame, longest, mtu, answer),
        }
    }
}
