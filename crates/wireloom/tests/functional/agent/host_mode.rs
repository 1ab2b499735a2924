//! Host mode without lock-out: exempt addresses, what the agent warns of before, and the way into host mode and back.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use wireloom_lab::{
    Capture, Cell, Content, FAMILIES, Layout, Node, PATIENCE, Packet, Pinger, Place, Promise, Stream, Wire,
    at_this_pace,
    mesh::{KeyPair, write_key, write_settings},
    probe::{Exchange, probe},
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::{
        fleet::{Fleet, run},
        transfer::uninterrupted,
    },
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const ACCEPT: &str = "encrypt_host_traffic = \"accept\"";
const PREFER: &str = "encrypt_host_traffic = \"prefer\"";
const HOST: &str = "encrypt_host_traffic = true";
/// The addresses of the second node.
const EXEMPT: &str = "encrypt_host_traffic = true\n\
                      encrypt_host_exempt = [\"192.168.1.2/32\", \"fd00:192:168:1::2/128\"]";

const ENCRYPTED: Cell = Cell { reachable: true, wire: Wire::Encrypted };
const DIRECT: Cell = Cell { reachable: true, wire: Wire::Direct };

#[test]
fn a_node_that_lost_its_key_is_reached_by_its_exempt_addresses_and_nothing_else_is_in_plaintext() {
    let fleet =
        Fleet::new(Layout { nodes: 3, rp_filter: 1, block_address: true, ..Layout::default() }, EXEMPT);
    fleet.wait_for_proofs();
    fleet.lab.nodes.iter().for_each(|node| fleet.wait_until_done(node));
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    let cases: [(&Place, &Place, Cell); 7] = [
        (&a.host, &b.host, DIRECT),
        (&b.host, &c.host, DIRECT),
        (&a.host, &c.host, ENCRYPTED),
        (&a.pods[0], &b.host, DIRECT),
        (&b.host, &a.pods[0], DIRECT),
        (&a.host, &b.pods[0], ENCRYPTED),
        (&a.pods[0], &b.pods[0], ENCRYPTED),
    ];
    let reach = |from: &Place, to: &Place, family, exchange| {
        probe(fleet.lab.underlay(), from, to, family, exchange).unwrap()
    };
    for family in FAMILIES {
        for (from, to, expected) in cases {
            for exchange in [Exchange::Ping, Exchange::Udp] {
                let what = format!("{} to {} over {family:?}, {exchange:?}", from.name, to.name);
                fleet.wait(&what, |_| reach(from, to, family, exchange) == expected);
            }
        }
    }

    for family in FAMILIES {
        nothing_that_nat_leads_on_is_in_plaintext(&fleet, family);
    }

    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let streams = FAMILIES.map(|family| Stream::start(&a.host, &b.host, family).unwrap());
    write_key(b, &KeyPair::generate(wireloom(), b).unwrap()).unwrap();
    fleet.agents[1].reload().unwrap();
    fleet.wait("node-b to say that its key is another", |_| {
        run(b, "status").1.contains("the membership says")
    });
    for family in FAMILIES {
        // Its device may get the key a moment after `status` has compared it.
        let pods = || reach(&a.pods[0], &b.pods[0], family, Exchange::Ping);
        fleet.wait("node-b to lose its sessions", |_| !pods().reachable);
        let late = Stream::start(&a.host, &b.host, family).unwrap();
        fleet.wait("a new connection to carry data", |_| late.received() > 20_000);
        let report = late.stop().unwrap();
        assert!(report.intact, "{report:?}");
    }
    for stream in streams {
        let report = stream.stop().unwrap();
        println!("figure: with the key replaced: {report:?}");
        assert!(report.intact && report.received == report.sent, "{report:?}");
    }
    let exempt = b.host.addresses.both();
    let is_other = |packet: &&Packet| {
        let encrypted = matches!(packet.content, Content::WireGuard { .. } | Content::Link);
        !encrypted && ![packet.source, packet.destination].iter().any(|end| exempt.contains(end))
    };
    let packets = capture.drain().unwrap();
    println!(
        "figure: {} packets on the underlay, none in plaintext without an exempt address",
        packets.len()
    );
    assert_eq!(packets.iter().find(is_other), None);
}

/// A pod calls a port of the exempt node, and the exempt node calls one of another: both lead to a pod of the third.
fn nothing_that_nat_leads_on_is_in_plaintext(fleet: &Fleet, family: Family) {
    const BACKEND: u16 = 8080;
    let [a, b, c] = &fleet.lab.nodes[..] else { panic!("three nodes") };
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let bind = |place: &Place, port| {
        let socket = place.space.inside(|| UdpSocket::bind((place.addresses.of(family), port)));
        let socket = socket.unwrap().unwrap();
        socket.set_read_timeout(Some(at_this_pace(PATIENCE))).unwrap();
        socket
    };
    let server = bind(&c.pods[0], BACKEND);
    let backend = server.local_addr().unwrap();
    let lead_on = |node: &Node, chain: &str| {
        let ruleset = format!(
            "table {ip} node_port {{\n}}\ndelete table {ip} node_port\ntable {ip} node_port {{\n chain there {{\n \
             type nat hook prerouting priority dstnat\n udp dport 30080 dnat to {backend}\n }}\n {chain}\n}}\n"
        );
        node.host.space.feed("nft -f -", &ruleset).unwrap();
    };
    let capture = Capture::open(fleet.lab.underlay()).unwrap();
    let call = |from: &Place, node: &Node, port, what: &[u8]| {
        let client = bind(from, port);
        client.send_to(what, (node.host.addresses.of(family), 30080)).unwrap();
        client
    };

    // Without masquerading, the third node takes nothing with this source from the exempt node.
    lead_on(b, "");
    call(&a.pods[0], b, 40000, b"as it came");
    // Should routing lead it past the tunnel all the same, the guard refuses it.
    let refused = || {
        b.run(&format!("nft list set inet wireloom refused_out{}", if family == Family::V4 { 4 } else { 6 }))
            .unwrap()
    };
    let before = refused();
    lead_on(
        b,
        &format!(
            "chain past {{\n type filter hook prerouting priority -80\n udp dport {BACKEND} meta mark set 0xa\n }}"
        ),
    );
    call(&a.pods[0], b, 40001, b"past the tunnel");
    fleet.wait("the guard to refuse what is led past the tunnel", |_| refused() != before);

    let masquerade = format!(
        "chain back {{\n type nat hook postrouting priority srcnat\n udp dport {BACKEND} masquerade\n }}"
    );
    for (from, node) in [(&a.pods[0], b), (&b.host, a)] {
        lead_on(node, &masquerade);
        let client = call(from, node, 40002, b"masqueraded");
        let mut buffer = [0; 64];
        let (length, by) = uninterrupted(|| server.recv_from(&mut buffer))
            .unwrap_or_else(|error| panic!("{} by {}: {error}\n{}", from.name, node.name, fleet.counters()));
        assert_eq!(&buffer[..length], b"masqueraded");
        server.send_to(b"reply", by).unwrap();
        let (length, by) = uninterrupted(|| client.recv_from(&mut buffer))
            .unwrap_or_else(|error| panic!("back to {}: {error}\n{}", from.name, fleet.counters()));
        assert_eq!((&buffer[..length], by.port()), (&b"reply"[..], 30080));
        node.run(&format!("nft delete table {ip} node_port")).unwrap();
    }
    let packets = capture.drain().unwrap();
    let is = |packet: &&Packet, port| match packet.content {
        Content::Udp { source, destination } => [source, destination].contains(&port),
        _ => false,
    };
    assert_eq!(packets.iter().find(|packet| is(packet, BACKEND)), None, "{family:?}");
    // There and back, the exempt end is direct: two that were led elsewhere, and both ways of two exchanges.
    assert_eq!(packets.iter().filter(|packet| is(packet, 30080)).count(), 6, "{family:?}: {packets:?}");
}

#[test]
fn a_session_that_host_mode_will_lead_into_the_tunnel_is_named_before_the_proof_and_after() {
    let mut fleet = Fleet::without_agents(Layout::default(), HOST);
    let _sessions = FAMILIES.map(|family| session(&fleet, family));
    fleet.agents = vec![wireloom_lab::agent::Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap()];
    let says = |fleet: &Fleet, what: &str| {
        let status = run(&fleet.lab.nodes[0], "status").1;
        let words = status.split_whitespace().collect::<Vec<_>>().join(" ");
        ["192.168.1.2", "fd00:192:168:1::2"].iter().all(|address| {
            let length = if address.contains(':') { 128 } else { 32 };
            words.contains(&format!(
                "SSH (port 22) with this node from {address}, which {what} through the tunnel only"
            )) && words.contains(&format!("encrypt_host_exempt = [\"{address}/{length}\"]"))
        })
    };
    fleet.wait("a warning before the proof", |fleet| says(fleet, "will be reachable"));
    fleet.agents.push(wireloom_lab::agent::Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.wait("the same after the proof", |fleet| says(fleet, "is reachable"));
    fleet.route(EXEMPT);
    fleet.wait("silence once the addresses are exempt", |fleet| {
        !run(&fleet.lab.nodes[0], "status").1.contains("port 22")
    });
}

/// A connection from the second node to port 22 of the first.
fn session(fleet: &Fleet, family: Family) -> (TcpListener, TcpStream) {
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let address = SocketAddr::new(a.host.addresses.of(family), 22);
    let listener = a.host.space.inside(|| TcpListener::bind(address)).unwrap().unwrap();
    let client = b.host.space.inside(|| TcpStream::connect(address)).unwrap().unwrap();
    (listener, client)
}

/// In three steps, each taken by one node after the other.
#[test]
fn a_fleet_switches_to_host_mode_and_back_node_by_node_without_losing_a_ping() {
    let fleet = Fleet::new(Layout { rp_filter: 1, block_address: true, ..Layout::default() }, SCOPED);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let pairs = [
        ("host → host", &a.host, &b.host),
        ("host → pod", &a.host, &b.pods[0]),
        ("pod → host", &a.pods[0], &b.host),
        ("pod → pod", &a.pods[0], &b.pods[0]),
    ];
    let ping = |(name, from, to): (&'static str, &Place, &Place)| {
        FAMILIES
            .map(|family| (name, family, Pinger::start(from, to, family, Duration::from_millis(10)).unwrap()))
    };
    let pingers: Vec<_> = pairs.into_iter().flat_map(ping).collect();
    for step in [ACCEPT, PREFER, HOST, PREFER, ACCEPT, SCOPED] {
        for node in &fleet.lab.nodes {
            write_settings(node, step).unwrap();
            fleet.wait_until_done(node);
            let before: Vec<_> = pingers.iter().map(|(.., pinger)| pinger.answered()).collect();
            fleet.wait("answers to all pings", |_| {
                pingers.iter().zip(&before).all(|((.., pinger), before)| pinger.answered() > before + 10)
            });
        }
        let promise = if step == HOST || step == PREFER { Promise::HOST } else { Promise::SCOPED };
        fleet.settle(promise);
    }
    pingers.iter().for_each(|(.., pinger)| pinger.end());
    for (name, family, pinger) in pingers {
        let report = pinger.stop().unwrap();
        println!("figure: {name} over {family:?}: {} of {} lost", report.lost, report.sent);
        assert_eq!(report.lost, 0, "{name} over {family:?}: {report:?}\n{}", fleet.counters());
    }
}
