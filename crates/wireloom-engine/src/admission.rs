//! Which of the packets that peers send reach the network stack, and what is put before them.

use std::net::IpAddr;

use wireloom_proto::{DropReason, PeerId, PeerPath, Routes, inner};

use crate::{
    drops::{Drops, Loss},
    link::NeighbourTable,
    offload::LinkHeader,
};

/// A packet from a peer for the network stack.
pub(crate) struct Arrival<'m> {
    /// Its header on the link, if there is one.
    pub(crate) link: Option<LinkHeader>,
    pub(crate) packet: &'m [u8],
}

/// What decides, for the packets of one batch.
pub(crate) struct Admission<'a> {
    routes: &'a Routes,
    neighbours: Option<&'a NeighbourTable>,
    check_sources: bool,
    /// Who was last found to own which address: packets come in streams.
    permitted: Option<(PeerId, IpAddr)>,
}

impl<'a> Admission<'a> {
    /// `neighbours`: when the peers are that, on a link. `check_sources`: by the peers' allowed IPs.
    pub(crate) fn new(
        routes: &'a Routes,
        neighbours: Option<&'a NeighbourTable>,
        check_sources: bool,
    ) -> Self {
        Self { routes, neighbours, check_sources, permitted: None }
    }

    /// The packet that a peer has sent, when it may; `None` when there is nothing for the network stack.
    pub(crate) fn admit<'m>(
        &mut self,
        path: &PeerPath,
        payload: &'m [u8],
    ) -> Result<Option<Arrival<'m>>, Refusal> {
        if payload.is_empty() {
            return Ok(None);
        }
        let packet = inner::Packet::parse(payload).map_err(Refusal::Dropped)?;
        if self.check_sources && !self.permits(path, packet.source) {
            return Err(Refusal::Dropped(DropReason::SourceNotAllowed));
        }
        let bytes = &payload[..packet.len];
        let arrival = |table: &NeighbourTable| table.arrival(path.id(), packet.destination, bytes);
        let link = self.neighbours.map(arrival).transpose();
        link.map(|link| Some(Arrival { link, packet: bytes })).map_err(Refusal::Lost)
    }

    fn permits(&mut self, path: &PeerPath, source: IpAddr) -> bool {
        let claim = Some((path.id(), source));
        if self.permitted == claim {
            return true;
        }
        let permitted = self.routes.permits(path, source);
        if permitted {
            self.permitted = claim;
        }
        permitted
    }
}

/// Why a packet from a peer goes no further.
pub(crate) enum Refusal {
    Dropped(DropReason),
    Lost(Loss),
}

impl Refusal {
    pub(crate) fn count(self, drops: &Drops) {
        match self {
            Self::Dropped(reason) => drops.count(reason),
            Self::Lost(loss) => drops.count_loss(loss, 1),
        }
    }
}
