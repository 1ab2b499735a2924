//! Admission: which packets from peers reach the network stack, and with which Ethernet header.

use std::net::IpAddr;

use wireloom_proto::{DropReason, PeerId, PeerPath, Routes, inner};

use crate::{
    drops::Reason,
    link::NeighbourTable,
    packet::{
        ecn::{self, Ecn},
        ethernet::HeaderBytes,
    },
};

/// A packet that the network stack gets.
pub(super) struct Admitted<'m> {
    /// Its Ethernet header, in link mode.
    pub(super) ethernet: Option<HeaderBytes>,
    pub(super) ip: &'m [u8],
}

/// The tables that decide about the packets of one batch.
pub(super) struct Admission<'a> {
    routes: &'a Routes,
    neighbours: Option<&'a NeighbourTable>,
    check_sources: bool,
    /// The last source address that was permitted, and to whom: packets come in streams.
    permitted: Option<(PeerId, IpAddr)>,
}

impl<'a> Admission<'a> {
    /// `neighbours` is given in link mode. With `check_sources`, the peers' allowed-IPs decide which source addresses
    /// they may use.
    pub(super) fn new(
        routes: &'a Routes,
        neighbours: Option<&'a NeighbourTable>,
        check_sources: bool,
    ) -> Self {
        Self { routes, neighbours, check_sources, permitted: None }
    }

    /// Checks the payload of a message from a peer, whose datagram arrived with this congestion notification, and
    /// passes that on to the packet. `None` when it is a keepalive, which has nothing for the stack.
    ///
    /// # Errors
    /// Why the packet is dropped.
    pub(super) fn admit<'m>(
        &mut self,
        path: &PeerPath,
        payload: &'m mut [u8],
        ecn: Ecn,
    ) -> Result<Option<Admitted<'m>>, Reason> {
        if payload.is_empty() {
            return Ok(None);
        }
        let packet = inner::Packet::parse(payload)?;
        if self.check_sources && !self.permits(path, packet.source) {
            return Err(DropReason::SourceNotAllowed.into());
        }
        ecn::leave_tunnel(ecn, payload)?;
        let ip = &payload[..packet.len];
        let ethernet = match self.neighbours {
            Some(table) => Some(table.inbound_header(path.id(), packet.destination, ip)?),
            None => None,
        };
        Ok(Some(Admitted { ethernet, ip }))
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
