//! The device's peers: every other node with a key that nobody else claims.

use std::{collections::BTreeSet, net::SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{PresharedKeyHash, PublicKey};

use super::{View, member::Member};

/// A desired peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DesiredPeer {
    /// The name of its node in the cluster.
    pub node: String,
    /// As declared; without one, only the peer can start a session.
    pub endpoint: Option<SocketAddr>,
    /// The prefixes that are routed to it and that it may send from.
    pub allowed_ips: BTreeSet<IpNet>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// The hash of the key that is mixed into its handshakes; absent: none.
    pub preshared_key: Option<PresharedKeyHash>,
}

/// Seconds. Until a peer refuses our plaintext, 15 s after its proof of us, five of these tell it that we are proven.
const FRESH_KEEPALIVE: u16 = 3;

impl View<'_> {
    /// The peer with this key, if it is the key of a node that can encrypt with us.
    pub(crate) fn peer(&self, key: PublicKey) -> Option<DesiredPeer> {
        let member = self.member(self.rightful_holder(key)?)?;
        member.peer?;
        Some(self.peer_with(&member, self.owned(&member).map(|claim| claim.prefix).collect()))
    }

    /// The peer that this node is.
    pub(super) fn peer_with(&self, member: &Member<'_>, allowed_ips: BTreeSet<IpNet>) -> DesiredPeer {
        DesiredPeer {
            node: member.name.to_owned(),
            endpoint: member.node.endpoint,
            allowed_ips,
            preshared_key: self.host.preshared_key,
            persistent_keepalive: match self.settings.persistent_keepalive {
                configured if !member.standing.is_some_and(|standing| standing.fresh) => configured,
                0 => FRESH_KEEPALIVE,
                configured => configured.min(FRESH_KEEPALIVE),
            },
        }
    }
}
