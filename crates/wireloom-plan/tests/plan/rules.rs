//! The rules, and the order in which they are added and removed.

use wireloom_plan::{
    op::{FirewallOp, Op, RtnetlinkOp},
    routing::{Family, OtherSelectors, PROTOCOL},
    settings::Scope,
};

use crate::world::{Machine, apply, key, net, node, place, rule, three_nodes};

fn machine() -> Machine {
    Machine::new("a", key(1), &three_nodes())
}

#[test]
fn one_pool_makes_one_scoped_rule_of_its_family() {
    let mut cluster = three_nodes();
    cluster.pools = [net("10.161.0.0/16")].into();
    let mut machine = machine();
    machine.reconcile(&cluster);
    assert_eq!(machine.rules(), ["99: from 10.161.0.0/16 fwmark 0/0xa lookup 1"]);

    cluster.pools.insert(net("fd61::/48"));
    machine.reconcile(&cluster);
    assert_eq!(
        machine.rules(),
        ["99: from 10.161.0.0/16 fwmark 0/0xa lookup 1", "99: from fd61::/48 fwmark 0/0xa lookup 1"]
    );
    assert!(machine.kernel.rules.iter().all(|rule| rule.protocol == PROTOCOL));
}

#[test]
fn rules_follow_the_pools() {
    let mut cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);

    cluster.pools.insert(net("10.162.0.0/16"));
    let plan = machine.reconcile(&cluster);
    let others: Vec<_> =
        plan.ops.iter().filter(|op| !matches!(op, Op::Firewall(FirewallOp::Guard(_)))).collect();
    assert!(
        matches!(others[..], [Op::Rtnetlink(RtnetlinkOp::AddRule(_))]),
        "nothing but the new rule: {:?}",
        plan.ops
    );
    assert_eq!(machine.rules().len(), 3);

    cluster.pools.remove(&net("10.161.0.0/16"));
    machine.reconcile(&cluster);
    assert_eq!(
        machine.rules(),
        ["99: from fd61::/48 fwmark 0/0xa lookup 1", "99: from 10.162.0.0/16 fwmark 0/0xa lookup 1"]
    );
}

#[test]
fn scope_node_makes_a_rule_for_each_of_the_nodes_own_workloads() {
    let cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);
    machine.settings.scope = Scope::Node;
    let ops = machine.reconcile(&cluster).ops;
    assert_eq!(
        machine.rules(),
        ["99: from 10.161.1.0/24 fwmark 0/0xa lookup 1", "99: from fd61:0:0:1::/64 fwmark 0/0xa lookup 1"]
    );
    let last_added = ops.iter().rposition(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(_)))).unwrap();
    let first_removed =
        ops.iter().position(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)))).unwrap();
    assert!(last_added < first_removed);
}

#[test]
fn without_pools_the_scope_is_the_node() {
    let mut cluster = three_nodes();
    cluster.pools.clear();
    let mut machine = machine();
    machine.reconcile(&cluster);
    assert_eq!(
        machine.rules(),
        ["99: from 10.161.1.0/24 fwmark 0/0xa lookup 1", "99: from fd61:0:0:1::/64 fwmark 0/0xa lookup 1"]
    );
}

#[test]
fn single_addresses_never_become_rules() {
    for scope in [Scope::Pool, Scope::Node] {
        let mut cluster = three_nodes();
        cluster.pools.extend([net("10.161.2.9/32"), net("fd61:0:0:2::9/128")]);
        let own = cluster.nodes.get_mut("a").unwrap();
        own.workloads.extend([net("10.161.2.9/32"), net("fd61:0:0:2::9/128")]);
        let mut machine = machine();
        machine.settings.scope = scope;
        machine.reconcile(&cluster);
        assert_eq!(machine.kernel.rules.len(), 2);
        assert!(machine.kernel.rules.iter().all(|rule| rule.from.unwrap().prefix_len() <= 64));
    }
}

#[test]
fn a_pool_of_all_addresses_becomes_from_all() {
    let mut cluster = three_nodes();
    cluster.pools = [net("0.0.0.0/0"), net("::/0")].into();
    let mut machine = machine();
    machine.reconcile(&cluster);
    assert_eq!(machine.rules(), ["99: from all fwmark 0/0xa lookup 1"; 2]);
    assert_eq!([machine.kernel.rules[0].family, machine.kernel.rules[1].family], Family::ALL);
}

#[test]
fn host_mode_makes_one_rule_for_each_family_of_the_mesh() {
    let mut machine = machine();
    machine.settings.encrypt_host_traffic = true;
    machine.reconcile(&three_nodes());
    assert_eq!(machine.rules(), ["99: not from all fwmark 0xa/0xa lookup 1"; 2]);
    assert_eq!([machine.kernel.rules[0].family, machine.kernel.rules[1].family], Family::ALL);

    // A mesh without IPv6 needs no IPv6 rule, which a kernel without IPv6 could not have.
    let mut cluster = three_nodes();
    cluster.pools = [net("10.161.0.0/16")].into();
    cluster.nodes = [("a".to_owned(), node(Some(1), &["192.168.1.1"], &["10.161.1.0/24"]))].into();
    machine.reconcile(&cluster);
    assert_eq!(machine.kernel.rules.len(), 1);
    assert_eq!(machine.kernel.rules[0].family, Family::V4);
}

#[test]
fn all_rules_have_the_configured_priority() {
    for host in [false, true] {
        let mut machine = machine();
        machine.settings.encrypt_host_traffic = host;
        machine.settings.rule_priority = 77;
        machine.reconcile(&three_nodes());
        assert!(!machine.kernel.rules.is_empty());
        assert!(machine.kernel.rules.iter().all(|rule| rule.priority == 77));
    }
}

#[test]
fn an_unscoped_rule_is_replaced_in_one_pass_and_scoped_rules_come_first() {
    for found in [
        "not from all fwmark 0xa/0xa lookup 1",
        "not from all fwmark 0xa/0xa lookup 1 proto 0",
        "not from all fwmark 0xa/0xa lookup 1 priority 98",
        "not from all fwmark 0xa/0xa lookup 1 priority 32000 proto 157",
        "from all fwmark 0/0 lookup 1 proto 157",
    ] {
        let mut machine = machine();
        machine.kernel.rules = vec![rule(found)];
        let ops = machine.reconcile(&three_nodes()).ops;
        let first_removed =
            ops.iter().position(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)))).unwrap();
        let last_added = ops
            .iter()
            .rposition(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(rule)) if rule.from.is_some()))
            .unwrap();
        let last_route =
            ops.iter().rposition(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::SetRoute(_)))).unwrap();
        let first_added =
            ops.iter().position(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(_)))).unwrap();
        assert!(last_route < first_added, "{found}");
        // A request that is too loose (the last case) hits scoped rules, which were added a second time first.
        let scoped =
            ["99: from 10.161.0.0/16 fwmark 0/0xa lookup 1", "99: from fd61::/48 fwmark 0/0xa lookup 1"];
        assert!(first_added < first_removed && last_added < ops.len(), "{found}");
        assert_eq!(machine.rules(), scoped, "{found}");
    }
}

#[test]
fn a_rule_that_a_loose_delete_request_hits_is_never_missing() {
    // Measured: deleting `from all lookup 1 pref 99` deletes the scoped rule before it.
    let cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);
    let good = machine.kernel.rules.clone();
    for bad in [
        "from all fwmark 0/0 lookup 1 proto 157",
        "not from all fwmark 0xa/0xa lookup 1 proto 0",
        "not from 10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157",
        "from 10.161.0.0/16 fwmark 0x2/0xa lookup 1 proto 157",
        "from 10.161.0.0/16 fwmark 0/0xa lookup 1 proto 157",
    ] {
        for before in [false, true] {
            machine.kernel.rules.clone_from(&good);
            machine.kernel.rules.insert(if before { 0 } else { 2 }, rule(bad));
            for op in machine.plan(&cluster).ops {
                apply(&mut machine.kernel, &op);
                assert!(good.iter().all(|good| machine.kernel.rules.contains(good)), "{bad}: after {op:?}");
            }
            let mut left = machine.kernel.rules.clone();
            left.sort();
            assert_eq!(left, good, "{bad}");
        }
    }
}

#[test]
fn a_rule_with_other_selectors_is_removed_and_no_other() {
    let cluster = three_nodes();
    let mut machine = machine();
    machine.reconcile(&cluster);
    let good = machine.kernel.rules.clone();
    let iif = OtherSelectors { attributes: [(3, b"eth0\0".to_vec())].into(), ..OtherSelectors::default() };
    let to = OtherSelectors { to: Some(net("10.0.0.0/8")), tos: 0x10, ..OtherSelectors::default() };
    for other in [iif, to] {
        machine.kernel.rules.push(wireloom_plan::routing::Rule { other, ..good[0].clone() });
        let ops = machine.reconcile(&cluster).ops;
        assert!(
            matches!(ops.as_slice(), [Op::Rtnetlink(RtnetlinkOp::RemoveRule(_))]),
            "exactly that one: {ops:?}"
        );
        assert_eq!(machine.kernel.rules, good);
    }
}

#[test]
fn rules_are_the_last_thing_added_and_the_first_thing_removed() {
    let cluster = three_nodes();
    let mut machine = machine();
    let ops = machine.reconcile(&cluster).ops;
    assert!(
        matches!(
            ops.as_slice(),
            [
                ..,
                Op::Rtnetlink(RtnetlinkOp::SetRoute(_)),
                Op::Rtnetlink(RtnetlinkOp::AddRule(_)),
                Op::Rtnetlink(RtnetlinkOp::AddRule(_))
            ]
        ),
        "{ops:?}"
    );
    assert!(
        place(&ops, |op| matches!(op, Op::Rtnetlink(RtnetlinkOp::SetUp)))
            < place(
                &ops,
                |op| matches!(op, Op::Rtnetlink(RtnetlinkOp::AddRule(rule)) if rule.family == Family::V4)
            )
    );

    let ops = wireloom_plan::diff::teardown(&machine.kernel);
    assert!(
        matches!(
            ops.as_slice(),
            [
                Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)),
                Op::Rtnetlink(RtnetlinkOp::RemoveRule(_)),
                Op::Rtnetlink(RtnetlinkOp::RemoveRoute(_)),
                ..
            ]
        ),
        "{ops:?}"
    );
}
