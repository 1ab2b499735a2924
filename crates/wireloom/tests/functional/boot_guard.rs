//! `wireloom boot-guard` on nodes that run the agent.

use wireloom_lab::{Lab, Layout, Node, Promise, agent};

use crate::{fixtures::fleet::Fleet, wireloom};

const UNIT: &str = "/etc/systemd/system/wireloom-guard.service";

fn install(node: &Node) {
    node.run(&format!("{} boot-guard install", wireloom().display())).unwrap();
}

fn unit(node: &Node) -> Option<String> {
    node.host.space.read(UNIT).unwrap()
}

/// Our table without its counters' values.
fn table(node: &Node) -> String {
    node.run("nft --stateless list table inet wireloom").unwrap()
}

#[test]
fn what_the_unit_runs_brings_the_whole_guard_back() {
    let mut fleet = Fleet::new(Layout::default(), "");
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    // 15 s after a proof the table changes.
    fleet.wait_for_proofs();
    fleet.wait_for_usual_keepalives(node);
    install(node);
    let before = table(node);
    fleet.agents.clear();

    let node = &fleet.lab.nodes[0];
    let unit = unit(node).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
    assert!(node.host.space.read(&value("ConditionPathExists=")).unwrap().is_some());
    // At boot there is no table, when nftables.service is reloaded by an administrator there may be one.
    for line in ["ExecStart=", "ExecReload="] {
        node.run(&value(line)).unwrap();
        assert_eq!(table(node), before);
        node.run("nft flush ruleset").unwrap();
        node.run(&value(line)).unwrap();
        assert_eq!(table(node), before);
    }
}

#[test]
fn down_removes_the_unit_of_its_own_node() {
    let lab = Lab::new(&Layout { pods: 0, ..Layout::default() }).unwrap();
    lab.nodes.iter().for_each(install);
    let said = agent::down(wireloom(), &lab.nodes[0]).unwrap();
    assert!(said.contains(&format!("- remove {UNIT}")), "{said}");
    assert_eq!(unit(&lab.nodes[0]), None);
    assert!(unit(&lab.nodes[1]).is_some());
}
