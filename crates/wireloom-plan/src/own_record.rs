//! This node's own record, which its agent publishes where the membership source can be written.
//!
//! ```text
//!  agent.toml ──▶ Declared ─┐
//!  source ──────▶ Found ────┼──▶ compose ──▶ Node ──▶ the source
//!  kernel ──▶ HostAddress ──┘
//! ```
//!
//! What the operator declares counts, and the rest is found out: the source knows this node's workloads, and often by
//! which addresses other nodes reach it; the kernel has all addresses of the machine.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use wireloom_types::PublicKey;

use crate::{cluster::Node, endpoint_name::EndpointName, routing::Family};

/// Interfaces whose addresses are those of services, on every node the same: kube-proxy's in mode `ipvs`
/// (pkg/proxy/ipvs/proxier.go, `defaultDummyDevice`) and NodeLocal DNSCache's (cmd/node-cache/main.go).
const OF_SERVICES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// What the operator says of this node himself. `None`: it is found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// The prefixes of its workloads; no host bits set.
    pub workloads: Option<BTreeSet<IpNet>>,
    /// Where its WireGuard can be reached.
    pub endpoint: Option<Endpoint>,
    /// The host's own addresses.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Those of its workload addresses that its WireGuard interface has.
    pub tunnel_addresses: Option<BTreeSet<IpAddr>>,
    /// Its addresses on the WireGuard interface in link mode, which nobody can find out.
    pub link_addresses: BTreeSet<IpAddr>,
}

/// Where a WireGuard can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Its address.
    Address(SocketAddr),
    /// A name that the peers look up.
    Name(EndpointName),
}

/// What was found out about this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The prefixes of its workloads; `None` as long as nobody has given it any.
    pub workloads: Option<BTreeSet<IpNet>>,
    /// The addresses by which other nodes reach it, if the source knows them; otherwise empty.
    pub reached_at: BTreeSet<IpAddr>,
    /// Those of its workload addresses that are meant for its WireGuard interface.
    pub tunnel_addresses: BTreeSet<IpAddr>,
    /// The addresses of the machine, but for those of the WireGuard interface.
    pub host: BTreeSet<HostAddress>,
    /// The pools of the mesh.
    pub pools: BTreeSet<IpNet>,
}

/// An address of the machine that stays: it is no loopback, link-local or temporary one, and is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// What the interface that has it connects.
    pub place: Place,
    /// The address with the length of its network.
    pub address: IpNet,
    /// The name of that interface.
    pub interface: String,
}

/// What an interface connects, the best to be reached by first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A default route leads out of it.
    DefaultRoute,
    /// It is a network card, or what containers and hosts have instead.
    Network,
    /// It connects what is on this machine, or is an overlay: a bridge, a tunnel.
    Inside,
}

/// Why there is no record yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody has given this node workloads yet")]
pub struct NoWorkloads;

/// The record of this node. Its WireGuard listens on this port, and has this key; `encrypt` is `false` when the node is
/// about to leave the mesh.
///
/// # Errors
/// [`NoWorkloads`]: a node that published none would lose those that it has.
pub fn compose(
    declared: &Declared,
    found: &Found,
    public_key: PublicKey,
    listen_port: u16,
    encrypt: bool,
) -> Result<Node, NoWorkloads> {
    let workloads = declared.workloads.as_ref().or(found.workloads.as_ref()).ok_or(NoWorkloads)?.clone();
    let is_workload = |address: IpAddr| workloads.iter().any(|workload| workload.contains(&address));
    let tunnel_addresses = match &declared.tunnel_addresses {
        Some(declared) => declared.clone(),
        None => found.tunnel_addresses.iter().copied().filter(|address| is_workload(*address)).collect(),
    };
    let host = found.host.iter().filter(|it| !OF_SERVICES.contains(&it.interface.as_str()));
    let reached_at: Vec<IpAddr> = match found.reached_at.is_empty() {
        false => found.reached_at.iter().copied().filter(|address| !is_workload(*address)).collect(),
        true => best(host.clone().filter(|it| !is_workload(it.address.addr()))),
    };
    let addresses = match &declared.addresses {
        Some(declared) => declared.clone(),
        None => {
            let carriers: BTreeSet<&str> = host
                .clone()
                .filter(|it| it.place != Place::Inside || reached_at.contains(&it.address.addr()))
                .map(|it| it.interface.as_str())
                .collect();
            // A bridge that only this machine knows, such as Docker's, has the same address everywhere.
            let counts = |it: &&HostAddress| {
                let address = it.address.addr();
                carriers.contains(it.interface.as_str())
                    || is_workload(address)
                    || found.pools.iter().any(|pool| pool.contains(&address))
            };
            let of_host = host.clone().filter(counts).map(|it| it.address.addr());
            let addresses = of_host.chain(found.reached_at.iter().copied());
            let on_interface = |address: &IpAddr| {
                tunnel_addresses.contains(address) || declared.link_addresses.contains(address)
            };
            addresses.filter(|address| !on_interface(address)).collect()
        }
    };
    let (endpoint, endpoint_name, other_endpoints) = match &declared.endpoint {
        Some(Endpoint::Address(address)) => (Some(*address), None, Vec::new()),
        Some(Endpoint::Name(name)) => (None, Some(name.clone()), Vec::new()),
        None => {
            let mut endpoints = one_of_each_family(&reached_at).map(|it| SocketAddr::new(it, listen_port));
            (endpoints.next(), None, endpoints.collect())
        }
    };
    Ok(Node {
        public_key: Some(public_key),
        endpoint,
        other_endpoints,
        endpoint_name,
        addresses,
        workloads,
        link_addresses: declared.link_addresses.clone(),
        tunnel_addresses,
        encrypt,
    })
}

/// The best address of each family to be reached by. Those with the length of a single address come last, because they
/// often move from machine to machine.
fn best<'a>(host: impl Iterator<Item = &'a HostAddress> + Clone) -> Vec<IpAddr> {
    let reachable = host.filter(|it| it.place != Place::Inside);
    let of = |family| {
        let of_family = reachable.clone().filter(move |it| Family::of(it.address.addr()) == family);
        let is_single = |it: &HostAddress| it.address.prefix_len() == it.address.max_prefix_len();
        of_family.min_by_key(|it| (it.place, is_single(it), it.address.addr()))
    };
    [Family::V4, Family::V6].into_iter().filter_map(of).map(|it| it.address.addr()).collect()
}

/// IPv4 first: of the two, it is the one that more ways carry.
fn one_of_each_family(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| addresses.iter().copied().find(|address| Family::of(*address) == family))
}
