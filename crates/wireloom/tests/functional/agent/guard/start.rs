//! An agent that starts with a mistake, on a node that has just booted: what an earlier run knew is enough.

use std::net::UdpSocket;

use wireloom_lab::{
    Capture, Layout, PATIENCE, Pinger,
    agent::{self, Agent},
    mesh::{MEMBERS, SETTINGS},
    until,
};

use super::{Mode, Watched, delete_rules, device, reaches, start_agent, status};
use crate::{fixtures::fleet::Fleet, wireloom};

/// What keeps an agent from doing its work, and the words that it then logs.
struct Trouble {
    name: &'static str,
    make: fn(&Fleet) -> Option<[UdpSocket; 2]>,
    words: &'static str,
}

const TROUBLES: [Trouble; 4] = [
    Trouble {
        name: "its UDP port busy",
        make: |fleet| {
            let bind = || ["0.0.0.0:51820", "[::]:51820"].map(only);
            Some(fleet.lab.nodes[0].host.space.inside(bind).unwrap())
        },
        words: "51820",
    },
    Trouble {
        name: "mesh.toml missing",
        make: |fleet| {
            fleet.lab.nodes[0].run(&format!("rm {MEMBERS}")).unwrap();
            None
        },
        words: MEMBERS,
    },
    Trouble {
        name: "a mistake in mesh.toml",
        make: |fleet| {
            fleet.lab.nodes[0].host.space.write(MEMBERS, "[[nodes").unwrap();
            None
        },
        words: "mesh.toml:1",
    },
    Trouble {
        name: "its name not in the mesh",
        make: |fleet| {
            let space = &fleet.lab.nodes[0].host.space;
            let settings = space.read(SETTINGS).unwrap().unwrap();
            space.write(SETTINGS, &settings.replace("node-a", "stranger")).unwrap();
            None
        },
        words: "`stranger` is not in the",
    },
];

/// A socket that takes a port of one family for itself.
fn only(address: &str) -> UdpSocket {
    use socket2::{Domain, Socket, Type};
    let address: std::net::SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.bind(&address.into()).unwrap();
    socket.into()
}

/// Leaves of the first node's agent what a reboot leaves: the files that it keeps, and nothing in memory.
fn reboot_in_place(fleet: &mut Fleet) {
    fleet.agents.remove(0).kill().unwrap();
    let node = &fleet.lab.nodes[0];
    if let Some(device) = device(node) {
        node.run(&format!("kill -KILL {device}")).unwrap();
    }
    // A persistent interface stays without its process.
    let _ = node.run("ip link del wg0");
    delete_rules(node);
    // There may be none.
    let _ = node.run("ip -4 route flush table 1");
    let _ = node.run("ip -6 route flush table 1");
    let _ = node.run("nft delete table inet wireloom");
    node.run("rm -rf /run/wireloom /run/wireguard").unwrap();
    node.run("truncate -s 0 /run/agent.log").unwrap();
}

/// Starts the first node's agent, and waits until it has logged its trouble.
#[track_caller]
fn start_in_trouble(fleet: &mut Fleet, words: &str) {
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.wait(&format!("the agent to log {words}"), |fleet| {
        agent::log(&fleet.lab.nodes[0]).unwrap().contains(words)
    });
}

fn nothing_leaks_after_an_earlier_run(mode: Mode) {
    let mut watched = Watched::new(mode);
    let good = [MEMBERS, SETTINGS]
        .map(|path| (path, watched.fleet.lab.nodes[0].host.space.read(path).unwrap().unwrap()));
    for Trouble { name, make, words } in TROUBLES {
        watched.settle();
        reboot_in_place(&mut watched.fleet);
        let made = make(&watched.fleet);
        let capture = Capture::open(watched.fleet.lab.underlay()).unwrap();
        start_in_trouble(&mut watched.fleet, words);
        let before = watched.leaked(&capture.drain().unwrap());
        println!("figure: {mode}: {name}: {before} packets in plaintext before the agent reports it");
        watched.measure(
            &format!("started after an earlier run, {name}"),
            0,
            |_| {},
            |fleet, ()| {
                drop(made);
                for (path, text) in &good {
                    fleet.lab.nodes[0].host.space.write(path, text).unwrap();
                }
                // It may have ended: then its successor finds everything in order.
                drop(fleet.agents.remove(0));
                start_agent(fleet, 0);
            },
        );
    }
    watched.settle();
    watched.assert_no_fault();
}

#[test]
fn a_start_in_trouble_leaks_nothing_after_an_earlier_run_in_scoped_mode() {
    nothing_leaks_after_an_earlier_run(Mode::Scoped);
}

#[test]
fn a_start_in_trouble_leaks_nothing_after_an_earlier_run_in_host_mode() {
    nothing_leaks_after_an_earlier_run(Mode::Host);
}

#[test]
fn a_start_in_trouble_leaks_nothing_after_an_earlier_run_with_reject() {
    nothing_leaks_after_an_earlier_run(Mode::Reject);
}

/// Nobody has a proof of this node, and it has none of others: everything is direct, and no packet is lost.
#[test]
fn a_node_that_never_ran_is_reached_in_plaintext_by_default() {
    let mut faults = Vec::new();
    for Trouble { name, make, words } in TROUBLES {
        let mut fleet = Fleet::without_agents(Layout::default(), Mode::Scoped.settings());
        let made = make(&fleet);
        start_in_trouble(&mut fleet, words);
        fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
        fleet.wait_until_done(&fleet.lab.nodes[1]);
        let mut watched = Watched::over(fleet, Mode::Scoped);
        let answered = |watched: &Watched| watched.pingers.iter().map(Pinger::answered).collect::<Vec<_>>();
        let before = answered(&watched);
        let capture = Capture::open(watched.fleet.lab.underlay()).unwrap();
        let all = || before.iter().zip(answered(&watched)).all(|(before, now)| now > *before).then_some(());
        let all = until(PATIENCE, "answers to all pings", all).is_ok();
        let plain = watched.leaked(&capture.drain().unwrap());
        println!("figure: a node that never ran, {name}: {plain} packets in plaintext, as they should be");
        watched.check(&format!("a node that never ran, {name}: pods are reached"), all && plain > 0);
        let said = status(&watched.fleet.lab.nodes[1]);
        watched.check(&format!("{name}: status names the node that is unproven"), said.contains("unproven"));
        drop(made);
        faults.append(&mut watched.faults);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// It has read a mesh once, so it knows a pool; it has never proved itself to anyone. The other node's agent refuses as
/// well: otherwise its plaintext would be on the underlay, and only this node's answers to it would not.
#[test]
fn a_node_that_once_knew_a_pool_leaks_nothing_with_reject() {
    let mut fleet = Fleet::without_agents(Layout::default(), Mode::Reject.settings());
    let [busy, missing, mistake, _] = &TROUBLES;
    let made = (busy.make)(&fleet);
    start_in_trouble(&mut fleet, busy.words);
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.wait_until_done(&fleet.lab.nodes[1]);
    let mut watched = Watched::over(fleet, Mode::Reject);
    watched.measure("never proven, its UDP port busy", 0, |_| {}, |_, ()| {});
    let good = watched.fleet.lab.nodes[0].host.space.read(MEMBERS).unwrap().unwrap();
    for Trouble { name, make, words } in [missing, mistake] {
        reboot_in_place(&mut watched.fleet);
        make(&watched.fleet);
        start_in_trouble(&mut watched.fleet, words);
        watched.measure(
            &format!("never proven, rebooted, {name}"),
            0,
            |_| {},
            |fleet, ()| fleet.lab.nodes[0].host.space.write(MEMBERS, &good).unwrap(),
        );
    }
    // Pods of one node reach each other all the same.
    let own = watched.fleet.lab.lend_address(0, 9, 0).unwrap();
    let reached = own.both().iter().all(|own| reaches(&watched.fleet.lab.nodes[0].pods[0], *own));
    watched.check("pods of one node reach each other", reached);
    drop(made);
    watched.assert_no_fault();
}
