//! How the pods of a cluster are connected: the network plugin's configuration, and VXLAN interfaces.

use std::{fmt::Write as _, net::IpAddr};

use serde_json::{Value, json};

use super::PodNetwork;
use crate::{FAMILIES, Node, Result, network::layout::pod};

/// The interface between the nodes, with the port of RFC 7348.
const VXLAN: &str = "vxlan0";
const VXLAN_PORT: u16 = 4789;

/// The bytes that VXLAN adds to a packet: outer IPv4, UDP, VXLAN and inner Ethernet headers (RFC 7348, section 5).
const VXLAN_OVERHEAD: u32 = 20 + 8 + 8 + 14;

impl PodNetwork {
    /// Whether table main leads to the other nodes' pods over the underlay.
    pub(super) fn is_routed(self) -> bool {
        self != Self::Vxlan
    }

    /// The MTU inside the pods, in bytes.
    pub(super) fn mtu(self) -> u32 {
        match self {
            Self::Bridge | Self::MasqueradingBridge => 1500,
            Self::Vxlan => 1500 - VXLAN_OVERHEAD,
        }
    }

    /// The configuration of the network plugin on a node: the reference plugins `bridge`, `host-local` and `portmap`.
    pub(super) fn plugin(self, node: &Node) -> Value {
        let ranges = node.block.map(|block| json!([{ "subnet": block }]));
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    // A pod that calls its own service leaves by the bridge port by which it comes back.
                    "hairpinMode": true,
                    "ipMasq": self == Self::MasqueradingBridge,
                    "mtu": self.mtu(),
                    "ipam": {
                        "type": "host-local",
                        "ranges": ranges,
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        })
    }

    /// The addresses that a node has itself, although they lie in its block of pods' addresses.
    pub(super) fn node_addresses(self, node: &Node) -> Vec<IpAddr> {
        match self {
            Self::Bridge | Self::MasqueradingBridge => Vec::new(),
            Self::Vxlan => pod(node.number, 0).both().to_vec(),
        }
    }

    /// Connects a node to the others, as a network plugin's daemon does.
    pub(super) fn connect(self, node: &Node, others: &[&Node]) -> Result<()> {
        match self {
            // The laboratory has added the routes.
            Self::Bridge | Self::MasqueradingBridge => Ok(()),
            Self::Vxlan => {
                node.host.space.feed("ip -batch -", &vxlan(node, others))?;
                node.host.space.feed("bridge -batch -", &forwarding(others)).map(drop)
            }
        }
    }
}

/// A VXLAN interface with the first address of the node's block. Every other node's block is behind the first address
/// of that block: which MAC address that is, and behind which node, is known beforehand.
fn vxlan(node: &Node, others: &[&Node]) -> String {
    let own = pod(node.number, 0);
    let mut batch = format!(
        "link add {VXLAN} address {} type vxlan id 1 local {} dev eth0 dstport {VXLAN_PORT} nolearning\n\
         link set {VXLAN} mtu {} up\n\
         address add {}/32 dev {VXLAN}\n\
         address add {}/128 dev {VXLAN} nodad\n",
        mac(node),
        node.host.addresses.v4,
        PodNetwork::Vxlan.mtu(),
        own.v4,
        own.v6
    );
    for other in others {
        let (first, mac) = (pod(other.number, 0), mac(other));
        for (family, block) in FAMILIES.into_iter().zip(other.block) {
            let gateway = first.of(family);
            let _ = writeln!(batch, "neigh replace {gateway} lladdr {mac} nud permanent dev {VXLAN}");
            let _ = writeln!(batch, "route replace {block} via {gateway} dev {VXLAN} onlink");
        }
    }
    batch
}

/// Where the frames for each other node's MAC address go, as lines for `bridge -batch -`.
fn forwarding(others: &[&Node]) -> String {
    let entry = |node: &&Node| {
        format!("fdb replace {} dst {} dev {VXLAN} self permanent\n", mac(node), node.host.addresses.v4)
    };
    others.iter().map(entry).collect()
}

fn mac(node: &Node) -> String {
    format!("02:00:00:00:02:{:02x}", node.number)
}
