//! What the operator of this node decided.

use serde::{Deserialize, Serialize};
use wireloom_types::{PeerLookup, SourceCheck};

/// This node's settings, as `agent.toml` gives them; paths and other matters of I/O stay in the shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// This node's name in the cluster.
    pub node: String,
    /// The WireGuard interface.
    pub interface: String,
    /// UDP port that WireGuard listens on.
    pub listen_port: u16,
    /// Bytes; absent: the underlay's MTU less 80 (WireGuard over IPv6).
    pub mtu: Option<u32>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Encrypt the hosts' own traffic too.
    pub encrypt_host_traffic: bool,
    /// Which source addresses the rules cover.
    pub scope: Scope,
    /// Priority of our policy rules.
    pub rule_priority: u32,
    /// The routing table that the rules lead to.
    pub table: u32,
    /// The mark that WireGuard's own packets carry; all its bits are ours.
    pub fwmark: u32,
    /// What happens to traffic for a node that cannot encrypt.
    pub keyless_peers: KeylessPeers,
    /// Which peer gets an outgoing packet.
    pub peer_lookup: PeerLookup,
    /// May this source come from this peer.
    pub source_check: SourceCheck,
}

impl Settings {
    /// The settings of a node whose operator decided nothing: the defaults of `agent.toml`.
    pub fn defaults(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            interface: "wg0".to_owned(),
            listen_port: 51820,
            mtu: None,
            persistent_keepalive: 0,
            encrypt_host_traffic: false,
            scope: Scope::default(),
            rule_priority: 99,
            table: 1,
            fwmark: 0xa,
            keyless_peers: KeylessPeers::default(),
            peer_lookup: PeerLookup::default(),
            source_check: SourceCheck::default(),
        }
    }
}

/// Where the scoped rules' source CIDRs come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every declared pool; without pools, as [`Scope::Node`].
    #[default]
    Pool,
    /// This node's workload CIDRs.
    Node,
}

/// What happens to traffic for a node without a usable key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeylessPeers {
    /// It leaves unencrypted, so that a fleet can enable encryption node by node.
    #[default]
    Plaintext,
    /// It is refused.
    Reject,
}
