//! The flow table measures what it claims to. There is no Kubernetes here: nftables rules do what kube-proxy and the
//! port mapper would do.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command},
    sync::LazyLock,
};

use ipnet::IpNet;
use wireloom_lab::{
    Addresses, Cell, FAMILIES, Lab, Layout, Node, PATIENCE, Place, PodNetwork, ProxyMode, Wire,
    agent::Agent,
    flows::{FLOWS, FlowTable, NODES, PODS, Pod, SERVICES, ServiceKind, Situation, Testbed},
    probe::{Exchange, probe},
    until,
};
use wireloom_plan::routing::Family;

use crate::{fixtures::fleet::Fleet, laboratory_program, wireloom};

/// The server.
static WORKLOAD: LazyLock<PathBuf> = LazyLock::new(|| laboratory_program("wireloom-workload"));

/// Three nodes, and a machine outside.
const LAYOUT: Layout =
    Layout { nodes: 4, pods: 2, rp_filter: 0, block_address: true, pod_mtu: 1420, routed: true };

/// What the underlay's interfaces have: no check of sources, a strict one, a loose one.
const RP_FILTERS: [u8; 3] = [0, 1, 2];

/// What masquerading chooses from at random: the clients' own ports, so that a port alone proves nothing. `kube-proxy`
/// leaves the kernel all ports, of which every seventh is one of these.
const MASQUERADE_PORTS: &str = "20000-29999";

/// The mark of packets that are to be masqueraded, as kube-proxy has it.
const MASQUERADE: &str = "0x4000";

/// The addresses of a service: 10.96.0.k and fd00:10:96::k.
fn service_addresses(k: usize) -> Addresses {
    let k = u8::try_from(k).unwrap();
    let v6 = [0xfd00, 0x10, 0x96, 0, 0, 0, 0, k.into()].into();
    Addresses { v4: [10, 96, 0, k].into(), v6 }
}

/// The place in the laboratory where a pod of the table runs.
fn place<'a>(lab: &'a Lab, name: &str) -> &'a Place {
    let pod = PODS.iter().find(|pod| pod.name == name).unwrap();
    let node = &lab.nodes[pod.node];
    match name {
        _ if !pod.has_addresses() => &node.host,
        "pod-a2" => &node.pods[1],
        _ => &node.pods[0],
    }
}

fn copy(place: &Place) -> Place {
    Place { name: place.name.clone(), space: place.space.clone(), addresses: place.addresses }
}

/// Connects the nodes' pods by VXLAN instead of routes on the underlay, as flannel does: each node's device has the
/// first address of its block.
fn connect_by_vxlan(lab: &Lab) {
    let nodes = &lab.nodes[..NODES.len()];
    let mac = |n: usize| format!("02:00:00:00:02:{n:02x}");
    let first = |node: &Node| node.block.map(|block| block.network());
    for (n, node) in nodes.iter().enumerate() {
        let own = node.host.addresses.v4;
        node.run(&format!(
            "ip link add vxlan address {} type vxlan id 1 dstport 4789 local {own} nolearning",
            mac(n)
        ))
        .unwrap();
        node.run("ip link set vxlan up").unwrap();
        for address in first(node) {
            node.run(&format!(
                "ip address add {address} dev vxlan {}",
                if address.is_ipv6() { "nodad" } else { "" }
            ))
            .unwrap();
        }
        for (m, other) in nodes.iter().enumerate().filter(|(m, _)| *m != n) {
            node.run(&format!("bridge fdb replace {} dev vxlan dst {}", mac(m), other.host.addresses.v4))
                .unwrap();
            for (address, block) in first(other).into_iter().zip(other.block) {
                node.run(&format!(
                    "ip neighbour replace {address} lladdr {} dev vxlan nud permanent",
                    mac(m)
                ))
                .unwrap();
                // IPv6 refuses a gateway that another route leads to.
                node.run(&format!("ip route delete {block}")).unwrap();
                node.run(&format!("ip route add {block} via {address} dev vxlan onlink")).unwrap();
            }
        }
    }
}

/// The servers of all pods.
struct Servers(Vec<Child>);

impl Servers {
    fn start(lab: &Lab) -> Self {
        let start = |pod: &Pod| {
            let mut workload = Command::new(&*WORKLOAD);
            place(lab, pod.name).space.spawn(workload.arg(pod.name).arg(pod.port().to_string())).unwrap()
        };
        let servers = Self(PODS.iter().map(start).collect());
        for pod in PODS {
            until(PATIENCE, &format!("{} to listen", pod.name), || {
                let sockets = place(lab, pod.name).space.run("ss -Htuln").unwrap();
                // TCP and UDP.
                (sockets.matches(&format!("*:{} ", pod.port())).count() == 2).then_some(())
            })
            .unwrap();
        }
        servers
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in &mut self.0 {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// Makes the nodes translate addresses, and describes the laboratory for measuring.
fn testbed(lab: &Lab, network: PodNetwork) -> Testbed {
    for (n, node) in lab.nodes[..NODES.len()].iter().enumerate() {
        node.run("ip route add 10.96.0.0/16 via 192.168.1.254").unwrap();
        node.run("ip -6 route add fd00:10:96::/112 via fd00:192:168:1::fe").unwrap();
        node.host.space.feed("nft -f -", &rules(lab, n, network)).unwrap();
        // A pod that calls itself gets its packets back through the port of the bridge by which they came.
        for port in ["pod-1", "pod-2"] {
            node.run(&format!("ip link set {port} type bridge_slave hairpin on")).unwrap();
        }
    }
    let pods = PODS.iter().filter(|pod| pod.has_addresses());
    let services = SERVICES.iter().enumerate();
    Testbed {
        underlay: lab.underlay().clone(),
        nodes: [0, 1, 2].map(|n| copy(&lab.nodes[n].host)),
        outside: copy(&lab.nodes[3].host),
        pods: pods.map(|pod| (pod.name.to_owned(), copy(place(lab, pod.name)))).collect(),
        services: services.map(|(k, service)| (service.name.to_owned(), service_addresses(k))).collect(),
        headless: place(lab, "pod-b").addresses,
    }
}

/// The rules of kube-proxy and the port mapper on node `n`. They translate a destination to the service's first
/// endpoint. Clients that are no pods, and all clients of a node port with policy `Cluster`, appear under a node's
/// address.
fn rules(lab: &Lab, n: usize, network: PodNetwork) -> String {
    let node = &lab.nodes[n];
    let (mut destinations, mut sources) = (Vec::new(), Vec::new());
    for (family, ip, pool, block) in [
        (Family::V4, "ip", "10.161.0.0/16", node.block[0]),
        (Family::V6, "ip6", "fd00:10:161::/48", node.block[1]),
    ] {
        let call = |address: IpAddr, port: u16| {
            format!("{ip} daddr {address} meta l4proto {{ tcp, udp }} th dport {port}")
        };
        let own = node.host.addresses.of(family);
        for (k, service) in SERVICES.iter().enumerate() {
            let pod = PODS.iter().find(|pod| pod.name == service.pods[0]).unwrap();
            let translate =
                format!("dnat {ip} to {}", SocketAddr::new(place(lab, pod.name).addresses.of(family), 8080));
            let masquerade = format!("meta mark set meta mark or {MASQUERADE}");
            let cluster = call(service_addresses(k).of(family), 80);
            destinations.push(format!("{cluster} {ip} saddr != {pool} {masquerade}"));
            destinations.push(format!("{cluster} {translate}"));
            let Some(port) = service.node_port() else { continue };
            let call = call(own, port);
            if !matches!(service.kind, ServiceKind::LocalNodePort(_)) {
                destinations.push(format!("{call} {masquerade}"));
                destinations.push(format!("{call} {translate}"));
            } else if pod.node == n {
                destinations.push(format!("{call} {translate}"));
            } else {
                // Pods get to the endpoint by every node, others only by its own.
                destinations.push(format!("{call} {ip} saddr {pool} {translate}"));
                destinations.push(format!("{call} drop"));
            }
        }
        let pod = node.pods[0].addresses.of(family);
        destinations.push(format!("{} dnat {ip} to {}", call(own, 31080), SocketAddr::new(pod, 8080)));
        sources.push(format!("{ip} saddr {pod} {ip} daddr {pod} masquerade"));
        if network == PodNetwork::MasqueradingBridge {
            sources.push(format!("{ip} saddr {block} {ip} daddr != {block} masquerade"));
        }
    }
    format!(
        "table inet kube-proxy {{
            chain destinations {{
                {}
            }}
            chain prerouting {{ type nat hook prerouting priority dstnat; jump destinations; }}
            chain output {{ type nat hook output priority -100; jump destinations; }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                meta mark & {MASQUERADE} != 0 meta l4proto {{ tcp, udp }} masquerade to :{MASQUERADE_PORTS} fully-random
                {}
            }}
        }}",
        destinations.join("\n"),
        sources.join("\n")
    )
}

fn situation(wireloom: bool, network: PodNetwork) -> Situation {
    Situation { wireloom, proxy: ProxyMode::Nftables, network }
}

/// Nodes that run the agent, and a machine outside that is no member.
fn fleet(rp_filter: u8, network: PodNetwork) -> Fleet {
    let mut fleet = Fleet::without_agents(Layout { rp_filter, ..LAYOUT }, "");
    fleet.edit(|mesh| mesh.nodes.truncate(NODES.len()));
    if network == PodNetwork::Vxlan {
        connect_by_vxlan(&fleet.lab);
        // The node's own, although it lies in its block: without that it counts as a workload's, and is refused.
        fleet.edit(|mesh| {
            for node in &mut mesh.nodes {
                node.addresses.extend(node.workloads.iter().map(IpNet::network));
            }
        });
    }
    let members = &fleet.lab.nodes[..NODES.len()];
    fleet.agents = members.iter().map(|node| Agent::start(wireloom(), node).unwrap()).collect();
    fleet.wait("the mesh to be up", |Fleet { lab, .. }| {
        let pods: Vec<_> = lab.nodes[..NODES.len()].iter().map(|node| &node.pods[0]).collect();
        let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to)));
        pairs.filter(|(from, to)| from.name != to.name).all(|(from, to)| {
            let cell = probe(lab.underlay(), from, to, Family::V6, Exchange::Ping).unwrap();
            cell == Cell { reachable: true, wire: Wire::Encrypted }
        })
    });
    fleet
}

fn measure(lab: &Lab, situation: Situation) -> FlowTable {
    let _servers = Servers::start(lab);
    let table = FlowTable::measure(&testbed(lab, situation.network), situation, FLOWS).unwrap();
    println!("{situation}:\n{}", anstream::adapter::strip_str(&table.to_string()));
    table
}

#[test]
fn without_wireloom_every_flow_works() {
    let lab = Lab::new(&LAYOUT).unwrap();
    let table = measure(&lab, situation(false, PodNetwork::Bridge));
    assert_eq!(table.broken(), [""; 0]);
}

#[test]
fn without_wireloom_vxlan_is_plaintext() {
    let lab = Lab::new(&LAYOUT).unwrap();
    connect_by_vxlan(&lab);
    let table = measure(&lab, situation(false, PodNetwork::Vxlan));
    assert_eq!(table.broken(), [""; 0]);
}

/// Measures the table with Wireloom and each `rp_filter`.
fn measure_with_wireloom(network: PodNetwork) {
    for rp_filter in RP_FILTERS {
        println!("rp_filter {rp_filter}:");
        let fleet = fleet(rp_filter, network);
        let table = measure(&fleet.lab, situation(true, network));
        assert_eq!(table.broken(), [""; 0], "rp_filter {rp_filter}");
        nodes_ping_pods(&fleet.lab);
    }
}

/// Every node pings a pod of every other one, with a source that the kernel chooses.
fn nodes_ping_pods(lab: &Lab) {
    let nodes = &lab.nodes[..NODES.len()];
    for (from, to) in nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from, to))) {
        for family in FAMILIES.into_iter().filter(|_| from.name != to.name) {
            let probe = || probe(lab.underlay(), &from.host, &to.pods[0], family, Exchange::Ping).unwrap();
            let what = format!("{} → {}, {family:?}", from.name, to.pods[0].name);
            until(PATIENCE, &what, || probe().reachable.then_some(())).unwrap();
        }
    }
}

#[test]
fn with_wireloom_every_flow_works() {
    measure_with_wireloom(PodNetwork::Bridge);
}

#[test]
fn on_a_masquerading_bridge_every_flow_works() {
    measure_with_wireloom(PodNetwork::MasqueradingBridge);
}

#[test]
fn with_vxlan_every_flow_works() {
    measure_with_wireloom(PodNetwork::Vxlan);
}

#[test]
fn dropped_packets_are_lost_and_a_wrong_server_is_named() {
    let lab = Lab::new(&LAYOUT).unwrap();
    let _servers = Servers::start(&lab);
    let mut testbed = testbed(&lab, PodNetwork::Bridge);
    testbed.headless = place(&lab, "pod-c").addresses;
    let drop = "table inet test { chain forward { type filter hook forward priority 0; \
                ip6 daddr fd00:10:161:2::/64 meta l4proto udp drop; }; }";
    lab.nodes[1].host.space.feed("nft -f -", drop).unwrap();
    let names = ["pod → pod on another node", "pod → endpoint of a headless service"];
    let flows = FLOWS.iter().filter(|flow| names.contains(&flow.name));
    let table = FlowTable::measure(&testbed, situation(false, PodNetwork::Bridge), flows).unwrap();
    let promised =
        "(promised: reachable, direct; without Wireloom, kube-proxy in nftables mode, pods on a bridge)";
    let lost = format!("pod → pod on another node, UDP IPv6: unreachable, direct {promised}");
    let wrong = ["TCP IPv4", "TCP IPv6", "UDP IPv4", "UDP IPv6"].map(|column| {
        format!(
            "pod → endpoint of a headless service, {column}: unreachable, direct, pod-c answered instead of pod-b \
             {promised}"
        )
    });
    assert_eq!(table.broken(), [&[lost][..], &wrong].concat());
}
