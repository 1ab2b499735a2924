//! Arbitrary meshes and arbitrary kernels, from a universe so small that things collide.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use proptest::{collection, option, prelude::*, sample};
use wireloom_plan::{
    cluster::{Cluster, Node},
    firewall::{Firewall, Guard, GuardSet, Guarded, IncomingMark, Source},
    observed::{Device, Interface, Observed, Peer, Underlay},
    paths::{Known, Path, Paths},
    routing::{Family, OtherRoute, OtherSelectors, PROTOCOL, Route, RouteKind, Rule},
    settings::{HostTransition, Scope, Settings, UnprovenPeers},
    standing::{Standing, Standings},
    sysctl::{ALL, UnderlaySysctl},
};
use wireloom_types::{
    LinkAddress, PeerLookup, PresharedKey, PresharedKeyHash, PublicKey, SourceCheck, interface::AGENT_ALIAS,
};

use crate::world::{ip, key, net};

pub(crate) const OWN: &str = "a";
pub(crate) const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

const PREFIXES: [&str; 14] = [
    "10.1.0.0/16",
    "10.1.0.0/24",
    "10.1.1.0/24",
    "10.1.1.128/25",
    "10.1.1.7/32",
    "10.1.2.0/24",
    "10.2.0.0/16",
    "10.2.0.1/32",
    "192.168.1.2/32",
    "fd01::/48",
    "fd01::/64",
    "fd01:0:0:1::/64",
    "fd01::7/128",
    "fd02::/64",
];
const ADDRESSES: [&str; 6] = ["192.168.1.1", "192.168.1.2", "192.168.1.3", "fd00::1", "fd00::2", "10.1.1.7"];
const LINK_ADDRESSES: [&str; 6] = ["100.64.0.1", "100.64.0.2", "fd64::1", "fd64::2", "fe80::9", "10.1.1.7"];
const ENDPOINTS: [&str; 3] = ["192.168.1.2:51820", "192.168.1.3:51820", "[fd00::2]:51820"];

pub(crate) fn prefix() -> impl Strategy<Value = IpNet> {
    sample::select(PREFIXES.as_slice()).prop_map(net)
}

fn address() -> impl Strategy<Value = IpAddr> {
    sample::select(ADDRESSES.as_slice()).prop_map(ip)
}

fn link_address() -> impl Strategy<Value = IpAddr> {
    sample::select(LINK_ADDRESSES.as_slice()).prop_map(ip)
}

fn endpoint() -> impl Strategy<Value = SocketAddr> {
    sample::select(ENDPOINTS.as_slice()).prop_map(|text| text.parse().unwrap())
}

pub(crate) fn any_key() -> impl Strategy<Value = PublicKey> {
    prop_oneof![7 => (0..7_u8).prop_map(key), 1 => sample::select(colliding_keys().to_vec())]
}

/// Two keys that hash to the same link address.
pub(crate) fn colliding_keys() -> [PublicKey; 2] {
    [542_000_u32, 1_144_960].map(|number| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        PublicKey::from_bytes(key)
    })
}

/// The key that a node has unless somebody made a mistake.
fn own_key(name: &str) -> PublicKey {
    key(u8::try_from(NODES.iter().position(|other| *other == name).unwrap()).unwrap())
}

/// The key of this node's key file.
pub(crate) fn key_file() -> impl Strategy<Value = PublicKey> {
    prop_oneof![6 => Just(own_key(OWN)), 1 => any_key()]
}

/// A node with this name, usually with a key of its own.
fn node(name: &str) -> impl Strategy<Value = Node> + use<> {
    let public_key = prop_oneof![
        8 => Just(Some(own_key(name))),
        1 => any_key().prop_map(Some),
        1 => Just(None),
    ];
    let addresses = collection::btree_set(address(), 0..3);
    let workloads = collection::btree_set(prefix(), 0..4);
    let link_addresses = collection::btree_set(link_address(), 0..3);
    let encrypt = prop::bool::weighted(0.9);
    (public_key, option::weighted(0.8, endpoint()), addresses, workloads, link_addresses, encrypt).prop_map(
        |(public_key, endpoint, addresses, workloads, link_addresses, encrypt)| Node {
            public_key,
            endpoint,
            endpoint_name: None,
            other_endpoints: Vec::new(),
            addresses,
            // The tunnel address is usually one of its workloads; anything may be written.
            tunnel_addresses: link_addresses
                .iter()
                .copied()
                .filter(|address| *address == ip("10.1.1.7"))
                .collect(),
            workloads,
            link_addresses,
            encrypt,
        },
    )
}

/// What the proof of the node with this name means; usually it has proved its own key.
fn standing(name: &str) -> impl Strategy<Value = Standing> + use<> {
    let key = prop_oneof![8 => Just(own_key(name)), 1 => any_key()];
    (key, prop::bool::weighted(0.9), prop::bool::weighted(0.8), prop::bool::weighted(0.2))
        .prop_map(|(key, egress, ingress, fresh)| Standing { key, egress, ingress, fresh })
}

/// Where this node stands with some of the nodes.
pub(crate) fn standings() -> impl Strategy<Value = Standings> {
    let named =
        sample::select(NODES.as_slice()).prop_flat_map(|name| (Just(name.to_owned()), standing(name)));
    collection::vec(named, 0..5).prop_map(|named| named.into_iter().collect())
}

/// A name and a node with that name.
pub(crate) fn named_node() -> impl Strategy<Value = (&'static str, Node)> {
    sample::select(NODES.as_slice()).prop_flat_map(|name| (Just(name), node(name)))
}

pub(crate) fn pools() -> impl Strategy<Value = BTreeSet<IpNet>> {
    collection::btree_set(prefix(), 0..3)
}

/// This node is always in it.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    let others = collection::vec(named_node(), 0..7);
    (pools(), node(OWN), others).prop_map(|(pools, own, others)| {
        let others = others.into_iter().map(|(name, node)| (name.to_owned(), node));
        let nodes = others.chain([(OWN.to_owned(), own)]).collect();
        Cluster { pools, nodes, preshared_key_file: None }
    })
}

fn mode() -> impl Strategy<Value = (PeerLookup, SourceCheck)> {
    sample::select(vec![
        (PeerLookup::Destination, SourceCheck::AllowedIps),
        (PeerLookup::Destination, SourceCheck::Off),
        (PeerLookup::Gateway, SourceCheck::Off),
        (PeerLookup::Gateway, SourceCheck::Firewall),
    ])
}

prop_compose! {
    pub(crate) fn settings()(
        mtu in option::of(sample::select(vec![1300_u32, 1420])),
        persistent_keepalive in sample::select(vec![0_u16, 25]),
        encrypt_host_traffic in any::<bool>(),
        host_transition in option::of(sample::select(vec![HostTransition::Accept, HostTransition::Prefer])),
        encrypt_host_exempt in collection::btree_set(prefix(), 0..3),
        node_scope in any::<bool>(),
        rule_priority in sample::select(vec![99_u32, 98]),
        fwmark in sample::select(vec![0xa_u32, 0x8]),
        (reject, guard) in (any::<bool>(), prop::bool::weighted(0.9)),
        (peer_lookup, source_check) in mode(),
    ) -> Settings {
        Settings {
            mtu,
            persistent_keepalive,
            encrypt_host_traffic,
            host_transition,
            encrypt_host_exempt,
            scope: if node_scope { Scope::Node } else { Scope::Pool },
            rule_priority,
            fwmark,
            unproven_peers: if reject { UnprovenPeers::Reject } else { UnprovenPeers::Plaintext },
            guard,
            peer_lookup,
            source_check,
            ..Settings::defaults(OWN)
        }
    }
}

/// The hash of one of two preshared keys, or none.
pub(crate) fn preshared_key() -> impl Strategy<Value = Option<PresharedKeyHash>> {
    let hash = |byte| PresharedKeyHash::of(&PresharedKey::from_bytes([byte; 32]));
    sample::select(vec![None, Some(hash(1)), Some(hash(2))])
}

prop_compose! {
    fn peer()(
        endpoint in option::of(endpoint()),
        configured_endpoint in option::of(endpoint()),
        persistent_keepalive in sample::select(vec![0_u16, 25]),
        handshake_age in option::of((0..400_u64).prop_map(Duration::from_secs)),
        preshared_key in preshared_key(),
    ) -> Peer {
        let allowed_ips = BTreeSet::new();
        Peer { endpoint, configured_endpoint, allowed_ips, persistent_keepalive, preshared_key, handshake_age }
    }
}

/// Each prefix is in the allowed-IPs of at most one peer, and a device is never its own peer.
fn device() -> impl Strategy<Value = Device> {
    let peers = collection::btree_map(any_key(), peer(), 0..6);
    let allowed = collection::btree_map(prefix(), any::<sample::Index>(), 0..8);
    let mark = sample::select(vec![0_u32, 0xa]);
    let identity = (option::of(key_file()), sample::select(vec![51820_u16, 1]), mark, mode());
    (identity, peers, allowed).prop_map(
        |((public_key, listen_port, fwmark, (_, source_check)), mut peers, allowed)| {
            peers.retain(|key, _| Some(*key) != public_key);
            let holders: Vec<_> = peers.keys().copied().collect();
            for (prefix, index) in allowed.into_iter().filter(|_| !holders.is_empty()) {
                peers.entry(*index.get(&holders)).or_default().allowed_ips.insert(prefix);
            }
            Device { public_key, listen_port, fwmark, source_check, peers }
        },
    )
}

prop_compose! {
    pub(crate) fn rule()(
        priority in sample::select(vec![98_u32, 99, 100]),
        invert in any::<bool>(),
        from in option::of(prefix()),
        v6 in any::<bool>(),
        (mark, mask) in sample::select(vec![(0_u32, 0xa_u32), (0xa, 0xa), (0, 0x8), (0, 0), (0x2, 0xa)]),
        protocol in sample::select(vec![PROTOCOL, PROTOCOL, 3, 0]),
        input_interface in option::weighted(0.2, sample::select(vec![b"eth0\0".to_vec(), b"eth1\0".to_vec()])),
        tos in prop_oneof![4 => Just(0_u8), 1 => Just(0x10)],
    ) -> Rule {
        let family = from.map_or(if v6 { Family::V6 } else { Family::V4 }, |from| Family::of(from.addr()));
        /// `FRA_IIFNAME` of linux/fib_rules.h
        const IIFNAME: u16 = 3;
        let attributes = input_interface.into_iter().map(|name| (IIFNAME, name)).collect();
        let other = OtherSelectors { to: None, tos, attributes };
        Rule { family, priority, invert, from, mark, mask, table: 1, protocol, other }
    }
}

fn route() -> impl Strategy<Value = Route> {
    let device = (option::of(link_address()), option::of(address()), option::of(Just(1280)));
    let kind = prop_oneof![
        device.prop_map(|(gateway, source, mtu)| RouteKind::Device { gateway, source, mtu }),
        Just(RouteKind::Throw),
        Just(RouteKind::Unreachable),
        Just(RouteKind::Other(OtherRoute::default())),
    ];
    let metric = prop_oneof![4 => Just(None), 1 => Just(Some(5_u32))];
    let protocol = sample::select(vec![PROTOCOL, PROTOCOL, PROTOCOL, 4]);
    (prefix(), kind, metric, protocol).prop_map(|(destination, kind, metric, protocol)| {
        let usual = Route::ours(destination, kind);
        Route { metric: metric.unwrap_or(usual.metric), protocol, ..usual }
    })
}

fn underlays() -> impl Strategy<Value = BTreeMap<String, Underlay>> {
    let underlay = (
        sample::select(vec![1500_u32, 9000]),
        collection::btree_set(address(), 0..4),
        0..3_u8,
        any::<bool>(),
    )
        .prop_map(|(mtu, addresses, rp_filter, src_valid_mark)| Underlay {
            mtu,
            addresses,
            rp_filter,
            src_valid_mark,
        });
    collection::btree_map(sample::select(vec!["eth0".to_owned(), "eth1".to_owned()]), underlay, 0..3)
}

fn saved_sysctls() -> impl Strategy<Value = BTreeMap<String, BTreeMap<UnderlaySysctl, u8>>> {
    let saved =
        sample::subsequence(vec![(UnderlaySysctl::RpFilter, 1_u8), (UnderlaySysctl::SrcValidMark, 0)], 1..3)
            .prop_map(BTreeMap::from_iter);
    let interfaces = vec!["eth0".to_owned(), "eth1".to_owned(), "gone0".to_owned()];
    let all = collection::btree_map(Just(UnderlaySysctl::SendRedirects), 0..2_u8, 1);
    (collection::btree_map(sample::select(interfaces), saved, 0..2), option::of(all)).prop_map(
        |(mut saved, all)| {
            saved.extend(all.map(|all| (ALL.to_owned(), all)));
            saved
        },
    )
}

fn link_address_of_a_route() -> impl Strategy<Value = IpAddr> {
    sample::select(&LINK_ADDRESSES[..4]).prop_map(ip)
}

fn neighbour_addresses() -> impl Strategy<Value = IpAddr> {
    let link_local = any_key().prop_map(|key| LinkAddress::of(key).link_local().into());
    prop_oneof![link_address(), link_local]
}

prop_compose! {
    fn guard()(
        datagrams in option::of(incoming_mark()),
        mark in sample::select(vec![0xa_u32, 1]),
        reject in any::<bool>(),
        outward in outward(),
        has_error_source in any::<bool>(),
    ) -> Guard {
        let error_source_v4 = has_error_source.then(|| [10, 1, 1, 7].into());
        Guard { datagrams, mark, reject, outward, error_source_v4, error_source_v6: None }
    }
}

fn outward() -> impl Strategy<Value = BTreeSet<String>> {
    collection::btree_set(sample::select(vec!["eth0".to_owned(), "vxlan0".to_owned()]), 0..3)
}

fn incoming_mark() -> impl Strategy<Value = IncomingMark> {
    let mark = (sample::select(vec![51820_u16, 2]), sample::select(vec![0xa_u32, 1]));
    mark.prop_map(|(port, mark)| IncomingMark { port, mark })
}

/// The elements of the guard's sets, of which those of one set do not overlap.
fn guarded() -> impl Strategy<Value = BTreeSet<Guarded>> {
    let element = (sample::select(GuardSet::ALL.as_slice()), prefix())
        .prop_map(|(set, prefix)| Guarded { set, addresses: prefix.into() });
    collection::vec(element, 0..16).prop_map(|all| {
        let mut guarded: BTreeSet<Guarded> = BTreeSet::new();
        for element in all {
            let overlaps =
                |other: &Guarded| other.set == element.set && other.addresses.overlaps(&element.addresses);
            if !guarded.iter().any(overlaps) {
                guarded.insert(element);
            }
        }
        guarded
    })
}

/// A table and the elements of its sets.
#[derive(Debug, Clone, Default)]
struct Table {
    firewall: Option<Firewall>,
    judged_peers: BTreeSet<LinkAddress>,
    sources: BTreeSet<Source>,
    guarded: BTreeSet<Guarded>,
}

/// A peer's sources do not overlap, and nothing is known of the elements of an altered table.
fn table() -> impl Strategy<Value = Table> {
    let chains = (option::of(incoming_mark()), any::<bool>(), option::of(guard()), prop::bool::weighted(0.2));
    let peer = || any_key().prop_map(LinkAddress::of);
    let source = (peer(), prefix()).prop_map(|(peer, prefix)| Source { peer, addresses: prefix.into() });
    let sets = (collection::btree_set(peer(), 0..6), collection::vec(source, 0..12), guarded());
    option::of((chains, sets)).prop_map(|firewall| {
        let Some(((mark_incoming, judge_sources, guard, altered), (peers, all, guarded))) = firewall else {
            return Table::default();
        };
        if altered {
            let firewall = Some(Firewall { altered, ..Firewall::default() });
            return Table { firewall, ..Table::default() };
        }
        let guarded = if guard.is_some() { guarded } else { BTreeSet::new() };
        let firewall = Some(Firewall { mark_incoming, judge_sources, guard, segment_v6: None, altered });
        let mut sources: BTreeSet<Source> = BTreeSet::new();
        for source in all.into_iter().filter(|_| judge_sources) {
            if !sources.iter().any(|other| other.overlaps(&source)) {
                sources.insert(source);
            }
        }
        let judged_peers = peers.into_iter().filter(|_| judge_sources).collect();
        Table { firewall, judged_peers, sources, guarded }
    })
}

/// Wide and narrow ways to some of the nodes.
fn paths() -> impl Strategy<Value = Paths> {
    let outer = sample::select(Family::ALL.as_slice());
    let path = (outer, sample::select(vec![1500_u32, 1450]), sample::select(vec![1500_u32, 1400, 1280]));
    let path = path.prop_map(|(outer, way_out, mtu)| Path {
        outer,
        way_out,
        mtu: mtu.min(way_out),
        known: Known::Reported,
    });
    collection::btree_map(any_key(), path, 0..4).prop_map(Paths::from_iter)
}

/// A kernel in any state that Linux allows, in which our interface is not foreign.
pub(crate) fn observed() -> impl Strategy<Value = Observed> {
    let interface = option::of((sample::select(vec![1420_u32, 1300]), any::<bool>(), mode(), any::<bool>()));
    let network = (
        interface,
        option::weighted(0.9, device()),
        collection::btree_set(sample::select(vec!["10.9.0.1/24", "fd09::1/64"]).prop_map(net), 0..3),
        collection::vec(rule(), 0..7),
        collection::btree_set(route(), 0..12),
    );
    let link_address = any_key().prop_map(LinkAddress::of);
    let neighbours = (
        collection::btree_map(neighbour_addresses(), link_address, 0..6),
        collection::btree_set(link_address_of_a_route(), 0..4),
        option::of(any_key().prop_map(LinkAddress::of)),
        any::<bool>(),
    );
    let here = collection::btree_set(
        sample::select(vec!["10.1.1.1/24", "fd01::1/64", "10.1.0.0/32"]).prop_map(net),
        0..3,
    );
    let machine = (underlays(), saved_sysctls(), outward(), here, 0..3_u8, 0..3_u8, paths());
    (network, neighbours, machine, table()).prop_map(
        |(network, (neighbours, link_routes, address, send_redirects), machine, table)| {
            let (underlays, saved_sysctls, outward, here, rp_filter, rp_filter_all, paths) = machine;
            // An interface has one value.
            let of = |name: &String| underlays.get(name).map_or(1, |underlay: &Underlay| underlay.rp_filter);
            let outward = outward.into_iter().map(|name| (name.clone(), of(&name))).collect();
            let Table { firewall, judged_peers, sources, guarded } = table;
            let (interface, device, addresses, mut rules, mut routes) = network;
            let up = interface.is_some_and(|(_, up, ..)| up);
            // The kernel keeps no route through an interface that is down or gone.
            routes.retain(|route| up || !matches!(route.kind, RouteKind::Device { .. }));
            rules.sort_by_key(|rule| (rule.family, rule.priority));
            Observed {
                interface: interface.map(|(mtu, up, (peer_lookup, _), left)| {
                    let alias = Some(AGENT_ALIAS.to_owned());
                    let link_address = address.filter(|_| peer_lookup == PeerLookup::Gateway);
                    let left = left && device.is_none();
                    Interface { alias, mtu, up, peer_lookup, link_address, left, rp_filter }
                }),
                device: device.filter(|_| interface.is_some()),
                addresses: if interface.is_some() { addresses } else { BTreeSet::new() },
                neighbours: if up { neighbours } else { BTreeMap::new() },
                link_routes: if up { link_routes } else { BTreeSet::new() },
                send_redirects,
                felix: false,
                free_table: None,
                rules,
                routes,
                underlays,
                saved_sysctls,
                firewall,
                judged_peers,
                sources,
                guarded,
                outward,
                here_outward: here.iter().filter(|here| here.prefix_len() == 32).map(IpNet::addr).collect(),
                here,
                rp_filter_all,
                bypasses: BTreeSet::new(),
                connections: BTreeSet::new(),
                linkdown_ignored: BTreeSet::new(),
                paths,
            }
        },
    )
}
