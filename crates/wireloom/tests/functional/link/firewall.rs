//! The firewall that the agent keeps on a link: a peer sends from its own addresses and from no other
//! (`source_check = "firewall"`, the default with `peer_lookup = "gateway"`).

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use serde_json::Value;
use wireloom_lab::{
    Layout, Node, PATIENCE, PingReport, Pinger, Place, Promise,
    agent::{self, Agent},
    routing, until,
};
use wireloom_plan::routing::Family;
use wireloom_types::LinkAddress;

use crate::{
    fixtures::device::request,
    fixtures::fleet::{Fleet, LONG, run},
    fixtures::link::assert_unreachable_at_once,
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false\n\n[link]\npeer_lookup = \"gateway\"";
const HOST: &str = "encrypt_host_traffic = true\n\n[link]\npeer_lookup = \"gateway\"";
const OFF: &str = "encrypt_host_traffic = false\n\n[link]\npeer_lookup = \"gateway\"\nsource_check = \"off\"";

/// Addresses that no peer may send from, with the lengths of their prefixes.
const FORGED: [(&str, u8); 2] = [("203.0.113.5", 32), ("2001:db8:113::5", 128)];

/// Starts a fleet whose nodes have addresses on the link: 100.64.0.1 and fd64::1, and so on.
fn fleet(layout: Layout, routing: &str) -> Fleet {
    let mut fleet = Fleet::without_agents(layout, routing);
    fleet.edit(|mesh| {
        for (number, member) in (1..).zip(&mut mesh.nodes) {
            let declared = [format!("100.64.0.{number}"), format!("fd64::{number}")];
            member.link_addresses = declared.map(|address| address.parse().unwrap()).to_vec();
        }
    });
    fleet.start();
    fleet
}

fn status(node: &Node) -> Value {
    let (_, output, errors) = run(node, "status --json");
    serde_json::from_str(&output).unwrap_or_else(|_| panic!("{output}{errors}"))
}

/// Packets of a peer that a node has refused, as `wireloom status` tells.
fn refused(node: &Node, peer: &Node) -> u64 {
    let status = status(node);
    let peers = status["peers"].as_array().unwrap();
    let found = peers.iter().find(|found| found["name"] == peer.name.as_str());
    found.and_then(|found| found["refused_source"].as_u64()).unwrap_or_else(|| panic!("{status:#}"))
}

/// Waits until a node has refused this many packets of a peer, and asserts that it has not refused more.
#[track_caller]
fn assert_refused(fleet: &Fleet, [node, peer]: [&Node; 2], packets: u64) {
    fleet.wait("the forged packets to be refused", |_| refused(node, peer) >= packets);
    assert_eq!(refused(node, peer), packets);
}

/// Asserts that no node has refused any packet.
#[track_caller]
fn assert_nothing_refused(fleet: &Fleet) {
    for node in &fleet.lab.nodes {
        let status = status(node);
        let peers = status["peers"].as_array().unwrap();
        assert_eq!(peers.len(), fleet.lab.nodes.len() - 1);
        assert!(peers.iter().all(|peer| peer["refused_source"] == 0), "{} {status:#}", node.name);
        assert_eq!(status["refused_strangers"], 0, "{} {status:#}", node.name);
    }
}

/// Gives a node the addresses that no peer may send from.
fn take_forged(node: &Node) {
    for (address, length) in FORGED {
        let nodad = if length == 128 { "nodad" } else { "" };
        node.run(&format!("ip address add {address}/{length} dev lo {nodad}")).unwrap();
    }
}

/// Sends one packet from each forged address; nobody answers.
fn forge(node: &Node, to: [&str; 2]) {
    for ((source, _), to) in FORGED.iter().zip(to) {
        let _ = node.run(&format!("ping -c 1 -W 1 -I {source} {to}"));
    }
}

/// Makes a node count what arrives from the forged addresses.
fn watch(node: &Node) {
    let rules = "table inet seen {\n chain input {\n type filter hook input priority 0\n \
                 iifname wg0 ip saddr 203.0.113.5 counter\n \
                 iifname wg0 ip6 saddr 2001:db8:113::5 counter\n }\n }\n";
    node.host.space.feed("nft -f -", rules).unwrap();
}

/// Whether this many packets have arrived from each forged address.
fn seen(node: &Node, packets: u64) -> bool {
    let shown = node.run("nft list table inet seen").unwrap();
    shown.matches(&format!("counter packets {packets} ")).count() == 2
}

/// The agent's nftables table, or nothing.
fn table(node: &Node) -> String {
    node.run("nft list table inet wireloom").unwrap_or_default()
}

/// What the table has, one text for each chain, set and counter, in any order, whatever has been counted.
fn contents(node: &Node) -> Vec<String> {
    let without_counts = |block: &str| {
        let mut words: Vec<&str> = block.split_whitespace().collect();
        for place in 1..words.len() {
            if let "packets" | "bytes" = words[place - 1] {
                words[place] = "n";
            }
        }
        words.join(" ")
    };
    let table = table(node);
    let inside = table.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
    let mut blocks: Vec<String> =
        inside.map_or("", |(inside, _)| inside).split("\n\n").map(without_counts).collect();
    blocks.sort_unstable();
    blocks
}

/// Whether the agent has nothing left to change.
fn is_done(node: &Node) -> bool {
    run(node, "plan").0 == 0
}

#[test]
fn the_matrix_holds_in_scoped_and_host_mode_and_no_packet_is_refused() {
    let fleet = fleet(Layout { nodes: 3, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    assert_nothing_refused(&fleet);
    fleet.route(HOST);
    fleet.settle(Promise::HOST);
    fleet.route(SCOPED);
    fleet.settle(Promise::SCOPED);
}

#[test]
fn the_matrix_holds_in_host_mode_with_strict_source_validation_everywhere() {
    let layout = Layout { rp_filter: 1, block_address: true, ..Layout::default() };
    let fleet = fleet(layout, HOST);
    fleet.settle(Promise::HOST);
    assert_nothing_refused(&fleet);
    fleet.route(SCOPED);
    fleet.settle(Promise::SCOPED);
}

#[test]
fn a_forged_source_is_refused_and_counted_for_its_peer_unless_the_check_is_off() {
    let fleet = fleet(Layout { nodes: 3, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    watch(a);
    take_forged(b);
    forge(b, ["100.64.0.1", "fd64::1"]);
    assert_refused(&fleet, [a, b], 2);
    assert_eq!(refused(a, c), 0);
    assert!(seen(a, 0));
    let (_, shown, _) = run(a, "status");
    assert!(shown.contains("the firewall checks sources") && shown.contains("  2 source"), "{shown}");

    // The address of another peer's pod: only that peer may send from it.
    let stolen = c.pods[0].addresses;
    for (source, to) in stolen.single().into_iter().zip(["100.64.0.1", "fd64::1"]) {
        b.run(&format!("ip address add {source} dev lo nodad")).unwrap();
        let _ = b.run(&format!("ping -c 1 -W 1 -I {} {to}", source.addr()));
        b.run(&format!("ip address del {source} dev lo")).unwrap();
    }
    assert_refused(&fleet, [a, b], 4);
    assert_eq!(refused(a, c), 0);

    fleet.route(OFF);
    let checks = |node| table(node).contains("chain judge_sources");
    fleet.wait("the check to be off", |_| is_done(a) && !checks(a));
    forge(b, ["100.64.0.1", "fd64::1"]);
    fleet.wait("the forged packets to arrive", |_| seen(a, 1));
    let (_, shown, _) = run(a, "status");
    assert!(shown.contains("sources are not checked") && !shown.contains(" source\n"), "{shown}");

    fleet.route(SCOPED);
    fleet.wait("the check to be on again", |_| is_done(a) && checks(a));
    forge(b, ["100.64.0.1", "fd64::1"]);
    assert_refused(&fleet, [a, b], 2);
    assert!(seen(a, 1));
    fleet.settle(Promise::SCOPED);
}

/// Workloads come and go, blocks get holes and lose them, the agents restart and the mode changes. Meanwhile no
/// packet from an allowed source is lost, and no counter starts again.
#[test]
fn changes_of_workloads_agents_and_mode_lose_neither_packets_nor_counts() {
    let mut fleet = fleet(Layout { nodes: 3, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    {
        let [a, b, _] = &fleet.lab.nodes[..] else { panic!("three nodes") };
        take_forged(b);
        forge(b, ["100.64.0.1", "fd64::1"]);
        assert_refused(&fleet, [a, b], 2);
    }
    let pods: Vec<&Place> = fleet.lab.nodes.iter().map(|node| &node.pods[0]).collect();
    let start = |family| Pinger::start(pods[1], pods[0], family, Duration::from_millis(5)).unwrap();
    let pingers = [Family::V4, Family::V6].map(start);
    let settled = |fleet: &Fleet| {
        fleet.lab.nodes.iter().for_each(|node| fleet.wait_until_done(node));
    };
    // The last address of each of the second node's blocks, which none of its pods has.
    let lent = fleet.mesh.nodes[1].workloads.clone().into_iter().map(|block| block.broadcast());
    let lent: Vec<_> = lent.map(ipnet::IpNet::from).collect();
    for round in 0..3 {
        let before = fleet.mesh.clone();
        fleet.mesh.nodes[2].workloads.extend(&lent);
        fleet.mesh.nodes[1].workloads.push(format!("10.200.{round}.0/24").parse().unwrap());
        fleet.mesh.write(&fleet.lab).unwrap();
        settled(&fleet);
        assert!(table(&fleet.lab.nodes[0]).contains("-10.161.2.254"), "a block with a hole");
        fleet.mesh = before;
        fleet.mesh.write(&fleet.lab).unwrap();
        settled(&fleet);
    }
    fleet.agents.drain(..).for_each(|agent| assert!(agent.terminate().unwrap().success()));
    fleet.agents = fleet.lab.nodes.iter().map(|node| Agent::start(wireloom(), node).unwrap()).collect();
    settled(&fleet);
    for routing in [HOST, SCOPED] {
        fleet.route(routing);
        settled(&fleet);
    }
    for pinger in pingers {
        let PingReport { sent, lost, .. } = pinger.stop().unwrap();
        // How many there were depends on the machine's speed.
        assert!(sent > 10 && lost == 0, "{lost} of {sent} lost\n{}", fleet.counters());
    }
    let [a, b, _] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    let counted = refused(a, b);
    assert!(counted >= 2, "{counted}");
}

#[test]
fn whatever_somebody_does_to_the_table_is_repaired_at_once() {
    let fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    watch(a);
    take_forged(b);
    fleet.wait_until_done(a);
    let good = contents(a);
    for line in [
        "nft delete table inet wireloom",
        "nft flush chain inet wireloom judge_sources",
        "nft flush set inet wireloom sources4",
        "nft flush set inet wireloom refused",
        "nft add element inet wireloom sources4 { 02:00:00:00:00:01 . 10.0.0.0/8 }",
        "nft insert rule inet wireloom judge_sources accept",
        "nft add chain inet wireloom stranger",
    ] {
        let begun = Instant::now();
        a.run(line).unwrap();
        fleet.wait(&format!("the table to be as it was before `{line}`"), |_| contents(a) == good);
        let took = begun.elapsed();
        assert!(took < ANNOUNCED, "{line}: repaired after {took:?}, by the periodic pass");
    }
    fleet.settle(Promise::SCOPED);
    forge(b, ["100.64.0.1", "fd64::1"]);
    assert_refused(&fleet, [a, b], 2);
    assert!(seen(a, 0));
}

/// What the kernel announces is repaired within this: well below the 30 s between two periodic passes of the agent.
const ANNOUNCED: Duration = Duration::from_secs(20);

#[test]
fn the_devices_own_errors_and_answers_pass_the_firewall() {
    let fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let a = &fleet.lab.nodes[0];
    // Nobody has these addresses: the device itself answers for them, and then says that they are unreachable.
    a.run("ip route add 198.51.100.0/24 dev wg0").unwrap();
    a.run("ip -6 route add 2001:db8:51::/64 dev wg0").unwrap();
    for nobody in ["198.51.100.9", "2001:db8:51::9"] {
        assert_unreachable_at_once(a, nobody.parse().unwrap());
    }
    assert_nothing_refused(&fleet);

    // A packet that is too long for the path to the peer.
    let peer: String = fleet.mesh.nodes[1].public_key.clone().unwrap();
    let hex: String = {
        use base64ct::{Base64, Encoding as _};
        Base64::decode_vec(&peer).unwrap().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let change = format!("set=1\npublic_key={hex}\nupdate_only=true\npath_mtu=1360\n\n");
    assert_eq!(request(a, &change), "errno=0\n\n");
    for to in ["100.64.0.2", "fd64::2"] {
        let shown =
            a.host.space.feed("sh", &format!("ping -M do -c 2 -W 1 -s 1372 {to} 2>&1 || true")).unwrap();
        let told =
            shown.contains("Frag needed") || shown.contains("message too long") || shown.contains("mtu");
        assert!(told, "{shown}");
    }
    assert_nothing_refused(&fleet);
}

/// No list of sources has a router beyond a peer. The errors that it sends about a packet must arrive all the same.
#[test]
fn errors_of_routers_beyond_a_peer_pass_the_firewall() {
    let fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    take_forged(b);
    let (from, to) = (a.pods[0].addresses, b.pods[0].addresses);
    b.run(&format!("ip route add {}/32 via 100.64.0.1 dev wg0 src 203.0.113.5", from.v4)).unwrap();
    b.run(&format!("ip -6 route add {}/128 via fd64::1 dev wg0 src 2001:db8:113::5", from.v6)).unwrap();
    for (to, router) in [(IpAddr::from(to.v4), "203.0.113.5"), (to.v6.into(), "2001:db8:113::5")] {
        // Its TTL takes it to the other node, and no further.
        let mut shown = String::new();
        let heard = until(PATIENCE, "the router's error", || {
            shown = a.pods[0].space.feed("sh", &format!("ping -c 1 -W 2 -t 2 {to} || true")).unwrap();
            shown.contains(&format!("From {router}")).then_some(())
        });
        assert!(heard.is_ok(), "{shown}");
    }
    assert_nothing_refused(&fleet);
}

/// Gives a node a network, on an interface of this name, which the others can learn of from routing daemons only.
fn serve(node: &Node, interface: &str, address: &str) {
    let nodad = if address.contains(':') { "nodad" } else { "" };
    for line in [
        format!("ip link add {interface} type veth peer name {interface}-far"),
        format!("ip address add {address} dev {interface} {nodad}"),
        format!("ip link set {interface}-far up"),
        format!("ip link set {interface} up"),
    ] {
        node.run(&line).unwrap();
    }
}

/// Packets from a prefix that a routing daemon learnt pass when the mesh file declares it.
#[test]
fn ospf_runs_over_a_link_whose_sources_are_checked() {
    let mut fleet = fleet(Layout::default(), SCOPED);
    // A network behind the second node, to which only OSPF knows the route.
    let learnt: ipnet::IpNet = "fd00:99::/64".parse().unwrap();
    fleet.edit(|mesh| mesh.nodes[1].workloads.push(learnt));
    fleet.settle(Promise::SCOPED);
    serve(&fleet.lab.nodes[1], "lan9", "fd00:99::1/64");
    for (number, node) in (1..).zip(&fleet.lab.nodes) {
        let configuration = format!(
            "router id 10.0.0.{number};\nprotocol device {{ }}\nprotocol direct {{ ipv6; }}\n\
             protocol kernel {{ ipv6 {{ export where source != RTS_DEVICE; }}; }}\n\
             protocol ospf v3 {{ ipv6 {{ export none; }}; area 0 {{\n\
             interface \"wg0\" {{ hello 1; dead count 4; }}; interface \"lan*\" {{ stub; }}; }}; }}\n"
        );
        routing::bird(node, &configuration).unwrap();
    }
    routing::learn(&fleet.lab.nodes[0], learnt).unwrap();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    b.run("ping -c 1 -W 5 -I fd00:99::1 fd64::1").unwrap();
    a.run("ping -c 1 -W 5 fd00:99::1").unwrap();
    assert_nothing_refused(&fleet);
}

/// BGP between `fe80::` addresses brings IPv4 routes by IPv6 next hops. A prefix that the mesh file does not declare
/// is learnt as well, but packets from it are refused.
#[test]
fn bgp_runs_between_link_local_addresses_on_a_link_whose_sources_are_checked() {
    let mut fleet = fleet(Layout::default(), SCOPED);
    let [declared, undeclared] = ["10.99.0.0/24", "10.98.0.0/24"].map(|net| net.parse().unwrap());
    fleet.edit(|mesh| mesh.nodes[1].workloads.push(declared));
    fleet.settle(Promise::SCOPED);
    serve(&fleet.lab.nodes[1], "lan9", "10.99.0.1/24");
    serve(&fleet.lab.nodes[1], "lan8", "10.98.0.1/24");
    let link_locals = fleet.keys.iter().map(|key| LinkAddress::of(key.public.parse().unwrap()).link_local());
    let link_locals: Vec<_> = link_locals.collect();
    for (number, node) in (1..=2).zip(&fleet.lab.nodes) {
        let (other, neighbour) = (3 - number, link_locals[2 - number]);
        let configuration = format!(
            "router id 10.0.0.{number};\nprotocol device {{ }}\n\
             protocol direct {{ ipv4; interface \"lan*\"; }}\n\
             protocol kernel {{ ipv4 {{ export where source = RTS_BGP; }}; }}\n\
             protocol bgp {{ local as 6500{number}; neighbor {neighbour} as 6500{other}; interface \"wg0\";\n\
             connect delay time 1; connect retry time 2;\n\
             ipv4 {{ import all; export all; next hop self; extended next hop on; }}; }}\n"
        );
        routing::bird(node, &configuration).unwrap();
    }
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    for learnt in [declared, undeclared] {
        routing::learn(a, learnt).unwrap();
        let shown = a.run(&format!("ip -4 route show {learnt}")).unwrap();
        assert!(shown.contains(&format!("via inet6 {} dev wg0", link_locals[1])), "{shown}");
    }
    a.run("ping -c 1 -W 5 10.99.0.1").unwrap();
    b.run("ping -c 1 -W 5 -I 10.99.0.1 100.64.0.1").unwrap();
    assert_nothing_refused(&fleet);
    let _ = b.run("ping -c 1 -W 1 -I 10.98.0.1 100.64.0.1");
    assert_refused(&fleet, [a, b], 1);
}

#[test]
fn down_removes_the_firewall_last() {
    let mut fleet = fleet(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    for agent in fleet.agents.drain(..) {
        assert!(agent.terminate().unwrap().success());
    }
    let node = &fleet.lab.nodes[0];
    assert!(!table(node).is_empty(), "packets flow on, and their sources are checked");
    let told = agent::down(wireloom(), node).unwrap();
    let position = |what: &str| told.find(what).unwrap_or_else(|| panic!("{what}: {told}"));
    assert!(position("remove wg0") < position("remove the nftables table"), "{told}");
    assert_eq!(node.run("nft list tables").unwrap(), "");
    // What an agent would do now, as JSON.
    let (code, told, errors) = run(node, "plan --json");
    assert_eq!(code, 2, "{errors}");
    let plan: Value = serde_json::from_str(&told).unwrap();
    let ops: Vec<&str> = plan["ops"].as_array().unwrap().iter().filter_map(|op| op["op"].as_str()).collect();
    assert!(ops.contains(&"set_firewall") && ops.contains(&"replace_sources"), "{ops:?}");
}

/// Each has four CIDRs and two addresses on the link, one of them its `fe80::` address.
#[test]
fn the_sources_of_two_thousand_peers_are_programmed_and_one_of_them_changed() {
    // An ordinary user's netlink socket takes 416 KiB in one transaction (twice `net.core.wmem_max`, netlink(7)): the
    // sources of about 400 peers.
    let uids = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let peers: u32 = if uids.trim_end().ends_with(&u32::MAX.to_string()) { 2_000 } else { 100 };
    let mut fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    fleet.patience = LONG;
    fleet.edit(|mesh| {
        let own = mesh.nodes[0].clone();
        for number in 1..=peers {
            let [.., c, d] = number.to_be_bytes();
            let mut key = [7; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            let mut peer = own.clone();
            peer.name = format!("peer-{number}");
            peer.public_key = Some(wireloom_types::PublicKey::from_bytes(key).to_string());
            peer.endpoint = Some(SocketAddr::from(([172, 16, c, d], 51820)));
            peer.addresses = Vec::new();
            peer.workloads = [
                format!("10.{}.{d}.0/24", 200 + c),
                format!("10.{}.{d}.0/25", 170 + c),
                format!("fd61:1:{number:x}::/64"),
                format!("fd61:2:{number:x}::/64"),
            ]
            .map(|block| block.parse().unwrap())
            .to_vec();
            peer.link_addresses = vec![format!("100.65.{c}.{d}").parse().unwrap()];
            mesh.nodes.push(peer);
        }
    });
    let begun = Instant::now();
    fleet.start();
    let node = &fleet.lab.nodes[0];
    let count = |set: &str, sign: &str| {
        node.run(&format!("nft list set inet wireloom {set}")).map_or(0, |shown| shown.matches(sign).count())
    };
    fleet.wait("all peers", |_| count("refused", "counter packets") == peers as usize);
    println!(
        "the sources of {peers} peers are checked {} ms after the agent's start",
        begun.elapsed().as_millis()
    );
    fleet.wait_until_done(node);
    for set in ["sources4", "sources6"] {
        // The declaration of the set's type has the same sign once.
        assert_eq!(count(set, " . "), 3 * peers as usize + 1);
    }

    let changed: ipnet::IpNet = "10.250.77.0/24".parse().unwrap();
    fleet.mesh.nodes[77].workloads[0] = changed;
    let begun = Instant::now();
    fleet.mesh.write(&fleet.lab).unwrap();
    let node = &fleet.lab.nodes[0];
    let peer =
        run(node, &format!("key link-address {}", fleet.mesh.nodes[77].public_key.as_ref().unwrap())).1;
    let get = format!("nft get element inet wireloom sources4 {{ {} . 10.250.77.1 }}", peer.trim());
    fleet.wait("the changed source", |_| node.host.space.run(&get).is_ok());
    println!("one changed peer after {} ms", begun.elapsed().as_millis());
    fleet.wait_until_done(node);
}
