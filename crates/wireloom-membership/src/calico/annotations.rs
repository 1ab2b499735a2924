//! What Calico writes into a Node's annotations (libcalico-go/lib/backend/k8s/resources/node.go).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde::Deserialize;
use wireloom_types::PublicKey;

/// The key of Felix's IPv4 WireGuard device. Calico's IPAM gives a node with such a key a tunnel address.
pub(crate) const PUBLIC_KEY: &str = "projectcalico.org/WireguardPublicKey";

/// The addresses that `calico-node` found or made on the host, but for WireGuard's. The first two have a prefix length.
const HOST_ADDRESSES: [&str; 5] = [
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
];

/// The addresses that the IPAM gave to the host for its WireGuard interfaces: `wireguard-tunnel-addr-…` and
/// `wireguard-v6-tunnel-addr-…`.
const TUNNEL_ADDRESSES: [&str; 2] =
    ["projectcalico.org/IPv4WireguardInterfaceAddr", "projectcalico.org/IPv6WireguardInterfaceAddr"];

/// What a Node's annotations say. What does not parse is as if it were absent, as it is for Calico.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Annotations {
    /// The key of Felix's IPv4 device, or the one that we published as such.
    pub(crate) public_key: Option<PublicKey>,
    /// The host's IPv4 address, at which other nodes' Felix looks for WireGuard.
    pub(crate) ipv4: Option<IpAddr>,
    /// All addresses that the host has by Calico's knowledge, but for tunnel addresses of WireGuard.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The addresses that are meant for WireGuard interfaces.
    pub(crate) tunnel_addresses: BTreeSet<IpAddr>,
}

impl Annotations {
    /// Those in the metadata of a Node, as JSON.
    pub(crate) fn of(node: &str) -> Self {
        #[derive(Default, Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Default, Deserialize)]
        struct Metadata {
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        Self::from(&serde_json::from_str::<Object>(node).unwrap_or_default().metadata.annotations)
    }
}

impl From<&BTreeMap<String, String>> for Annotations {
    fn from(annotations: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| address(annotations.get(name)?);
        Self {
            public_key: annotations.get(PUBLIC_KEY).and_then(|key| key.parse().ok()),
            ipv4: get(HOST_ADDRESSES[0]),
            addresses: HOST_ADDRESSES.into_iter().filter_map(get).collect(),
            tunnel_addresses: TUNNEL_ADDRESSES.into_iter().filter_map(get).collect(),
        }
    }
}

/// An address of a host, with or without a prefix length.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse()).ok()?;
    Some(address)
        .filter(|address| !address.is_unspecified() && !address.is_multicast() && !address.is_loopback())
}
