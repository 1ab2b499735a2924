//! The device's peers: every other node that has a key of its own.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::PublicKey;

use super::{View, member::Member};

/// A peer as it shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DesiredPeer {
    /// Its name in the cluster.
    pub node: String,
    /// As declared; absent: it speaks first.
    pub endpoint: Option<SocketAddr>,
    /// What it may send from, and what is sent to it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
}

impl View<'_> {
    /// The peer of this key, if the key is the one of a node that can encrypt with us.
    pub(crate) fn peer(&self, key: PublicKey) -> Option<DesiredPeer> {
        let member = self.member(self.index.holders(key).first()?)?;
        member.peer?;
        Some(self.peer_with(&member, self.owned(&member).map(|claim| claim.prefix).collect()))
    }

    /// The peer that this node is, with what it gets.
    pub(super) fn peer_with(&self, member: &Member<'_>, allowed_ips: BTreeSet<IpNet>) -> DesiredPeer {
        DesiredPeer {
            node: member.name.to_owned(),
            endpoint: member.node.endpoint,
            allowed_ips,
            persistent_keepalive: self.settings.persistent_keepalive,
        }
    }
}
