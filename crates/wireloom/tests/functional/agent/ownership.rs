//! Our table may belong to another program. The agent leaves theirs alone, and says whose it is.

use std::time::Duration;

use wireloom_lab::{
    Layout, Node, Promise,
    agent::{self, Agent},
};

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";

/// What another program has in table 1, as `ip` is told and as it shows it.
const RULE: &str = "from 203.0.113.2 lookup 1";
const ROUTE: &str = "default via 203.0.113.1 dev other0";
/// A route that catches nothing of the matrix, for a table that is in use.
const NARROW_ROUTE: &str = "198.51.100.0/24 via 203.0.113.1 dev other0";

/// Makes the interface through which the foreign route leads.
fn other_interface(node: &Node) {
    for line in [
        "ip link add other0 type veth peer name other1",
        "ip link set other1 up",
        "ip address add 203.0.113.9/24 dev other0",
        "ip link set other0 up",
        "ip -6 address add 2001:db8:113::9/64 dev other0 nodad",
    ] {
        node.run(line).unwrap();
    }
}

/// The rule and route of another program.
fn intrude(node: &Node, route: &str) {
    node.run(&format!("ip route add {route} table 1")).unwrap();
    node.run(&format!("ip rule add {RULE} pref 1000")).unwrap();
}

#[track_caller]
fn assert_theirs_stay(node: &Node, route: &str) {
    assert_eq!(node.run("ip rule show pref 1000").unwrap().trim(), format!("1000:\t{RULE}"));
    let routes = node.run("ip route show table 1").unwrap();
    assert!(routes.lines().any(|shown| shown.trim() == route), "{routes}");
}

fn status(node: &Node) -> String {
    let (_, shown, errors) = run(node, "status");
    shown + &errors
}

#[test]
fn a_table_of_another_program_is_refused_and_another_one_works_live() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for node in &fleet.lab.nodes {
        other_interface(node);
        intrude(node, ROUTE);
    }
    // Something uses the first proposal, too.
    fleet.lab.nodes[0].run("ip -6 route add unreachable 2001:db8::/32 table 15700").unwrap();
    fleet.start();
    for (node, free) in fleet.lab.nodes.iter().zip([15_701, 15_700]) {
        let words = [
            "table 1 belongs to another program".to_owned(),
            format!("`1000: {RULE}`"),
            format!("`{ROUTE}`"),
            format!("table = {free}"),
        ];
        fleet.wait("the refusal", |_| words.iter().all(|word| agent::log(node).unwrap().contains(word)));
        assert!(words.iter().all(|word| status(node).contains(word)), "{}", status(node));
        assert_theirs_stay(node, ROUTE);
        assert!(rules(node).is_empty());
        assert_eq!(node.run("ip route show table all proto 157").unwrap(), "");
    }
    fleet.settle(Promise::PLAINTEXT);
    // The advice is followed while the agents run.
    fleet.route("table = 15701");
    fleet.settle(Promise::SCOPED);
    for node in &fleet.lab.nodes {
        let pool = "from 10.161.0.0/16 fwmark 0/0xa lookup 15701";
        assert!(rules(node).iter().any(|rule| rule == pool), "{:?}", rules(node));
        assert_theirs_stay(node, ROUTE);
        fleet.wait("the end of the report", |_| !status(node).contains("belongs to"));
    }
    // Now that something is programmed, the table stays.
    fleet.route("table = 15702");
    let node = &fleet.lab.nodes[0];
    fleet.wait("the answer", |_| {
        agent::log(node).unwrap().contains("cannot change once something is programmed")
    });
    fleet.route("table = 15701");
    fleet.agents.clear();
    for node in &fleet.lab.nodes {
        agent::down(wireloom(), node).unwrap();
        assert_theirs_stay(node, ROUTE);
        assert_eq!(node.run("ip rule show pref 99").unwrap(), "");
    }
}

/// An operator may also follow the advice by a restart: nothing was programmed, so there is nothing to take down.
#[test]
fn a_refused_agent_starts_with_another_table() {
    let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
    for node in &fleet.lab.nodes {
        other_interface(node);
        intrude(node, ROUTE);
    }
    fleet.start();
    for node in 0..fleet.lab.nodes.len() {
        let log = |fleet: &Fleet| agent::log(&fleet.lab.nodes[node]).unwrap();
        fleet.wait("the refusal", |fleet| log(fleet).contains("belongs to"));
    }
    fleet.agents.clear();
    // The agents choose one. On node-a, something uses the first that they may choose.
    fleet.lab.nodes[0].run("ip -6 route add unreachable 2001:db8::/32 table 15700").unwrap();
    fleet.route("table = \"auto\"");
    for _ in 0..2 {
        fleet.agents.clear();
        fleet.start();
        fleet.settle(Promise::SCOPED);
        for (node, table) in fleet.lab.nodes.iter().zip([15_701, 15_700]) {
            assert_theirs_stay(node, ROUTE);
            let pool = format!("from 10.161.0.0/16 fwmark 0/0xa lookup {table}");
            assert!(rules(node).contains(&pool), "{:?}", rules(node));
        }
        // What comes free meanwhile is no reason to move.
        let _ = fleet.lab.nodes[0].run("ip -6 route del unreachable 2001:db8::/32 table 15700");
    }
}

#[test]
pub(crate) fn a_rule_and_a_route_that_come_later_are_a_warning_and_stay() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    other_interface(node);
    intrude(node, NARROW_ROUTE);
    node.run("ip -6 rule add from 2001:db8:113::2 lookup 1 pref 1000").unwrap();
    let words = [
        format!("the IPv4 rule `1000: {RULE}` leads to our table"),
        "the IPv6 rule `1000: from 2001:db8:113::2 lookup 1`".to_owned(),
        format!("the route `{NARROW_ROUTE}` in our table"),
    ];
    let said = |shown: &str| words.iter().all(|word| shown.contains(word));
    fleet.wait("the warnings", |_| said(&status(node)) && said(&agent::log(node).unwrap()));
    // Ours is put back beside them, even if all of it is gone.
    node.run("ip rule del pref 99").unwrap();
    node.run("ip -6 rule del pref 99").unwrap();
    node.run("ip route flush table 1 proto 157").unwrap();
    fleet.settle(Promise::SCOPED);
    assert_theirs_stay(node, NARROW_ROUTE);
    // An agent that is started again finds the same.
    fleet.agents.clear();
    fleet.start();
    fleet.settle(Promise::SCOPED);
    let node = &fleet.lab.nodes[0];
    assert_theirs_stay(node, NARROW_ROUTE);
    fleet.agents.clear();
    agent::down(wireloom(), node).unwrap();
    assert_theirs_stay(node, NARROW_ROUTE);
    assert!(node.run("ip -6 rule show pref 1000").unwrap().contains("lookup 1"));
    assert!(rules(node).is_empty());
}

/// What Felix of Calico does at every refresh, every 90 s by default.
#[test]
fn a_program_that_deletes_our_rule_again_and_again_is_reported() {
    let mut fleet = Fleet::without_agents(Layout { nodes: 1, ..Layout::default() }, SCOPED);
    fleet.agents.push(Agent::start(wireloom(), &fleet.lab.nodes[0]).unwrap());
    let node = &fleet.lab.nodes[0];
    fleet.wait("the rules", |_| rules(node).len() == 2);
    assert!(!status(node).contains("deleted"));
    for _ in 0..4 {
        // The agent has noticed, and its rule is back.
        std::thread::sleep(Duration::from_secs(2));
        fleet.wait("the rules", |_| rules(node).len() == 2);
        node.run("ip rule del pref 99").unwrap();
    }
    // About every 2 s, and on a slow machine more.
    let reported = |shown: &str| {
        shown.contains("our rules were deleted 4 times in the last 10 minutes, about every ")
            && shown.contains("another program owns table 1")
    };
    fleet.wait("the report", |_| reported(&status(node)));
    let log = agent::log(node).unwrap();
    assert!(log.contains("our rules were deleted 2 times in the last 10 minutes"), "{log}");
    let (_, json, _) = run(node, "status --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["agent"]["rules_deleted"]["times"], 4, "{json}");
}

/// Felix with its WireGuard off shows nothing but its chains. This is what iptables-nft makes of them.
#[test]
fn felix_is_known_by_its_chains() {
    for family in ["ip", "ip6"] {
        let mut fleet = Fleet::without_agents(Layout::default(), SCOPED);
        let node = &fleet.lab.nodes[0];
        node.run(&format!("nft add table {family} filter")).unwrap();
        node.run(&format!("nft add chain {family} filter cali-FORWARD")).unwrap();
        fleet.start();
        // Default settings work in such a cluster, but for the fight over table 1.
        fleet.settle(Promise::SCOPED);
        let node = &fleet.lab.nodes[0];
        let said =
            |shown: &str| shown.contains("Felix of Calico runs here") && shown.contains("table = 15700");
        fleet.wait("the warning", |_| said(&status(node)) && said(&agent::log(node).unwrap()));
        assert!(!status(&fleet.lab.nodes[1]).contains("Felix"));
        assert_eq!(
            agent::log(node).unwrap().matches("Felix of Calico runs here").count(),
            1,
            "once is enough"
        );
        fleet.agents.clear();
        fleet.lab.nodes.iter().for_each(|node| drop(agent::down(wireloom(), node).unwrap()));
        fleet.route("table = 15700");
        fleet.start();
        fleet.settle(Promise::SCOPED);
        assert!(!status(&fleet.lab.nodes[0]).contains("Felix"), "{}", status(&fleet.lab.nodes[0]));
    }
}
