//! The settings of this node.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wireloom_types::{PeerLookup, SourceCheck};

/// The settings of this node, as `agent.toml` gives them. Paths and other matters of I/O stay in the shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// This node's name in the cluster.
    pub node: String,
    /// The name of the WireGuard interface.
    pub interface: String,
    /// UDP port that WireGuard listens on.
    pub listen_port: u16,
    /// Bytes. Absent means the MTU of the widest way to a peer less [`HEADROOM`](crate::desired::HEADROOM).
    pub mtu: Option<u32>,
    /// Seconds; 0 is off.
    pub persistent_keepalive: u16,
    /// Whether the hosts' own traffic is encrypted too (host mode).
    pub encrypt_host_traffic: bool,
    /// In host mode: what is still direct because the fleet is on its way into host mode, or out of it.
    pub host_transition: Option<HostTransition>,
    /// In host mode, packets from and to these addresses are direct; no host bits set. Those of workloads never are.
    pub encrypt_host_exempt: BTreeSet<IpNet>,
    /// Which source addresses the rules cover, unless in host mode.
    pub scope: Scope,
    /// Priority of our policy rules.
    pub rule_priority: u32,
    /// The routing table that the rules lead to.
    pub table: u32,
    /// The mark on WireGuard's own packets; all its bits are ours.
    pub fwmark: u32,
    /// What happens to traffic for the workloads of a node that has not proved that it can encrypt.
    pub unproven_peers: UnprovenPeers,
    /// Whether the firewall refuses in plaintext what routing should encrypt.
    pub guard: bool,
    /// What decides which peer gets an outgoing packet.
    pub peer_lookup: PeerLookup,
    /// Who checks that a peer may send from a source address.
    pub source_check: SourceCheck,
}

impl Settings {
    /// The defaults of `agent.toml`.
    pub fn defaults(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            interface: "wg0".to_owned(),
            listen_port: 51820,
            mtu: None,
            persistent_keepalive: 0,
            encrypt_host_traffic: false,
            host_transition: None,
            encrypt_host_exempt: BTreeSet::new(),
            scope: Scope::default(),
            rule_priority: 99,
            table: 1,
            fwmark: 0xa,
            unproven_peers: UnprovenPeers::default(),
            guard: true,
            peer_lookup: PeerLookup::default(),
            source_check: SourceCheck::default(),
        }
    }
}

/// Whether a table can be ours. The kernel keeps `RT_TABLE_UNSPEC`, `_DEFAULT`, `_MAIN` and `_LOCAL`
/// (include/uapi/linux/rtnetlink.h) for itself.
pub fn is_table(number: u32) -> bool {
    !matches!(number, 0 | 253..=255)
}

/// Whether an interface can have this name: `IFNAMSIZ` is 16 with the closing zero, and `dev_valid_name` of
/// net/core/dev.c has the characters. `%` makes a pattern.
pub fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control())
}

/// The sources that scoped rules match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Every declared pool; without pools, the same as [`Scope::Node`].
    #[default]
    Pool,
    /// This node's workload CIDRs.
    Node,
}

/// A step of a fleet between scoped mode and host mode. All nodes take one before any takes the next, so that a node
/// always takes what the others send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostTransition {
    /// What has a node's address at one end is sent directly, and taken either way.
    Accept,
    /// It is sent encrypted, and taken either way.
    Prefer,
}

/// What happens to traffic for workloads of a node of which we have no proof that it encrypts with us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnprovenPeers {
    /// It leaves in plaintext, so that a fleet can enable encryption node by node.
    #[default]
    Plaintext,
    /// It is refused unless it is encrypted.
    Reject,
}
