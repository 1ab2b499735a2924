//! A machine on the underlay forges packets in plaintext from addresses of workloads: no pod receives them.

use std::{net::UdpSocket, thread, time::Duration};

use wireloom_lab::{
    Addresses, Capture, Content, FAMILIES, Layout, Node, PATIENCE, Place, agent::Agent, at_this_pace, until,
};

use super::{Mode, Watched, reaches};
use crate::{fixtures::fleet::Fleet, wireloom};

/// How long after a proof a peer's plaintext is still taken.
const INGRESS_DELAY: Duration = Duration::from_secs(15);

/// The port that forged datagrams come from and go to.
const PORT: u16 = 4321;
const DATAGRAMS: usize = 10;

/// The source that is not refused.
const OUTSIDE: &str = "outside of the pool";

/// How many datagrams a pod receives of those that a machine sends it from these addresses, over each family. Waits for
/// `expected` over IPv6.
fn received(from: &Node, source: Addresses, to: &Place, expected: usize) -> [usize; 2] {
    for single in source.single() {
        let nodad = if single.addr().is_ipv6() { "nodad" } else { "" };
        from.run(&format!("ip address add {single} dev lo {nodad}")).unwrap();
    }
    let capture = Capture::open(&to.space).unwrap();
    for family in FAMILIES {
        let bind = || UdpSocket::bind((source.of(family), PORT)).unwrap();
        let socket = from.host.space.inside(bind).unwrap();
        for _ in 0..DATAGRAMS {
            let _ = socket.send_to(b"forged", (to.addresses.of(family), PORT));
        }
    }
    // That nothing is received can only be seen by waiting.
    thread::sleep(at_this_pace(Duration::from_millis(100)));
    let mut received = [0; 2];
    let _ = until(PATIENCE, "the datagrams that are not refused", || {
        for packet in capture.drain().unwrap() {
            let forged = Content::Udp { source: PORT, destination: PORT };
            for (family, received) in FAMILIES.into_iter().zip(&mut received) {
                *received += usize::from(packet.content == forged && packet.source == source.of(family));
            }
        }
        (received[1] >= expected).then_some(())
    });
    for single in source.single() {
        from.run(&format!("ip address del {single} dev lo")).unwrap();
    }
    received
}

fn forged_packets_are_refused_in(mode: Mode) {
    let mut fleet = Fleet::without_agents(Layout { nodes: 3, ..Layout::default() }, mode.settings());
    // The third is a machine that the mesh does not know.
    fleet.edit(|mesh| drop(mesh.nodes.pop()));
    fleet.agents = fleet.lab.nodes[..2].iter().map(|node| Agent::start(wireloom(), node).unwrap()).collect();
    let mut watched = Watched::over(fleet, mode);
    watched.settle();
    // The third answers for its own addresses only, and asks in their name.
    let forger = &watched.fleet.lab.nodes[2].host.space;
    forger
        .set_sysctls(&[("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")])
        .unwrap();
    let sources = {
        let [a, b, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
        // Nothing else says when it begins. If it never does, the cases below show it.
        let _ = until(INGRESS_DELAY + PATIENCE, "ingress to be refused", || {
            (received(c, b.pods[0].addresses, &a.pods[0], 0) == [0, 0]).then_some(())
        });
        let nobodys = |last: u8| Addresses {
            v4: [10, 161, 1, last].into(),
            v6: format!("fd00:10:161:1::{last:x}").parse().unwrap(),
        };
        let unclaimed = Addresses { v4: [10, 161, 9, 9].into(), v6: "fd00:10:161:9::9".parse().unwrap() };
        let stranger = Addresses { v4: [203, 0, 113, 9].into(), v6: "2001:db8:113::9".parse().unwrap() };
        [
            ("a peer's pod", b.pods[0].addresses, true),
            ("a peer's node", b.host.addresses, mode == Mode::Host),
            ("the local node's block", nobodys(77), mode == Mode::Reject),
            ("no node's block", unclaimed, mode == Mode::Reject),
            (OUTSIDE, stranger, false),
        ]
    };
    for rp_filter in ["0", "2"] {
        let a = &watched.fleet.lab.nodes[0];
        for interface in ["all", "eth0"] {
            let path = format!("net/ipv4/conf/{interface}/rp_filter");
            a.host.space.set_sysctls(&[(&path, rp_filter)]).unwrap();
        }
        for (name, source, refused) in sources {
            let [a, _, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
            let expected = if name == OUTSIDE { DATAGRAMS } else { 0 };
            let [v4, v6] = received(c, source, &a.pods[0], expected);
            println!(
                "figure: {mode}: forged from {name}, rp_filter {rp_filter}: {v4} of {DATAGRAMS} received over IPv4, \
                 {v6} over IPv6"
            );
            if refused {
                let what = format!("packets forged from {name} are refused with rp_filter {rp_filter}");
                watched.check(&what, [v4, v6] == [0, 0]);
            } else if name == OUTSIDE {
                // Source validation drops what no route leads back to (rp_filter(7), loose mode), of IPv4 only.
                watched.check("packets from outside of the pool pass over IPv6", v6 == DATAGRAMS);
            }
        }
        // From its own address, the same machine reaches the pod.
        let [a, _, c] = &watched.fleet.lab.nodes[..] else { panic!("three nodes") };
        let reached = a.pods[0].addresses.both().iter().all(|pod| {
            until(PATIENCE, "an answer to a ping", || reaches(&c.host, *pod).then_some(())).is_ok()
        });
        watched.check("a machine reaches pods from its own address", reached);
    }
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn forged_packets_reach_no_pod_in_scoped_mode() {
    forged_packets_are_refused_in(Mode::Scoped);
}

#[test]
fn forged_packets_reach_no_pod_in_host_mode() {
    forged_packets_are_refused_in(Mode::Host);
}

#[test]
fn forged_packets_reach_no_pod_with_reject() {
    forged_packets_are_refused_in(Mode::Reject);
}
