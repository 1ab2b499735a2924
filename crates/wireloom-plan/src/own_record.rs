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
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use wireloom_types::PublicKey;

use crate::{cluster::Node, endpoint_name::EndpointName, routing::Family};

/// Interfaces whose addresses are those of services, on every node the same: kube-proxy's in mode `ipvs`
/// (pkg/proxy/ipvs/proxier.go, `defaultDummyDevice`) and NodeLocal DNSCache's (cmd/node-cache/main.go).
const OF_SERVICES: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

/// How long an address that is gone stays in the record: an interface that is set up anew loses its own for a moment,
/// and every change of a record goes to every agent.
pub const LINGER: Duration = Duration::from_secs(30);

/// The most workload prefixes that readers take from one record.
const WORKLOADS_MAX: usize = 1024;

/// The most addresses that readers take from one record.
const ADDRESSES_MAX: usize = 128;

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
    /// What its workloads have out of other nodes' blocks: prefixes of one address each.
    pub borrowed: BTreeSet<IpNet>,
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

/// The addresses of the machine, and those that it had a moment ago ([`LINGER`]). Starts empty.
#[derive(Debug, Clone, Default)]
pub struct Steady {
    /// When each was there last, on a clock that nobody sets.
    seen: BTreeMap<HostAddress, Duration>,
}

impl Steady {
    /// Takes the addresses of the machine, and returns those that count.
    pub fn look(&mut self, found: BTreeSet<HostAddress>, now: Duration) -> BTreeSet<HostAddress> {
        self.seen.extend(found.into_iter().map(|address| (address, now)));
        self.seen.retain(|_, seen| *seen + LINGER > now);
        self.seen.keys().cloned().collect()
    }
}

/// Why there is no record yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody has given this node workloads yet")]
pub struct NoWorkloads;

/// The record of this node. Its WireGuard listens on this port, and has this key; `encrypt` is `false` when the node is
/// about to leave the mesh. Of what was found out there is as much as readers take: borrowed addresses come after
/// blocks, and addresses of the host in the order of what their interfaces connect, after those by which it is reached.
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
    let given = declared.workloads.as_ref().or(found.workloads.as_ref()).ok_or(NoWorkloads)?;
    let workloads: BTreeSet<IpNet> = match &declared.workloads {
        Some(declared) => {
            let borrowed = found.borrowed.difference(declared);
            declared
                .iter()
                .chain(borrowed.take(WORKLOADS_MAX.saturating_sub(declared.len())))
                .copied()
                .collect()
        }
        None => given.iter().chain(found.borrowed.difference(given)).take(WORKLOADS_MAX).copied().collect(),
    };
    let is_workload = |address: IpAddr| workloads.iter().any(|workload| workload.contains(&address));
    let tunnel_addresses = match &declared.tunnel_addresses {
        Some(declared) => declared.clone(),
        None => {
            let of_ours = found.tunnel_addresses.iter().copied().filter(|address| is_workload(*address));
            of_ours.take(ADDRESSES_MAX).collect()
        }
    };
    let host = found.host.iter().filter(|it| !OF_SERVICES.contains(&it.interface.as_str()));
    let reached_at: Vec<IpAddr> = match found.reached_at.is_empty() {
        // Also one inside the workloads, as in a cloud's network: the source knows.
        false => found.reached_at.iter().copied().collect(),
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
            let addresses = reached_at.iter().copied().chain(of_host);
            let on_interface = |address: &IpAddr| {
                tunnel_addresses.contains(address) || declared.link_addresses.contains(address)
            };
            let mut kept = BTreeSet::new();
            for address in addresses.filter(|address| !on_interface(address)) {
                if kept.len() < ADDRESSES_MAX {
                    kept.insert(address);
                }
            }
            kept
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey::from_bytes([1; 32]);

    fn host(addresses: &[(Place, &str, &str)]) -> BTreeSet<HostAddress> {
        let host = addresses.iter().map(|(place, interface, address)| HostAddress {
            place: *place,
            address: address.parse().unwrap(),
            interface: (*interface).to_owned(),
        });
        host.collect()
    }

    fn set<T: std::str::FromStr + Ord>(texts: &[&str]) -> BTreeSet<T> {
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// A Kubernetes node with a VXLAN overlay, Docker, kube-proxy with IPVS, and a second network.
    fn found() -> Found {
        Found {
            borrowed: set(&["10.161.9.7/32"]),
            workloads: Some(set(&["10.161.1.0/24"])),
            reached_at: set(&["192.0.2.7", "2001:db8::7"]),
            tunnel_addresses: set(&["10.161.1.9", "10.161.2.9"]),
            host: host(&[
                (Place::DefaultRoute, "eth0", "192.0.2.7/24"),
                (Place::DefaultRoute, "eth0", "2001:db8::7/64"),
                (Place::Network, "eth1", "198.51.100.7/24"),
                (Place::Inside, "cni0", "10.161.1.1/24"),
                (Place::Inside, "vxlan.calico", "10.161.9.0/32"),
                (Place::Inside, "docker0", "172.17.0.1/16"),
                (Place::Inside, "kube-ipvs0", "10.161.1.200/32"),
                (Place::Inside, "nodelocaldns", "10.161.1.201/32"),
            ]),
            pools: set(&["10.161.0.0/16"]),
        }
    }

    #[test]
    fn what_is_found_out_becomes_the_record() {
        let node = compose(&Declared::default(), &found(), KEY, 51820, true).unwrap();
        let expected = Node {
            public_key: Some(KEY),
            endpoint: Some("192.0.2.7:51820".parse().unwrap()),
            other_endpoints: vec!["[2001:db8::7]:51820".parse().unwrap()],
            endpoint_name: None,
            addresses: set(&["192.0.2.7", "2001:db8::7", "198.51.100.7", "10.161.1.1", "10.161.9.0"]),
            workloads: set(&["10.161.1.0/24", "10.161.9.7/32"]),
            link_addresses: BTreeSet::new(),
            tunnel_addresses: set(&["10.161.1.9"]),
            encrypt: true,
        };
        assert_eq!(node, expected);
    }

    #[test]
    fn where_the_source_says_that_a_node_is_reached_counts_even_inside_its_workloads() {
        let found = Found { reached_at: set(&["10.161.1.2"]), ..found() };
        let node = compose(&Declared::default(), &found, KEY, 7, true).unwrap();
        assert_eq!(node.endpoint, Some("10.161.1.2:7".parse().unwrap()));
        assert!(node.addresses.contains(&"10.161.1.2".parse().unwrap()));
    }

    #[test]
    fn a_record_holds_no_more_than_readers_take() {
        let cards = (0..200).map(|number| HostAddress {
            place: Place::DefaultRoute,
            address: format!("10.0.0.{number}/24").parse().unwrap(),
            interface: "eth0".to_owned(),
        });
        let single = |number: u32| IpNet::from(IpAddr::from(number.to_be_bytes()));
        let found = Found {
            host: cards.chain(host(&[(Place::Network, "eth1", "198.51.100.7/24")])).collect(),
            borrowed: (0..2000).map(|number| single(0x0aa2_0000 + number)).collect(),
            tunnel_addresses: BTreeSet::new(),
            ..found()
        };
        let node = compose(&Declared::default(), &found, KEY, 51820, true).unwrap();
        assert_eq!((node.workloads.len(), node.addresses.len()), (1024, 128));
        assert!(node.workloads.is_superset(found.workloads.as_ref().unwrap()));
        assert!(node.addresses.is_superset(&found.reached_at));
        let declared = Declared { workloads: Some(set(&["10.161.5.0/24"])), ..Declared::default() };
        let node = compose(&declared, &found, KEY, 51820, true).unwrap();
        assert_eq!(node.workloads.len(), 1024);
        assert!(node.workloads.contains(&"10.161.5.0/24".parse().unwrap()));
    }

    #[test]
    fn what_is_declared_counts() {
        let declared = Declared {
            workloads: Some(BTreeSet::new()),
            endpoint: Some(Endpoint::Name("n1.example.org:7".parse().unwrap())),
            addresses: Some(set(&["203.0.113.1"])),
            tunnel_addresses: Some(set(&["10.161.1.8"])),
            link_addresses: set(&["100.64.0.1"]),
        };
        let node = compose(&declared, &Found::default(), KEY, 51820, false).unwrap();
        let expected = Node {
            public_key: Some(KEY),
            endpoint: None,
            other_endpoints: Vec::new(),
            endpoint_name: Some("n1.example.org:7".parse().unwrap()),
            addresses: set(&["203.0.113.1"]),
            workloads: BTreeSet::new(),
            link_addresses: set(&["100.64.0.1"]),
            tunnel_addresses: set(&["10.161.1.8"]),
            encrypt: false,
        };
        assert_eq!(node, expected);
    }

    #[test]
    fn nothing_is_published_before_somebody_gives_workloads() {
        let found = Found { workloads: None, ..found() };
        assert_eq!(compose(&Declared::default(), &found, KEY, 51820, true), Err(NoWorkloads));
        let none = Found { workloads: Some(BTreeSet::new()), ..found };
        assert!(compose(&Declared::default(), &none, KEY, 51820, true).is_ok(), "an empty list is an answer");
    }

    #[test]
    fn without_a_source_that_knows_the_interfaces_tell_where_a_node_is_reached() {
        let reached = |addresses: &[(Place, &str, &str)]| {
            let found =
                Found { workloads: Some(set(&["10.161.1.0/24"])), host: host(addresses), ..Found::default() };
            let node = compose(&Declared::default(), &found, KEY, 51820, true).unwrap();
            let endpoints = node.endpoint.into_iter().chain(node.other_endpoints);
            endpoints.map(|endpoint| endpoint.ip().to_string()).collect::<Vec<_>>()
        };
        let card = (Place::Network, "eth1", "192.0.2.1/24");
        let onward = (Place::DefaultRoute, "eth0", "192.0.2.200/24");
        let moving = (Place::DefaultRoute, "eth0", "192.0.2.99/32");
        let bridge = (Place::Inside, "br0", "192.0.2.3/24");
        let pods = (Place::Network, "veth0", "10.161.1.1/32");
        assert_eq!(reached(&[card, onward, moving, bridge]), ["192.0.2.200"]);
        assert_eq!(reached(&[card, bridge, pods]), ["192.0.2.1"]);
        assert_eq!(reached(&[(Place::DefaultRoute, "br0", "192.0.2.3/24"), card]), ["192.0.2.3"]);
        let v6 = (Place::Network, "eth0", "2001:db8::1/128");
        assert_eq!(reached(&[card, v6]), ["192.0.2.1", "2001:db8::1"]);
        assert!(reached(&[bridge, pods]).is_empty());
    }

    #[test]
    fn an_address_that_is_away_for_a_moment_stays() {
        let mut steady = Steady::default();
        let all = found().host;
        let at = Duration::from_secs;
        assert_eq!(steady.look(all.clone(), at(0)), all);
        assert_eq!(steady.look(BTreeSet::new(), at(29)), all);
        assert_eq!(steady.look(all.clone(), at(29)), all);
        assert_eq!(steady.look(BTreeSet::new(), at(58)), all);
        assert!(steady.look(BTreeSet::new(), at(59)).is_empty());
    }
}
