//! The agent takes over a node with the unscoped rule of an earlier agent, and leaves alone what others made.

use wireloom_lab::{Layout, Node, Promise, agent, unscoped};

use crate::{
    fixtures::fleet::{Fleet, rules},
    fixtures::monitor::RuleMonitor,
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const HOST: &str = "encrypt_host_traffic = true";

/// A mesh in the broken state, with the files of a sound one, and no agent yet.
fn broken_fleet(routing: &str) -> Fleet {
    let fleet = Fleet::without_agents(Layout::default(), routing);
    let device = format!("{} device", wireloom().display());
    unscoped::build(&device, &fleet.lab, &fleet.mesh, &fleet.keys).unwrap();
    fleet.settle(Promise::UNSCOPED);
    fleet
}

#[test]
pub(crate) fn the_scoped_rule_comes_before_the_unscoped_one_goes() {
    let mut fleet = broken_fleet(SCOPED);
    let mut monitor = RuleMonitor::start(&fleet.lab.nodes[0]);
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let announced = monitor.seen();
    let removed = announced.find("Deleted 99:\tnot from all fwmark 0xa/0xa lookup 1");
    for pool in ["10.161.0.0/16", "fd00:10:161::/48"] {
        let added = announced.find(&format!("99:\tfrom {pool} fwmark 0/0xa lookup 1"));
        assert!(added.is_some() && removed.is_some() && added < removed, "{pool}:\n{announced}");
    }
    // One announcement for each addition and each removal: no rule was touched twice.
    assert_eq!(announced.lines().count(), 4, "{announced}");
    let scoped = ["from 10.161.0.0/16 fwmark 0/0xa lookup 1", "from fd00:10:161::/48 fwmark 0/0xa lookup 1"];
    assert!(fleet.lab.nodes.iter().all(|node| rules(node) == scoped));
}

#[test]
pub(crate) fn an_unscoped_rule_at_another_priority_goes_too() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for node in &fleet.lab.nodes {
        for family in ["-4", "-6"] {
            node.run(&format!("ip {family} rule add not from all fwmark 0xa/0xa lookup 1 pref 5")).unwrap();
        }
    }
    fleet.start();
    fleet.settle(Promise::SCOPED);
    for node in &fleet.lab.nodes {
        for family in ["-4", "-6"] {
            let shown = node.run(&format!("ip {family} rule show")).unwrap();
            assert!(!shown.contains("not from all"), "{shown}");
        }
    }
}

#[test]
pub(crate) fn rules_routes_and_links_of_others_stay_as_they_are() {
    let mut fleet = Fleet::without_agents(Layout::default(), HOST);
    for node in &fleet.lab.nodes {
        for line in FOREIGN.lines() {
            node.run(line).unwrap();
        }
    }
    fleet.wait_for_cables();
    let before: Vec<_> = fleet.lab.nodes.iter().map(foreign).collect();
    assert!(before[0].contains("lookup 100") && before[0].contains("198.51.100.0/24"), "{}", before[0]);
    fleet.start();
    fleet.settle(Promise::HOST);
    fleet.route(SCOPED);
    fleet.settle(Promise::SCOPED);
    let during: Vec<_> = fleet.lab.nodes.iter().map(foreign).collect();
    assert_eq!(during, before);
    fleet.agents.clear();
    for node in &fleet.lab.nodes {
        agent::down(wireloom(), node).unwrap();
    }
    let after: Vec<_> = fleet.lab.nodes.iter().map(foreign).collect();
    assert_eq!(after, before);
}

/// Some of the rules have our priority, our mark or our protocol number, but none leads to our table.
const FOREIGN: &str = "\
ip link add foreign0 type veth peer name foreign1
ip link set foreign1 up
ip link set foreign0 up alias not-ours
ip address add 198.51.100.1/24 dev foreign0
ip rule add pref 99 from 10.161.0.0/16 fwmark 0/0xa lookup 100
ip rule add pref 98 not from all fwmark 0xa/0xa lookup 100 proto 157
ip rule add pref 1000 from 198.51.100.0/24 lookup 100
ip -6 rule add pref 99 from fd00:10:161::/48 lookup 100
ip route add 203.0.113.0/24 dev foreign0 proto 157
ip route add 203.0.113.0/24 dev foreign0 table 100
ip -6 route add 2001:db8:99::/48 dev foreign0 table 100
ip route add unreachable 192.0.2.0/24 proto 80";

/// Rules that do not lead to our table, routes in other tables, and the links except the tunnel's.
fn foreign(node: &Node) -> String {
    let rules = ["ip -d -4 rule show", "ip -d -6 rule show"].map(|line| {
        let shown = node.run(line).unwrap();
        shown.lines().filter(|line| !line.contains("lookup 1 ")).collect::<Vec<_>>().join("\n")
    });
    let routes = ["-4", "-6"].map(|family| {
        let shown = node.run(&format!("ip -d {family} route show table all")).unwrap();
        let others = |line: &&str| !line.contains("table 1 ") && !line.contains("dev wg0");
        shown.lines().filter(others).collect::<Vec<_>>().join("\n")
    });
    // Not the bridge and its port: `ip -d` shows their timers.
    let links = ["lo", "eth0", "foreign0", "foreign1"]
        .map(|name| node.run(&format!("ip -d link show dev {name}")).unwrap());
    [&rules[..], &routes[..], &links[..]].concat().join("\n--\n")
}
