//! The policy rules as iproute2 prints them: they follow pools, scope and mode.

use wireloom_lab::{Layout, Promise, agent::Agent, mesh::Pool};

use crate::{
    fixtures::fleet::{Fleet, rules, run},
    fixtures::monitor::RuleMonitor,
    wireloom,
};

const SCOPED: &str = "encrypt_host_traffic = false";
const HOST: &str = "encrypt_host_traffic = true";

/// One rule for each family's pool.
const POOLED: [&str; 2] =
    ["from 10.161.0.0/16 fwmark 0/0xa lookup 1", "from fd00:10:161::/48 fwmark 0/0xa lookup 1"];

impl Fleet {
    #[track_caller]
    fn wait_for_rules(&self, expected: &[&str]) {
        self.wait(&format!("the rules {expected:?}"), |fleet| {
            fleet.lab.nodes.iter().all(|node| rules(node) == expected)
        });
    }
}

#[test]
pub(crate) fn one_pool_makes_one_rule_for_each_family() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.wait_for_rules(&POOLED);
    let node = &fleet.lab.nodes[0];
    let shown = node.run("ip rule show pref 99").unwrap();
    assert_eq!(shown.trim_end(), "99:\tfrom 10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157");
    for family in ["-4", "-6"] {
        assert_eq!(node.run(&format!("ip {family} rule show pref 98")).unwrap(), "");
        let all = node.run(&format!("ip {family} rule show")).unwrap();
        assert_eq!(all.matches("lookup 1 ").count(), 1, "{all}");
    }
}

#[test]
pub(crate) fn host_mode_makes_one_rule_for_each_family() {
    let fleet = Fleet::new(Layout::default(), HOST);
    fleet.wait_for_rules(&["not from all fwmark 0xa/0xa lookup 1"; 2]);
    assert_eq!(fleet.lab.nodes[0].run("ip rule show pref 98").unwrap(), "");
}

#[test]
pub(crate) fn a_second_pass_changes_nothing() {
    for mode in [SCOPED, HOST] {
        let mut fleet = Fleet::new(Layout::default(), mode);
        fleet.settle(if mode == HOST { Promise::HOST } else { Promise::SCOPED });
        let node = &fleet.lab.nodes[0];
        fleet.wait_until_done(node);
        // An agent that finds everything in place touches no rule either.
        fleet.agents.clear();
        let mut monitor = RuleMonitor::start(node);
        let again = Agent::start(wireloom(), node).unwrap();
        fleet.wait_for_report(node, &again);
        fleet.wait_until_done(node);
        assert_eq!(monitor.seen(), "");
    }
}

#[test]
pub(crate) fn rules_follow_the_pools_live() {
    let mut fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.wait_for_rules(&POOLED);
    fleet.edit(|mesh| {
        mesh.pools.push(Pool { cidr: "10.162.0.0/16".parse().unwrap() });
        mesh.pools.push(Pool { cidr: "fd00:10:162::/48".parse().unwrap() });
    });
    fleet.wait_for_rules(&[
        "from 10.161.0.0/16 fwmark 0/0xa lookup 1",
        "from 10.162.0.0/16 fwmark 0/0xa lookup 1",
        "from fd00:10:161::/48 fwmark 0/0xa lookup 1",
        "from fd00:10:162::/48 fwmark 0/0xa lookup 1",
    ]);
    fleet.edit(|mesh| mesh.pools.retain(|pool| pool.cidr.to_string().contains("162")));
    fleet.wait_for_rules(&[
        "from 10.162.0.0/16 fwmark 0/0xa lookup 1",
        "from fd00:10:162::/48 fwmark 0/0xa lookup 1",
    ]);
}

#[test]
pub(crate) fn node_scope_makes_rules_of_this_nodes_blocks() {
    let mut fleet = Fleet::new(Layout::default(), "scope = \"node\"");
    let own = |n| {
        [
            format!("from 10.161.{n}.0/24 fwmark 0/0xa lookup 1"),
            format!("from fd00:10:161:{n}::/64 fwmark 0/0xa lookup 1"),
        ]
    };
    let each_has_its_own =
        |fleet: &Fleet| fleet.lab.nodes.iter().zip(1..).all(|(node, n)| rules(node) == own(n));
    fleet.wait("the nodes' own blocks in rules", each_has_its_own);
    fleet.settle(Promise::SCOPED);
    // The scope is switched on the running agent. Without pools, node scope is the default.
    fleet.route("scope = \"pool\"");
    fleet.wait_for_rules(&POOLED);
    fleet.edit(|mesh| mesh.pools.clear());
    fleet.wait("the nodes' own blocks in rules", each_has_its_own);
}

#[test]
pub(crate) fn a_single_address_makes_no_rule_and_a_warning_when_no_rule_covers_it() {
    let mut fleet = Fleet::new(Layout::default(), "scope = \"node\"");
    fleet.edit(|mesh| {
        for single in ["10.9.9.9/32", "fd00:9::9/128"] {
            mesh.nodes[0].workloads.push(single.parse().unwrap());
        }
    });
    let node = |fleet: &Fleet| rules(&fleet.lab.nodes[0]);
    let block = ["from 10.161.1.0/24 fwmark 0/0xa lookup 1", "from fd00:10:161:1::/64 fwmark 0/0xa lookup 1"];
    fleet.wait("the rules of node-a", |fleet| node(fleet) == block);
    fleet.wait("the warnings of node-a", |fleet| {
        let (_, shown, _) = run(&fleet.lab.nodes[0], "status");
        shown.contains("10.9.9.9") && shown.contains("fd00:9::9")
    });
    assert_eq!(node(&fleet), block);
    // A pool that covers them ends the warning.
    fleet.route("scope = \"pool\"");
    fleet.edit(|mesh| {
        for cidr in ["10.9.0.0/16", "fd00:9::/48"] {
            mesh.pools.push(Pool { cidr: cidr.parse().unwrap() });
        }
    });
    fleet.wait("the warnings to go", |fleet| {
        let (_, shown, _) = run(&fleet.lab.nodes[0], "status");
        rules(&fleet.lab.nodes[0]).len() == 4 && !shown.contains("is covered by no rule")
    });
}

#[test]
pub(crate) fn a_rule_that_someone_deleted_comes_back() {
    let fleet = Fleet::new(Layout::default(), SCOPED);
    fleet.wait_for_rules(&POOLED);
    for family in ["-4", "-6"] {
        fleet.lab.nodes[0].run(&format!("ip {family} rule del pref 99")).unwrap();
    }
    fleet.wait_for_rules(&POOLED);
}
