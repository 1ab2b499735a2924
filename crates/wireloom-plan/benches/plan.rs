//! What a large mesh costs: `cargo bench -p wireloom-plan`.
//!
//! Targets (5,000 nodes with 4 CIDRs each): a plan from scratch below 100 ms, one changed node below 1 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use divan::{Bencher, black_box};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use wireloom_plan::{
    cluster::{Cluster, Node},
    desired::{Host, desired},
    diff::diff,
    health::{self, Action, AgentFacts, DeviceFacts, Facts, PeerFacts, PolicyRule, examine},
    observed::{Observed, Underlay},
    planner::Planner,
    proofs::Account,
    routing::Rule,
    settings::Settings,
    standing::{Standing, Standings},
};
use wireloom_types::{PeerLookup, PublicKey, SourceCheck};

const SIZES: [u32; 2] = [1_000, 5_000];

fn main() {
    divan::main();
}

/// From a cluster and an empty kernel to the list of operations.
#[divan::bench(args = SIZES)]
fn from_nothing(bencher: Bencher<'_, '_>, nodes: u32) {
    let mesh = mesh(nodes);
    bencher
        .with_inputs(|| mesh.clone())
        .bench_values(|mesh| planner(settings(), mesh).plan(black_box(&machine())).unwrap());
}

/// The same with `encrypt_host_traffic`: six destinations per node instead of four.
#[divan::bench(args = SIZES)]
fn from_nothing_in_host_mode(bencher: Bencher<'_, '_>, nodes: u32) {
    let mesh = mesh(nodes);
    let settings = Settings { encrypt_host_traffic: true, ..settings() };
    bencher
        .with_inputs(|| (settings.clone(), mesh.clone()))
        .bench_values(|(settings, mesh)| planner(settings, mesh).plan(black_box(&machine())).unwrap());
}

/// The same in link mode, each node with an address on the link: two neighbours, one more route and six
/// admitted sources per node.
#[divan::bench(args = SIZES)]
fn from_nothing_on_a_link(bencher: Bencher<'_, '_>, nodes: u32) {
    let mesh = link(nodes);
    bencher
        .with_inputs(|| (link_settings(), mesh.clone()))
        .bench_values(|(settings, mesh)| planner(settings, mesh).plan(black_box(&machine())).unwrap());
}

/// A node's address on the link changes, and with it the next hop of all its workloads.
#[divan::bench(args = SIZES)]
fn one_changed_node_on_a_link(bencher: Bencher<'_, '_>, nodes: u32) {
    let mut planner = planner(link_settings(), link(nodes));
    let mut kernel = machine();
    let ops = planner.plan(&kernel).unwrap().ops;
    kernel.apply_all(&ops).unwrap();
    let versions = [7, 7_000_000].map(|address| Node { link_addresses: link_address(address), ..node(7) });
    let mut turn = 0;
    bencher.bench_local(|| {
        turn += 1;
        planner.set_node("node-00007", versions[turn % 2].clone());
        let ops = planner.changes(&kernel).unwrap();
        kernel.apply_all(&ops).unwrap();
        ops
    });
}

/// The periodic comparison with a kernel that is as desired.
#[divan::bench(args = SIZES)]
fn nothing_changed(bencher: Bencher<'_, '_>, nodes: u32) {
    let (mut planner, kernel) = settled(nodes);
    bencher.bench_local(|| planner.plan(black_box(&kernel)).unwrap());
}

/// One node's endpoint and one of its CIDRs change: a delta, its operations, and the update of the kernel's
/// mirror.
#[divan::bench(args = SIZES)]
fn one_changed_node(bencher: Bencher<'_, '_>, nodes: u32) {
    let (mut planner, mut kernel) = settled(nodes);
    let mut versions = [node(7), node(7)];
    versions[1].endpoint = Some("192.0.2.7:51820".parse().unwrap());
    versions[1].workloads.pop_first();
    let mut turn = 0;
    bencher.bench_local(|| {
        turn += 1;
        planner.set_node("node-00007", versions[turn % 2].clone());
        let ops = planner.changes(&kernel).unwrap();
        kernel.apply_all(&ops).unwrap();
        ops
    });
}

/// The plan alone, without the mirror.
#[divan::bench(args = SIZES)]
fn one_changed_node_without_the_mirror(bencher: Bencher<'_, '_>, nodes: u32) {
    let (mut planner, kernel) = settled(nodes);
    let mut versions = [node(7), node(7)];
    versions[1].workloads.pop_first();
    let mut turn = 0;
    bencher.bench_local(|| {
        turn += 1;
        planner.set_node("node-00007", versions[turn % 2].clone());
        planner.changes(black_box(&kernel)).unwrap()
    });
}

/// A new snapshot in which one node differs, as a file source delivers it.
#[divan::bench(args = SIZES)]
fn snapshot_with_one_changed_node(bencher: Bencher<'_, '_>, nodes: u32) {
    let (mut planner, kernel) = settled(nodes);
    let mut versions = [mesh(nodes), mesh(nodes)];
    versions[1].nodes.get_mut("node-00007").unwrap().workloads.pop_first();
    let mut turn = 0;
    bencher
        .with_inputs(|| {
            turn += 1;
            versions[turn % 2].clone()
        })
        .bench_local_values(|mesh| {
            planner.set_cluster(mesh);
            planner.changes(black_box(&kernel)).unwrap()
        });
}

/// Three nodes have 16,000 CIDRs each, and one of them loses one: all claims of that node are derived again.
#[divan::bench]
fn one_cidr_of_very_many(bencher: Bencher<'_, '_>) {
    let mut mesh = mesh(4);
    for (number, node) in (0..).zip(mesh.nodes.values_mut()).skip(1) {
        node.workloads = (0..16_000).map(|cidr| block6([0xfd61, number, 0, cidr])).collect();
    }
    let mut versions = [mesh.nodes["node-00002"].clone(), mesh.nodes["node-00002"].clone()];
    versions[1].workloads.pop_last();
    let mut planner = planner(settings(), mesh);
    let mut kernel = machine();
    let ops = planner.plan(&kernel).unwrap().ops;
    kernel.apply_all(&ops).unwrap();
    let mut turn = 0;
    bencher.bench_local(|| {
        turn += 1;
        planner.set_node("node-00002", versions[turn % 2].clone());
        planner.changes(black_box(&kernel)).unwrap()
    });
}

/// The in-memory kernel alone: all operations of a plan from scratch.
#[divan::bench(args = SIZES)]
fn apply_to_the_mirror(bencher: Bencher<'_, '_>, nodes: u32) {
    let before = machine();
    let host = Host::of(key(0), &before);
    let mesh = mesh(nodes);
    let wanted = desired(&mesh, &settings(), &all_proven(&mesh), &host).unwrap();
    let ops = diff(&before, &wanted).unwrap();
    bencher.with_inputs(machine).bench_values(|mut kernel| {
        kernel.apply_all(black_box(&ops)).unwrap();
        kernel
    });
}

fn settled(nodes: u32) -> (Planner, Observed) {
    let mut planner = planner(settings(), mesh(nodes));
    let mut kernel = machine();
    let ops = planner.plan(&kernel).unwrap().ops;
    kernel.apply_all(&ops).unwrap();
    (planner, kernel)
}

/// A planner of a node whose peers are all proven.
/// What is so on a node with a foreign rule before ours, whose table has a route to every node.
#[divan::bench(args = SIZES)]
fn examined(bencher: Bencher<'_, '_>, nodes: u32) {
    let mesh = mesh(nodes);
    let mut kernel = machine();
    let mut planner = planner(settings(), mesh.clone());
    kernel.apply_all(&planner.plan(&kernel).unwrap().ops).unwrap();
    let plan = planner.plan(&kernel).unwrap();
    let proven = |name: &String| (name.clone(), Account::Proven { since: Duration::ZERO, ends: None });
    let accounts = mesh.nodes.keys().skip(1).map(proven).collect();
    let session = PeerFacts { last_handshake: Some(Duration::from_secs(990)), ..PeerFacts::default() };
    let peers = mesh.nodes.values().skip(1).map(|node| (node.public_key.unwrap(), session)).collect();
    let foreign = Rule { from: None, mark: 0, mask: 0, table: 254, protocol: 3, ..kernel.rules[0].clone() };
    let main = mesh.nodes.values().flat_map(|node| &node.workloads).copied().collect();
    let rest = health::Machine {
        rules: vec![PolicyRule { rule: foreign, action: Action::Lookup }],
        tables: [(254, main)].into(),
        ..health::Machine::default()
    };
    let settings = settings();
    let facts = Facts {
        cluster: Some(&mesh),
        settings: &settings,
        accounts: &accounts,
        observed: &kernel,
        plan: Some(&plan),
        device: DeviceFacts::Answers { peers: &peers, drops: None },
        refused: &BTreeMap::new(),
        trends: None,
        machine: &rest,
        agent: AgentFacts::default(),
        now: Duration::from_secs(1000),
    };
    bencher.bench_local(|| examine(black_box(&facts)));
}

fn planner(settings: Settings, mesh: Cluster) -> Planner {
    let standings = all_proven(&mesh);
    let mut planner = Planner::new(settings, key(0), mesh);
    planner.set_standings(standings);
    planner
}

fn all_proven(mesh: &Cluster) -> Standings {
    let proven = |key| Standing { key, egress: true, ingress: true, fresh: false };
    let others = mesh.nodes.iter().skip(1);
    others.map(|(name, node)| (name.clone(), proven(node.public_key.unwrap()))).collect()
}

fn settings() -> Settings {
    Settings::defaults("node-00000")
}

fn link_settings() -> Settings {
    Settings { peer_lookup: PeerLookup::Gateway, source_check: SourceCheck::Firewall, ..settings() }
}

fn link(nodes: u32) -> Cluster {
    let mut mesh = mesh(nodes);
    for (number, node) in (0..).zip(mesh.nodes.values_mut()) {
        node.link_addresses = link_address(number);
    }
    mesh
}

fn link_address(number: u32) -> BTreeSet<IpAddr> {
    [IpAddr::from(Ipv4Addr::from(u32::from_be_bytes([198, 18, 0, 0]) + number))].into()
}

fn machine() -> Observed {
    let eth0 = Underlay { mtu: 1500, addresses: node(0).addresses, rp_filter: 1, src_valid_mark: false };
    Observed { underlays: [("eth0".to_owned(), eth0)].into(), ..Observed::default() }
}

fn mesh(nodes: u32) -> Cluster {
    Cluster {
        pools: ["10.0.0.0/8", "100.64.0.0/10", "fd61::/16"].map(|pool| pool.parse().unwrap()).into(),
        nodes: (0..nodes).map(|number| (format!("node-{number:05}"), node(number))).collect(),
        ..Cluster::default()
    }
}

/// A node with two IPv4 and two IPv6 CIDRs, and an address of each family.
fn node(number: u32) -> Node {
    let v4 = |base: [u8; 4], length: u8| {
        let address = Ipv4Addr::from(u32::from_be_bytes(base) + (number << (32 - length)));
        IpNet::V4(Ipv4Net::new(address, length).unwrap())
    };
    let [high, low] = [number >> 16, number & 0xffff].map(|half| u16::try_from(half).unwrap());
    let v6 = |block: u16| block6([0xfd61, block, high, low]);
    let address = IpAddr::from(Ipv4Addr::from(u32::from_be_bytes([172, 16, 0, 1]) + number));
    let address6 = IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, high, low));
    Node {
        public_key: Some(key(number)),
        endpoint: Some((address, 51820).into()),
        addresses: [address, address6].into(),
        workloads: [v4([10, 0, 0, 0], 24), v4([100, 64, 0, 0], 26), v6(1), v6(2)].into(),
        ..Node::default()
    }
}

fn block6([a, b, c, d]: [u16; 4]) -> IpNet {
    IpNet::V6(Ipv6Net::new(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), 64).unwrap())
}

/// Spread like real keys: consecutive numbers do not give adjacent keys.
fn key(number: u32) -> PublicKey {
    let spread = number.wrapping_mul(0x9e37_79b9).to_be_bytes();
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&spread);
    PublicKey::from_bytes(bytes)
}
