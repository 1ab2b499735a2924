//! What the agent says when it cannot do its work, and what it then leaves alone.

use std::{net::UdpSocket, process::Command};

use wireloom_lab::{
    Layout, PATIENCE, Promise,
    agent::{self, Agent},
    mesh::{KEY, SETTINGS},
    until,
};

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// Starts the first node's agent, and waits until it has logged all of this.
fn says(fleet: &mut Fleet, words: &[&str]) {
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    fleet.wait(&format!("the agent to say {words:?}"), |fleet| {
        let log = agent::log(&fleet.lab.nodes[0]).unwrap();
        words.iter().all(|word| log.contains(word))
    });
    assert!(rules(&fleet.lab.nodes[0]).is_empty(), "no rule without a tunnel");
}

#[test]
fn a_foreign_interface_of_our_name_is_refused_and_stays() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.lab.nodes[0].run("ip link add wg0 type bridge").unwrap();
    let shown = |fleet: &Fleet| fleet.lab.nodes[0].run("ip link show wg0").unwrap();
    let before = shown(&fleet);
    says(&mut fleet, &["wg0"]);
    assert_eq!(shown(&fleet), before);
    let (status, _, stderr) = run(&fleet.lab.nodes[0], "plan");
    assert!(status == 1 && stderr.contains("wg0"), "{status} {stderr}");
    // `down` does not remove it either.
    fleet.agents.clear();
    let _ = run(&fleet.lab.nodes[0], "down");
    assert_eq!(shown(&fleet), before);
    // Once its owner has renamed it, the mesh comes up.
    fleet.lab.nodes[0].run("ip link set wg0 name wg9").unwrap();
    fleet.start();
    fleet.settle(Promise::SCOPED);
}

/// As when somebody else's interface appears in the moment in which an agent that is killed then creates its own.
#[test]
fn an_interface_that_no_device_makes_is_not_taken_for_the_one_that_was_being_created() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    let node = &fleet.lab.nodes[0];
    node.host.space.write("/var/lib/wireloom/creating", "wg0").unwrap();
    node.run("ip link add wg0 type bridge").unwrap();
    let before = node.run("ip link show wg0").unwrap();
    says(&mut fleet, &["is not Wireloom's"]);
    assert_eq!(fleet.lab.nodes[0].run("ip link show wg0").unwrap(), before);
}

#[test]
fn a_port_in_use_is_named_and_taken_once_it_is_free() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    let space = &fleet.lab.nodes[0].host.space;
    let squatter = space.inside(|| UdpSocket::bind("0.0.0.0:51820").unwrap()).unwrap();
    says(&mut fleet, &["51820"]);
    drop(squatter);
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[1]).unwrap());
    fleet.settle(Promise::SCOPED);
}

#[test]
fn without_root_the_commands_say_to_run_as_root() {
    let fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    let node = &fleet.lab.nodes[0];
    for command in ["agent", "down", "plan"] {
        // User 1000 of a user namespace, without any right over this network.
        let mut nobody = Command::new("unshare");
        nobody.args(["--map-user=1000", "--map-group=1000", "--"]).arg(wireloom()).arg(command);
        let output = node.host.space.output(&mut nobody).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        assert!(stderr.contains("root"), "{command}: {stderr}");
    }
    assert_eq!(node.run("ip -o link show type tun").unwrap(), "");
}

#[test]
fn a_second_agent_on_a_node_is_refused() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let (status, _, stderr) = run(&fleet.lab.nodes[0], "agent");
    assert!(status == 1 && stderr.contains("another agent"), "{status} {stderr}");
    assert!(fleet.agents[0].ended().unwrap().is_none());
    fleet.settle(Promise::SCOPED);
}

#[test]
fn a_private_key_that_others_can_read_is_refused() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.lab.nodes[0].run(&format!("chmod 644 {KEY}")).unwrap();
    says(&mut fleet, &[KEY]);
    let log = agent::log(&fleet.lab.nodes[0]).unwrap();
    assert!(!log.contains(&fleet.keys[0].private), "a key in the log");
}

#[test]
fn a_missing_private_key_is_made_for_its_owner_alone() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    fleet.lab.nodes[0].run(&format!("rm {KEY}")).unwrap();
    fleet.start();
    let mode = |fleet: &Fleet| fleet.lab.nodes[0].run(&format!("stat --format=%a {KEY}"));
    fleet.wait("the key", |fleet| mode(fleet).is_ok_and(|mode| mode == "600\n"));
    let private = fleet.lab.nodes[0].host.space.read(KEY).unwrap().unwrap();
    let public = fleet.lab.nodes[0].host.space.feed("wg pubkey", &private).unwrap();
    fleet.edit(|mesh| mesh.nodes[0].public_key = Some(public.trim().to_owned()));
    fleet.settle(Promise::SCOPED);
}

#[test]
fn invalid_settings_are_refused_with_their_line() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    // By a running agent: it reports them, and keeps what was in force.
    fleet.route("encrypt_host_traffic = \"yes\"");
    until(PATIENCE, "the mistake in the log", || {
        agent::log(node).unwrap().contains(&format!("{SETTINGS}:4")).then_some(())
    })
    .unwrap();
    fleet.settle(Promise::SCOPED);
    // By a new one: it does not start.
    fleet.agents.clear();
    let (status, _, stderr) = run(node, "agent");
    assert!(status == 1 && stderr.contains(&format!("{SETTINGS}:4")), "{status} {stderr}");
}
