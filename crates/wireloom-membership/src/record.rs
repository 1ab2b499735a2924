//! A node's record as the stores have it: a JSON object with the fields of a node in `mesh.toml`.
//!
//! ```json
//! {"public_key": "…", "endpoints": ["192.0.2.1:51820"], "addresses": ["192.0.2.1"], "workloads": ["10.1.1.0/24"]}
//! ```
//!
//! A record comes from another machine, which may be broken or hostile: every value is checked, and sizes have bounds.
//! Fields that this version does not know are ignored: the record of a newer agent must not drop its node.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;
use serde::Deserialize;
use wireloom_plan::{cluster::Node, own_record::Endpoint};

use crate::values;

/// The longest record, in bytes. All agents read all records, so one must not be huge; one with every list full and
/// every value at its longest has 52,000.
pub(crate) const RECORD_MAX: usize = 64 * 1024;

/// The most workload CIDRs of a node. Calico gives blocks of 64 addresses and a node has 110 pods (kubelet's default),
/// so there are a few blocks; even if every pod of a large node has a borrowed address, they fit.
const WORKLOADS_MAX: usize = 1024;

/// The most addresses in each other list. A node has a few interfaces with a few addresses each.
const ADDRESSES_MAX: usize = 128;

/// The most endpoints: an address of each family on a few interfaces. Each costs a silent peer 15 s of trying.
const ENDPOINTS_MAX: usize = 8;

/// The longest value, in bytes: a host name of 253 characters (RFC 1035, section 2.3.4), with a port.
const VALUE_MAX: usize = 253 + ":65535".len();

/// The longest name of a node, in bytes: a host name, and the name of a Kubernetes object, has at most 253.
pub(crate) const NAME_MAX: usize = 253;

/// The shortest prefixes of a workload CIDR: 10.0.0.0/8 is the largest private range (RFC 1918, section 3), and a /32
/// is what a whole provider gets of IPv6. What is wider would draw a mesh's whole traffic to one node.
const SHORTEST_PREFIXES: (u8, u8) = (8, 32);

/// The shortest prefixes of a pool: 10.0.0.0/8 again, and fc00::/7, all unique local addresses of IPv6 (RFC 4193,
/// section 3.1). No node gets anything by a pool, so that it may be wider than what a node claims.
const SHORTEST_POOL_PREFIXES: (u8, u8) = (8, 7);

/// How the fields are spelled where a record is written. Both are read everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// `public_key`, as in `mesh.toml`: etcd.
    #[default]
    Snake,
    /// `publicKey`, as Kubernetes' objects have it.
    Camel,
}

#[derive(Deserialize)]
struct Text {
    #[serde(alias = "publicKey")]
    public_key: Option<String>,
    endpoint: Option<String>,
    endpoints: Option<Vec<String>>,
    addresses: Option<Vec<String>>,
    workloads: Option<Vec<String>>,
    #[serde(alias = "linkAddresses")]
    link_addresses: Option<Vec<String>>,
    #[serde(alias = "tunnelAddresses")]
    tunnel_addresses: Option<Vec<String>>,
    encrypt: Option<bool>,
}

/// A pool's record: `{"cidr": "10.1.0.0/16"}`.
#[derive(Deserialize)]
struct PoolText {
    cidr: String,
}

/// The node that a record describes.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(crate) fn read(text: &str) -> Result<Node, String> {
    if text.len() > RECORD_MAX {
        return Err(too_long());
    }
    let written: Text = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    let key = written.public_key.as_deref().map(|text| value("public_key", text, values::key));
    let mut node = Node {
        public_key: key.transpose()?,
        addresses: list("addresses", written.addresses, ADDRESSES_MAX, address)?,
        workloads: list("workloads", written.workloads, WORKLOADS_MAX, workload)?,
        link_addresses: list("link_addresses", written.link_addresses, ADDRESSES_MAX, values::link_address)?,
        tunnel_addresses: list("tunnel_addresses", written.tunnel_addresses, ADDRESSES_MAX, address)?,
        encrypt: written.encrypt.unwrap_or(true),
        ..Node::default()
    };
    let endpoints: Vec<String> =
        written.endpoint.into_iter().chain(written.endpoints.into_iter().flatten()).collect();
    read_endpoints(&endpoints, &mut node)?;
    Ok(node)
}

/// The pool that a record describes.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(crate) fn read_pool(name: &str, text: &str) -> Result<IpNet, String> {
    if name.is_empty() {
        return Err("a pool has a name; remove the entry, and write the pool under one".to_owned());
    }
    if text.len() > RECORD_MAX {
        return Err(too_long());
    }
    let written: PoolText = serde_json::from_str(text).map_err(|error| not_json(&error))?;
    value("cidr", &written.cidr, |text| workloads("a pool", text, SHORTEST_POOL_PREFIXES))
}

/// The record of a node. What [`read`] makes of it is the node again, but for the address that the name of an endpoint
/// led to: each agent resolves it itself.
pub(crate) fn write(node: &Node, spelling: Spelling) -> String {
    let [public_key, link_addresses, tunnel_addresses] = match spelling {
        Spelling::Snake => ["public_key", "link_addresses", "tunnel_addresses"],
        Spelling::Camel => ["publicKey", "linkAddresses", "tunnelAddresses"],
    };
    let first = match (&node.endpoint_name, node.endpoint) {
        (Some(name), _) => Some(name.to_string()),
        (None, address) => address.map(|address| address.to_string()),
    };
    let endpoints: Vec<String> =
        first.into_iter().chain(node.other_endpoints.iter().map(SocketAddr::to_string)).collect();
    let mut fields = serde_json::Map::new();
    if let Some(key) = node.public_key {
        fields.insert(public_key.into(), key.to_string().into());
    }
    fields.insert("endpoints".into(), endpoints.into());
    fields.insert("addresses".into(), texts(&node.addresses));
    fields.insert("workloads".into(), texts(&node.workloads));
    fields.insert(link_addresses.into(), texts(&node.link_addresses));
    fields.insert(tunnel_addresses.into(), texts(&node.tunnel_addresses));
    fields.insert("encrypt".into(), node.encrypt.into());
    // An empty list says nothing, and every byte goes to every agent.
    fields.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    serde_json::Value::from(fields).to_string()
}

/// The node without what [`read`] refuses of it: values that are none, and those beyond the bounds.
pub(crate) fn readable(node: &Node) -> Node {
    let is_endpoint = |it: &SocketAddr| endpoint(&it.to_string()).is_ok();
    let others = node.other_endpoints.iter().filter(|it| is_endpoint(it));
    Node {
        public_key: node.public_key,
        endpoint: node.endpoint.filter(is_endpoint),
        other_endpoints: others.take(ENDPOINTS_MAX - 1).copied().collect(),
        endpoint_name: node.endpoint_name.clone(),
        addresses: accepted(&node.addresses, ADDRESSES_MAX, address),
        workloads: accepted(&node.workloads, WORKLOADS_MAX, workload),
        link_addresses: accepted(&node.link_addresses, ADDRESSES_MAX, values::link_address),
        tunnel_addresses: accepted(&node.tunnel_addresses, ADDRESSES_MAX, address),
        encrypt: node.encrypt,
    }
}

/// The name of a record in messages: cut off after [`NAME_MAX`] characters, since a bad one may be of any length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn of(name: &str) -> Self {
        Self(name.chars().take(NAME_MAX).collect())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Checks the name of a record: it is printed, and appears in the firewall's and other programs' names.
///
/// # Errors
/// What is wrong with it, in a sentence.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(allowed) && !matches!(name, "." | "..") {
        return Ok(());
    }
    Err(format!(
        "the name of a node has 1 to {NAME_MAX} letters, digits, hyphens, dots and underscores, and is neither . nor \
         ..; remove the record and give the node another name"
    ))
}

/// How long it is, nobody knows: stores cut off what is longer.
fn too_long() -> String {
    format!("the record has more than the {RECORD_MAX} bytes that a record has at most; write a shorter one")
}

fn not_json(error: &serde_json::Error) -> String {
    let mut what = error.to_string();
    what.retain(|character| !character.is_control());
    // serde_json quotes what it did not expect, whatever its length.
    let end = what.char_indices().nth(VALUE_MAX).map_or(what.len(), |(place, _)| place);
    what.truncate(end);
    format!("not a record: {what}; write a JSON object with the fields of a node in mesh.toml")
}

fn texts<T: ToString>(values: &BTreeSet<T>) -> serde_json::Value {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().into()
}

fn read_endpoints(written: &[String], node: &mut Node) -> Result<(), String> {
    count("endpoints", written.len(), ENDPOINTS_MAX)?;
    for (place, text) in written.iter().enumerate() {
        match value("endpoints", text, endpoint)? {
            Endpoint::Name(name) if place == 0 => node.endpoint_name = Some(name),
            Endpoint::Name(_) => {
                return Err(format!(
                    "endpoints: {text:?}: only the first endpoint may be a name; write its address"
                ));
            }
            Endpoint::Address(address) if place == 0 => node.endpoint = Some(address),
            Endpoint::Address(address)
                if node.endpoint == Some(address) || node.other_endpoints.contains(&address) => {}
            Endpoint::Address(address) => node.other_endpoints.push(address),
        }
    }
    Ok(())
}

fn list<T: Ord>(
    field: &str,
    written: Option<Vec<String>>,
    max: usize,
    parse: fn(&str) -> Result<T, String>,
) -> Result<BTreeSet<T>, String> {
    let written = written.unwrap_or_default();
    count(field, written.len(), max)?;
    written.iter().map(|text| value(field, text, parse)).collect()
}

fn accepted<T: Ord + Copy + ToString>(
    values: &BTreeSet<T>,
    max: usize,
    parse: fn(&str) -> Result<T, String>,
) -> BTreeSet<T> {
    values.iter().filter(|value| parse(&value.to_string()).is_ok()).take(max).copied().collect()
}

fn count(field: &str, len: usize, max: usize) -> Result<(), String> {
    if len <= max { Ok(()) } else { Err(format!("{field}: {len} entries; a record has at most {max}")) }
}

fn value<T>(field: &str, text: &str, parse: fn(&str) -> Result<T, String>) -> Result<T, String> {
    if text.len() > VALUE_MAX {
        return Err(format!("{field}: a value of {} bytes; the longest has {VALUE_MAX}", text.len()));
    }
    parse(text).map_err(|what| format!("{field}: {what}"))
}

/// An endpoint to which datagrams may be sent because somebody else said so: not one of our own programs.
fn endpoint(text: &str) -> Result<Endpoint, String> {
    let endpoint = values::endpoint(text)?;
    match &endpoint {
        Endpoint::Address(address) if is_nobodys(address.ip()) => {
            Err(format!("{text:?} is not the endpoint of another machine; write an address of the node"))
        }
        _ => Ok(endpoint),
    }
}

/// Whether an address leads to no other machine. IPv4 addresses in IPv6 count as what they are.
fn is_nobodys(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_multicast() || address == Ipv4Addr::BROADCAST
}

fn address(text: &str) -> Result<IpAddr, String> {
    let address = values::address(text)?;
    if is_nobodys(address) {
        return Err(format!("{text:?} is every machine's own address; remove it"));
    }
    Ok(address)
}

fn workload(text: &str) -> Result<IpNet, String> {
    workloads("workloads", text, SHORTEST_PREFIXES)
}

/// A CIDR of addresses that workloads can have, whose prefix is no shorter than this with IPv4, or that with IPv6.
fn workloads(kind: &str, text: &str, (with_ipv4, with_ipv6): (u8, u8)) -> Result<IpNet, String> {
    let cidr = values::cidr(text)?;
    let shortest = if cidr.addr().is_ipv4() { with_ipv4 } else { with_ipv6 };
    if cidr.prefix_len() < shortest {
        return Err(format!("{text:?} is too wide for {kind}; the widest is a /{shortest}"));
    }
    let network = cidr.network();
    let local = match network {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_unspecified(),
    };
    if local || network.is_loopback() || network.is_multicast() {
        return Err(format!("{text:?} holds no addresses that workloads have; remove it"));
    }
    Ok(cidr)
}

#[cfg(test)]
mod tests;
