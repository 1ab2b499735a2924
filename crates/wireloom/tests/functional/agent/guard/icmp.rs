//! An ICMP error quotes what it is about. About a packet that came through the tunnel, it goes back through the tunnel
//! or not at all. Where it has a source that the tunnel carries, path MTU discovery works.

use std::{
    fmt,
    net::{TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use wireloom_lab::{Addresses, FAMILIES, Layout, Node, PATIENCE, Place, at_this_pace, until};
use wireloom_plan::routing::Family;

use super::{Mode, Watched, carries_streams};
use crate::fixtures::fleet::Fleet;

/// The MTU of the bridge to the pods behind the tunnel, in bytes. The pods know nothing of it, so that only errors can
/// tell: they would announce a lower MTU of their own as their segment size.
const BRIDGE_MTU: u32 = 1300;

/// The time between two datagrams.
const PAUSE: Duration = Duration::from_millis(5);

/// How long to wait for a refusal.
const CONNECT: Duration = Duration::from_millis(500);

/// Which of its addresses a node can give to errors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// One that the mesh declares to be its address inside the tunnel.
    Declared,
    /// That of the bridge to its pods, which lies in its workloads.
    Bridge,
    /// Its own only, which lies outside of its workloads.
    Node,
}

impl Source {
    /// A fleet whose nodes have such an address, both families of it, without agents.
    fn fleet(self, mode: Mode) -> Fleet {
        let layout = Layout { block_address: self == Self::Bridge, ..Layout::default() };
        let mut fleet = Fleet::without_agents(layout, mode.settings());
        if self == Self::Declared {
            fleet.edit(|mesh| {
                for (n, node) in mesh.nodes.iter_mut().enumerate() {
                    node.tunnel_addresses = inside_the_tunnel(n).both().to_vec();
                }
            });
        }
        fleet
    }

    /// Whether the tunnel carries what comes from there.
    fn is_carried_in(self, mode: Mode) -> bool {
        self != Self::Node || mode == Mode::Host
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Declared => "declared tunnel addresses",
            Self::Bridge => "the bridge's addresses",
            Self::Node => "the nodes' addresses only",
        })
    }
}

/// The first address of the block of a node's pods: no pod has it, and with [`Layout::block_address`] the bridge does.
fn inside_the_tunnel(node: usize) -> Addresses {
    let n = node + 1;
    Addresses {
        v4: format!("10.161.{n}.1").parse().unwrap(),
        v6: format!("fd00:10:161:{n}::1").parse().unwrap(),
    }
}

/// Whether the WireGuard interface has these addresses.
fn has_on_the_tunnel(node: &Node, addresses: Addresses) -> bool {
    let shown = node.run("ip -o address show dev wg0").unwrap();
    addresses.single().iter().all(|single| shown.contains(&format!(" {single} ")))
}

/// Whether the main table has a route by the WireGuard interface.
fn routes_by_the_tunnel_in_main(node: &Node) -> bool {
    ["-4", "-6"].iter().any(|family| {
        !node.run(&format!("ip {family} route show table main dev wg0")).unwrap().trim().is_empty()
    })
}

/// How many errors a node's guard has refused.
fn refused(node: &Node) -> u64 {
    let shown = node.run("nft list counter inet wireloom errors_refused").unwrap();
    let packets = shown.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).unwrap_or_else(|| panic!("a counter: {shown}"))
}

/// Sends pings of this many bytes, IP header included, that nobody may fragment, with more options of `ping`.
fn pings(from: &Place, to: &Place, length: u32, options: &str) {
    for family in FAMILIES {
        let payload = length - if family == Family::V4 { 28 } else { 48 };
        let to = to.addresses.of(family);
        let line = format!("ping -n -q -M do -c 10 -i 0.02 -W 0.2 -s {payload} {options} {to}");
        // They need not be answered.
        let _ = from.space.run(&line);
    }
}

fn set_bridge_mtu(node: &Node, mtu: u32) {
    node.run(&format!("ip link set cni0 mtu {mtu}")).unwrap();
}

/// Over how many families a pod has learnt the path MTU to another.
fn families_that_know_the_mtu(from: &Place, to: &Place) -> usize {
    let know = FAMILIES.iter().filter(|family| {
        let shown = from.space.run(&format!("ip route get {}", to.addresses.of(**family))).unwrap();
        shown.contains(&format!("mtu {BRIDGE_MTU} "))
    });
    know.count()
}

/// Makes a node refuse what comes out of the tunnel for UDP and TCP port 9 of its pods.
fn reject(node: &Node, with: &str) {
    let table = format!(
        "table inet stranger {{ chain forward {{ type filter hook forward priority 0\n \
         iifname wg0 meta l4proto {{ tcp, udp }} th dport 9 {with}\n }}\n }}\n"
    );
    node.host.space.feed("nft -f -", &table).unwrap();
}

/// Sends datagrams to UDP port 9 of a pod.
fn send_to_port_9(from: &Place, to: &Place) {
    for address in to.addresses.both() {
        let bind = |any: &str| UdpSocket::bind(any).unwrap();
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.space.inside(|| bind(any)).unwrap();
        for _ in 0..10 {
            // The answer to the one before may be here already.
            let _ = socket.send_to(b"hello", (address, 9));
            // A device hands on as one what comes at once.
            thread::sleep(PAUSE);
        }
    }
}

/// Tries to connect to TCP port 9 of a pod.
fn connect_to_port_9(from: &Place, to: &Place) {
    for address in to.addresses.both() {
        let connect = || TcpStream::connect_timeout(&(address, 9).into(), at_this_pace(CONNECT));
        assert!(from.space.inside(connect).unwrap().is_err(), "nobody listens");
    }
}

fn ends(fleet: &Fleet) -> (&Place, &Place) {
    (&fleet.lab.nodes[0].pods[0], &fleet.lab.nodes[1].pods[0])
}

fn errors_leak_nothing_in(mode: Mode, source: Source) {
    let mut fleet = source.fleet(mode);
    fleet.start();
    let mut watched = Watched::over(fleet, mode);
    watched.title = format!("{mode}, {source}");
    // Every error counts.
    for node in &watched.fleet.lab.nodes {
        let all = [("net/ipv4/icmp_ratemask", "0"), ("net/ipv6/icmp/ratelimit", "0")];
        node.host.space.set_sysctls(&all).unwrap();
    }
    watched.settle();
    if source != Source::Node {
        let nodes = &watched.fleet.lab.nodes;
        let have = nodes.iter().enumerate().all(|(n, node)| has_on_the_tunnel(node, inside_the_tunnel(n)));
        watched.check("wg0 has the address inside the tunnel of both families", have);
    }
    let none = !watched.fleet.lab.nodes.iter().any(routes_by_the_tunnel_in_main);
    watched.check("no route in the main table leads to wg0", none);
    watched.case(
        "packets too big for the bridge",
        |fleet| {
            set_bridge_mtu(&fleet.lab.nodes[1], BRIDGE_MTU);
            let (from, to) = ends(fleet);
            pings(from, to, 1320, "");
        },
        |_, ()| {},
    );
    let (from, to) = ends(&watched.fleet);
    let know = || families_that_know_the_mtu(from, to);
    if source.is_carried_in(mode) {
        let both = || (know() == FAMILIES.len()).then_some(());
        let both = until(PATIENCE, "the path MTU", both).is_ok();
        watched.check("the path MTU is learnt over both families", both);
        streams_find_the_path_mtu(&mut watched);
    } else {
        let all = || (refused(&watched.fleet.lab.nodes[1]) >= 20).then_some(());
        let (all, none) = (until(PATIENCE, "all to be refused", all).is_ok(), know() == 0);
        watched.check("errors about ten pings of each family are refused", all);
        watched.check("the path MTU is learnt over neither family", none);
        set_bridge_mtu(&watched.fleet.lab.nodes[1], 1500);
    }
    other_errors_leak_nothing(&mut watched);
    if source.is_carried_in(mode) {
        let none = watched.fleet.lab.nodes.iter().all(|node| refused(node) == 0);
        watched.check("no error is refused", none);
    }
    watched.settle();
    watched.assert_no_fault();
}

/// Starts streams over both families from a pod that has forgotten the path MTU, and undoes the bridge's.
fn streams_find_the_path_mtu(watched: &mut Watched) {
    let flush = |fleet: &Fleet| {
        for family in ["-4", "-6"] {
            ends(fleet).0.space.run(&format!("ip {family} route flush cache")).unwrap();
        }
    };
    flush(&watched.fleet);
    let mut carried = false;
    watched.case(
        "streams of segments too big for the bridge",
        |fleet| {
            let (from, to) = ends(fleet);
            carried = carries_streams(from, to);
        },
        |fleet, ()| {
            set_bridge_mtu(&fleet.lab.nodes[1], 1500);
            flush(fleet);
        },
    );
    watched.check("streams find the path MTU", carried);
}

fn other_errors_leak_nothing(watched: &mut Watched) {
    watched.case(
        "TTL exceeded behind the tunnel",
        |fleet| {
            let (from, to) = ends(fleet);
            pings(from, to, 100, "-t 2");
        },
        |_, ()| {},
    );
    let gone = watched.fleet.lab.lend_address(1, 99, 1).unwrap();
    let last = watched.fleet.lab.nodes[1].pods.len() - 1;
    watched.case(
        "a pod whose interface is gone, its route with it",
        |fleet| {
            let node = &fleet.lab.nodes[1];
            for (single, family) in gone.single().iter().zip(["-4", "-6"]) {
                node.run(&format!("ip {family} route del {single} dev cni0")).unwrap();
            }
            pings(ends(fleet).0, &node.pods[last], 100, "");
        },
        |_, ()| {},
    );
    watched.case(
        "a pod that no longer answers, its route still there",
        |fleet| {
            let node = &fleet.lab.nodes[1];
            // Three solicitations, 50 ms apart.
            for family in ["ipv4", "ipv6"] {
                let path = format!("net/{family}/neigh/cni0/retrans_time_ms");
                node.host.space.set_sysctls(&[(&path, "50")]).unwrap();
            }
            node.pods[last].space.run("ip link set eth0 down").unwrap();
            for single in gone.single() {
                node.run(&format!("ip route replace {single} dev cni0")).unwrap();
                node.run(&format!("ip neigh flush to {single} dev cni0")).unwrap();
            }
            pings(ends(fleet).0, &node.pods[last], 100, "");
        },
        |_, ()| {},
    );
    for with in ["reject", "reject with icmpx admin-prohibited"] {
        watched.case(
            &format!("a firewall's `{with}`"),
            |fleet| {
                reject(&fleet.lab.nodes[1], with);
                let (from, to) = ends(fleet);
                send_to_port_9(from, to);
            },
            |fleet, ()| drop(fleet.lab.nodes[1].run("nft delete table inet stranger").unwrap()),
        );
    }
    watched.case(
        "a firewall's `reject with tcp reset`",
        |fleet| {
            reject(&fleet.lab.nodes[1], "meta l4proto tcp reject with tcp reset");
            let (from, to) = ends(fleet);
            connect_to_port_9(from, to);
        },
        |fleet, ()| drop(fleet.lab.nodes[1].run("nft delete table inet stranger").unwrap()),
    );
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_in_scoped_mode() {
    errors_leak_nothing_in(Mode::Scoped, Source::Declared);
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_in_host_mode() {
    errors_leak_nothing_in(Mode::Host, Source::Node);
}

#[test]
fn errors_about_decrypted_packets_are_not_in_plaintext_with_reject() {
    errors_leak_nothing_in(Mode::Reject, Source::Declared);
}

#[test]
fn errors_have_the_address_of_the_bridge_where_none_is_declared() {
    errors_leak_nothing_in(Mode::Scoped, Source::Bridge);
}

#[test]
fn errors_that_nothing_leads_into_the_tunnel_are_refused_in_scoped_mode() {
    errors_leak_nothing_in(Mode::Scoped, Source::Node);
}

#[test]
fn errors_that_nothing_leads_into_the_tunnel_are_refused_with_reject() {
    errors_leak_nothing_in(Mode::Reject, Source::Node);
}
