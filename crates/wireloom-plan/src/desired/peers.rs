//! The device's peers: every other node that has a key of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use serde::Serialize;

use super::View;
use crate::key::PublicKey;

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
    pub(super) fn peers(&self) -> BTreeMap<PublicKey, DesiredPeer> {
        let keys = self.cluster.nodes.values().filter_map(|node| node.public_key);
        keys.filter_map(|key| Some((key, self.peer(key)?))).collect()
    }

    /// The peer of this key, if the key is the one of a node that can encrypt with us.
    pub(crate) fn peer(&self, key: PublicKey) -> Option<DesiredPeer> {
        let name = self.index.holders(key).first().filter(|name| !self.is_own(name))?;
        let node = self.cluster.nodes.get(name)?;
        self.peer_key(node)?;
        Some(DesiredPeer {
            node: name.clone(),
            endpoint: node.endpoint,
            allowed_ips: self.owned(name, node).collect(),
            persistent_keepalive: self.settings.persistent_keepalive,
        })
    }
}
