//! Forwarding: what is done with a packet that the network stack sent through the interface.

use std::sync::Arc;

use wireloom_proto::{DropReason, PeerPath, Routes, Signal, inner};

use crate::drops::Reason;

/// What is done with a packet.
#[derive(Debug)]
pub enum Decision<'a> {
    /// It is sent to one peer.
    Peer(&'a Arc<PeerPath>),
    /// It is sent to every peer.
    AllPeers,
    /// It was for this end of the link, and has been dealt with.
    Local,
    /// It is dropped, because its peer is unreachable. The device must be told, if it does not know yet.
    Unreachable(Option<Signal>),
    /// It is dropped.
    Drop(Reason),
}

impl<'a> Decision<'a> {
    /// The decision for a packet by its destination address: the peer whose allowed-IPs cover it with the longest
    /// prefix.
    #[must_use]
    pub fn by_allowed_ips(packet: &[u8], routes: &'a Routes) -> Self {
        match inner::Packet::parse(packet) {
            Ok(packet) => match routes.lookup(packet.destination) {
                Some(path) => Self::Peer(path),
                None => Self::Drop(DropReason::NoPeerForDestination.into()),
            },
            Err(reason) => Self::Drop(reason.into()),
        }
    }
}
