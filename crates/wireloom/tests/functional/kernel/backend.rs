//! The kernel's WireGuard as the agent's back end: when it is chosen, and what a switch costs.

use std::{collections::BTreeSet, time::Duration};

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::TimeVal,
    utsname::uname,
};
use wireloom_lab::{
    Capture, Content, FAMILIES, Layout, Node, PATIENCE, Packet, PingReport, Pinger, Promise,
    agent::{self, Agent},
    at_this_pace,
    mesh::SETTINGS,
};
use wireloom_plan::routing::Family;

use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// A new device greets its peers, so no peer has to wait for a timer. The shortest of those takes 15 s
/// (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, section 6.2 of the WireGuard paper).
const BEFORE_ANY_TIMER: Duration = Duration::from_secs(14);

/// From include/uapi/linux/rtnetlink.h.
const RTNLGRP_LINK: u32 = 1;

fn take(node: &Node, backend: &str) {
    let settings = format!("node = \"{}\"\n[wireguard]\nbackend = \"{backend}\"\n", node.name);
    node.host.space.write(SETTINGS, &settings).unwrap();
}

fn is_kernels(node: &Node) -> bool {
    node.run("ip -d link show wg0").is_ok_and(|shown| shown.contains("wireguard"))
}

fn is_userspaces(node: &Node) -> bool {
    node.run("ip -d link show wg0").is_ok_and(|shown| shown.contains("tun"))
}

/// Key, port, mark and peers with their allowed-IPs, as `wg` shows them.
fn configuration(node: &Node) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    for what in ["public-key", "listen-port", "fwmark", "allowed-ips", "persistent-keepalive"] {
        for line in node.run(&format!("wg show wg0 {what}")).unwrap_or_default().lines() {
            let words: BTreeSet<_> = line.split_whitespace().collect();
            told.insert(format!("{what} {words:?}"));
        }
    }
    told
}

/// Pings between the first two nodes' pods, over both families, while `action` is done.
fn pings_during(fleet: &Fleet, action: impl FnOnce()) -> Vec<PingReport> {
    let [a, b] = &fleet.lab.nodes[..] else { panic!("two nodes") };
    let start = |family| Pinger::start(&a.pods[0], &b.pods[0], family, Duration::from_millis(10)).unwrap();
    let pingers = FAMILIES.map(start);
    fleet.wait("answers to pings", |_| pingers.iter().all(|pinger| pinger.answered() > 20));
    action();
    let before: Vec<_> = pingers.iter().map(Pinger::answered).collect();
    fleet.wait("answers afterwards", |_| {
        pingers.iter().zip(&before).all(|(pinger, before)| pinger.answered() > before + 20)
    });
    pingers.into_iter().map(|pinger| pinger.stop().unwrap()).collect()
}

#[test]
fn auto_takes_the_kernels_wireguard_unless_an_interface_exists() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    take(&fleet.lab.nodes[0], "auto");
    take(&fleet.lab.nodes[1], "userspace");
    fleet.start();
    fleet.settle(Promise::SCOPED);
    assert!(is_kernels(&fleet.lab.nodes[0]) && is_userspaces(&fleet.lab.nodes[1]));
    for (place, choice) in
        ["the kernel's WireGuard: it is available here", "the userspace engine: agent.toml says so"]
            .into_iter()
            .enumerate()
    {
        let node = &fleet.lab.nodes[place];
        fleet.wait_for_report(node, &fleet.agents[place]);
        let (_, status, _) = run(node, "status");
        assert!(status.contains(choice), "{status}");
        assert!(agent::log(node).unwrap().contains(choice));
        let links = node.run("ip -o link show").unwrap();
        assert!(!links.contains("wlprobe"), "{links}");
    }

    // A back end that has the interface keeps it, whatever `auto` would take on an empty machine.
    take(&fleet.lab.nodes[1], "auto");
    let reports = pings_during(&fleet, || {
        let kept = "the userspace engine: it already has the interface";
        fleet.wait("the choice", |fleet| agent::log(&fleet.lab.nodes[1]).unwrap().contains(kept));
    });
    assert!(is_userspaces(&fleet.lab.nodes[1]));
    assert!(reports.iter().all(|report| report.lost == 0), "{reports:?}");
}

/// An agent may be killed at any moment, also while it tries out what the kernel has.
#[test]
fn an_agent_that_is_killed_while_it_tries_out_the_kernel_leaves_no_device() {
    let fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let node = &fleet.lab.nodes[0];
    take(node, "auto");
    for _ in 0..5 {
        let news = node.host.space.inside(link_news).unwrap();
        let agent = Agent::start(wireloom(), node).unwrap();
        let mut message = Vec::with_capacity(1 << 16);
        while !message.windows(7).any(|name| name == b"wlprobe") {
            message.clear();
            news.recv(&mut message, 0).expect("the agent tries the kernel out");
        }
        agent.kill().unwrap();
        let links = node.run("ip -o link show").unwrap();
        assert!(!links.contains("wlprobe"), "{links}");
        agent::down(wireloom(), node).unwrap();
    }
}

/// A socket that is told of every interface that comes or goes. A wait for such news is limited.
pub(super) fn link_news() -> netlink_sys::Socket {
    let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.add_membership(RTNLGRP_LINK).unwrap();
    let patience = TimeVal::new(at_this_pace(PATIENCE).as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
    socket
}

#[test]
fn the_back_end_is_switched_live_and_keeps_key_port_and_peers() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.lab.nodes.iter().for_each(|node| take(node, "userspace"));
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    fleet.wait_for_usual_keepalives(node);
    let before = configuration(node);
    for (backend, has_it) in [("kernel", is_kernels as fn(&Node) -> bool), ("userspace", is_userspaces)] {
        let capture = Capture::open(fleet.lab.underlay()).unwrap();
        let reports = pings_during(&fleet, || {
            take(node, backend);
            fleet.wait("the other back end", |_| has_it(node) && configuration(node) == before);
        });
        let is_initiation = |packet: &Packet| matches!(packet.content, Content::WireGuard { message: 1, .. });
        let first = capture.drain().unwrap().into_iter().find(is_initiation);
        let greets = first.is_some_and(|packet| packet.source == node.host.addresses.of(Family::V4));
        for (report, family) in reports.iter().zip(FAMILIES) {
            let PingReport { sent, lost, outage, .. } = report;
            println!(
                "figure: to {backend}, {family}: {lost} of {sent} pings lost, {outage:?} without an answer"
            );
            // An emulated machine may need that long for the switch itself.
            let in_time = *outage < BEFORE_ANY_TIMER || greets && *outage < at_this_pace(BEFORE_ANY_TIMER);
            assert!(in_time, "{report:?}");
        }
        fleet.settle(Promise::SCOPED);
        fleet.wait_until_done(node);
    }
    let private = &fleet.keys[0].private;
    assert!(!agent::log(node).unwrap().contains(private.as_str()), "the key is in the log");

    // The same between two runs of the agent.
    fleet.agents.remove(0).terminate().unwrap();
    take(node, "kernel");
    fleet.agents.insert(0, Agent::start(wireloom(), node).unwrap());
    fleet.wait("the kernel's", |_| is_kernels(node) && configuration(node) == before);
    fleet.settle(Promise::SCOPED);
}

/// Some of a peer's CIDRs go and come back, by whatever means this kernel has. The others are not affected.
#[test]
fn removing_some_cidrs_of_a_peer_loses_no_packet_of_the_others() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.lab.nodes.iter().for_each(|node| take(node, "kernel"));
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let extra = |number: u8| format!("10.161.200.{number}/32").parse().unwrap();
    let own: Vec<_> = fleet.mesh.nodes[1].workloads.clone();
    let mut mesh = fleet.mesh.clone();
    let node = &fleet.lab.nodes[0];
    let reports = pings_during(&fleet, || {
        for round in 0..10 {
            // Every other round removes half of the CIDRs of the round before.
            let some = (0..100).filter(|number| round % 2 == 0 || number % 2 == 0).map(extra);
            mesh.nodes[1].workloads = own.iter().copied().chain(some).collect();
            mesh.write_on(node).unwrap();
            let count = mesh.nodes[1].workloads.len();
            fleet.wait("the allowed-IPs", |_| {
                let shown = node.run("wg show wg0 allowed-ips").unwrap();
                shown.split_whitespace().filter(|word| word.contains('/') && !word.ends_with('=')).count()
                    == count
            });
        }
    });
    println!("figure: {reports:?} while 250 allowed-IPs went");
    assert!(reports.iter().all(|report| report.lost == 0), "{reports:?}");
    let peers = node.run("wg show wg0 peers").unwrap();
    assert_eq!(peers.trim(), fleet.keys[1].public, "nothing is left of whatever took the CIDRs over");
    let way = if takes_single_ips_away() {
        "this kernel can remove single allowed-IPs"
    } else {
        "this kernel cannot remove a single allowed-IP"
    };
    let said = agent::log(node).unwrap();
    assert_eq!(said.matches(way).count(), 1, "{said}");
}

/// `WGALLOWEDIP_F_REMOVE_ME` came with Linux 6.16.
fn takes_single_ips_away() -> bool {
    let release = uname().unwrap().release().to_string_lossy().into_owned();
    let numbers: Vec<u32> = release.split('.').map_while(|number| number.parse().ok()).take(2).collect();
    assert_eq!(numbers.len(), 2, "{release}");
    numbers >= vec![6, 16]
}
