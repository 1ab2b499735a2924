//! The device, the agent or one of its files is broken, and the status shows all the rest.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use wireloom_lab::{
    Cell, FAMILIES, Layout, Promise, Wire,
    agent::Agent,
    mesh::{MEMBERS, SETTINGS},
    probe::{Exchange, probe},
};

use super::{Broken, SCOPED, assert_refused, expect_told};
use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

/// After this time without an answer of the device, the agent restarts it (`SILENCE_MAX` in wireloom-kernel).
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// A status takes no longer than this, whatever is broken.
const PROMPT: Duration = Duration::from_secs(4);

/// What the first line begins with when traffic is encrypted with every node, and with none.
const ALL: &str = "encrypted";
const NONE: &str = "NOT encrypted: ";

#[test]
fn a_device_that_hangs_or_is_gone_and_files_with_mistakes_are_a_line_each() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let space = &fleet.lab.nodes[0].host.space;
    let squatter = space.inside(|| UdpSocket::bind("0.0.0.0:51820").unwrap()).unwrap();
    fleet.start();
    expect_told(&fleet, Instant::now(), &[says("the port is in use", &["error:", "51820"], NONE)]);
    drop(squatter);
    fleet.settle(Promise::SCOPED);
    fleet.wait_for_proofs();
    let node = &fleet.lab.nodes[0];
    fleet.wait("all to be well", |_| run(node, "status").0 == 0);

    // The rest of the status is as it was.
    for (file, mistake, words) in [
        (SETTINGS, "fwmark = 0\n", ["agent.toml:", "previous settings stay in force"]),
        (MEMBERS, "[[nodes]]\n", ["mesh.toml:", "previous mesh stays in force"]),
    ] {
        let since = Instant::now();
        let good = node.host.space.read(file).unwrap().unwrap();
        node.host.space.write(file, &format!("{good}{mistake}")).unwrap();
        expect_told(&fleet, since, &[says("a mistake in a file", &words, ALL)]);
        let (_, shown, _) = run(node, "status");
        assert!(shown.starts_with("node-a: encrypted\n") && shown.contains("\nnode-b  up"), "{shown}");
        node.host.space.write(file, &good).unwrap();
    }
    // An agent that starts with a mistake in the mesh knows of no node.
    let good = node.host.space.read(MEMBERS).unwrap().unwrap();
    node.host.space.write(MEMBERS, &format!("{good}[[nodes]]\n")).unwrap();
    fleet.agents.remove(0).kill().unwrap();
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    let words = ["mesh.toml:", "nothing is programmed until this is fixed"];
    expect_told(&fleet, Instant::now(), &[says("a mistake in the mesh, and a new agent", &words, ALL)]);
    let node = &fleet.lab.nodes[0];
    assert_eq!(run(node, "status").1.lines().next(), Some("node-a: encrypted"));
    node.host.space.write(MEMBERS, &good).unwrap();
    fleet.wait("all to be well", |_| run(node, "status").0 == 0);

    let since = Instant::now();
    node.run(&format!("kill -STOP {}", process(&fleet))).unwrap();
    expect_told(&fleet, since, &[says("the device hangs", &["has not answered for"], NONE)]);
    fleet.wait("a status to say so soon", |_| {
        let asked = Instant::now();
        let (_, shown, _) = run(node, "status");
        asked.elapsed() < PROMPT && shown.starts_with("node-a: NOT encrypted: ")
    });
    let [from, to] = [0, 1].map(|node| &fleet.lab.nodes[node].pods[0]);
    let cells = FAMILIES.map(|family| probe(fleet.lab.underlay(), from, to, family, Exchange::Ping).unwrap());
    // On a busy machine, the agent may have restarted it by now.
    if since.elapsed() < SILENCE_MAX {
        assert_eq!(cells, [Cell { reachable: false, wire: Wire::Nothing }; 2]);
    }
    fleet.wait("the device to be restarted, and all to be well", |_| run(node, "status").0 == 0);
    println!("figure: the device hangs | well again after {:.1} s", since.elapsed().as_secs_f64());

    let since = Instant::now();
    fleet.agents.remove(0).kill().unwrap();
    let node = &fleet.lab.nodes[0];
    node.run("sysctl -qw net.ipv4.conf.wg0.rp_filter=1").unwrap();
    expect_told(
        &fleet,
        since,
        &[
            says("the agent is down", &["agent:", "not running"], ALL),
            says("strict rp_filter, and nobody to repair it", &["pending:", "changes"], ALL),
        ],
    );
    node.run("ip -4 route flush table 1").unwrap();
    node.run("ip -6 route flush table 1").unwrap();
    let headline = "NOT encrypted: nothing passes to node-b (our routes are not in place)";
    let words = ["missing from our table 1", "10.161.2.0/24"];
    expect_told(&fleet, Instant::now(), &[says("the routes are gone and the agent down", &words, headline)]);
    assert_refused(&fleet, 0, 1);
    node.run(&format!("kill -KILL {}", process(&fleet))).unwrap();
    let since = Instant::now();
    expect_told(
        &fleet,
        since,
        &[says("the device is gone and the agent down", &["no WireGuard device is behind"], NONE)],
    );
    assert_refused(&fleet, 0, 1);
    // Without an agent, a mistake in its files leaves what it took last.
    let good = node.host.space.read(SETTINGS).unwrap().unwrap();
    node.host.space.write(SETTINGS, &format!("{good}fwmark = 0\n")).unwrap();
    expect_told(
        &fleet,
        Instant::now(),
        &[says(
            "a mistake in agent.toml and the agent down",
            &["the settings that the agent took last"],
            NONE,
        )],
    );
    node.host.space.write(SETTINGS, &good).unwrap();
    fleet.agents.insert(0, Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.settle(Promise::SCOPED);
}

/// The process of node-a's device.
fn process(fleet: &Fleet) -> String {
    fleet.lab.nodes[0].run("pgrep -f device.*wg0").unwrap().trim().to_owned()
}

/// A state of node-a in which the first line begins so.
fn says<'a>(what: &'static str, words: &'a [&'a str], headline: &'a str) -> Broken<'a> {
    let exit: &[i32] = if headline.starts_with("NOT") { &[2] } else { &[1] };
    Broken { what, on: 0, words, headline, exit }
}
