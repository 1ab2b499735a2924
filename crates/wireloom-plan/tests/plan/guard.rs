//! The guard: whose addresses are workloads, and where plaintext is refused.

use std::collections::BTreeMap;

use wireloom_plan::{
    desired::Owners,
    firewall::{Firewall, GuardSet},
    op::{FirewallOp, Op},
    owner::Owner,
    refusal::Refusal,
    routing::RouteKind,
    settings::{HostTransition, UnprovenPeers},
    warning::Warning,
};

use crate::world::{Machine, ip, key, net, proven, rule, three_nodes};

fn machine() -> Machine {
    Machine::new("a", key(1), &three_nodes())
}

#[test]
fn the_sets_hold_our_workloads_the_pools_and_those_of_proven_peers() {
    let mut machine = machine();
    let mut fresh = proven(key(3));
    (fresh.ingress, fresh.fresh) = (false, true);
    machine.standings = Some([("b".to_owned(), proven(key(2))), ("c".to_owned(), fresh)].into());
    machine.reconcile(&three_nodes());
    assert_eq!(machine.guarded(GuardSet::Own), ["10.161.1.0/24", "fd61:0:0:1::/64"]);
    assert_eq!(machine.guarded(GuardSet::Pools), ["10.161.0.0/16", "fd61::/48"]);
    assert_eq!(machine.guarded(GuardSet::Nodes), [""; 0]);
    assert_eq!(
        machine.guarded(GuardSet::RefusedOut),
        ["10.161.2.0/24", "10.161.3.0/24", "fd61:0:0:2::/64", "fd61:0:0:3::/64"]
    );
    assert_eq!(
        machine.guarded(GuardSet::RefusedIn),
        ["10.161.2.0/24", "fd61:0:0:2::/64"],
        "c may not know yet"
    );

    let guard = machine.kernel.firewall.as_ref().unwrap().guard.as_ref().unwrap();
    assert_eq!((guard.mark, guard.reject, &guard.datagrams), (0xa, false, &None));
    assert_eq!(guard.outward, ["eth0".to_owned()].into());

    let device = machine.kernel.device.as_ref().unwrap();
    let keepalives = [2, 3].map(|peer| device.peers[&key(peer)].persistent_keepalive);
    assert_eq!(keepalives, [0, 3], "keepalives tell c that it is proven");
}

#[test]
fn what_the_sets_refuse_is_added_up_by_the_node_that_has_the_addresses() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().workloads.insert(net("10.161.2.7/32"));
    let mut machine = machine();
    machine.standings = Some([("b".to_owned(), proven(key(2))), ("c".to_owned(), proven(key(3)))].into());
    machine.reconcile(&cluster);
    let owners = Owners::of(&cluster, &machine.settings);
    let refused = machine.kernel.guarded.iter().filter(|it| it.set == GuardSet::RefusedOut);
    let counted: BTreeMap<_, u64> = refused.map(|it| (it.addresses, 1)).collect();
    // b: two ranges around the borrowed address, and one of IPv6.
    assert_eq!(owners.add_up(&counted), [("b", 3), ("c", 3)].into());
    assert_eq!(owners.owner(ip("10.161.2.7")), Some("c"));
    assert_eq!(owners.owner(ip("192.0.2.77")), None);
}

#[test]
fn a_borrowed_address_belongs_to_the_node_that_has_it() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().workloads.insert(net("10.161.2.7/32"));
    cluster.nodes.get_mut("a").unwrap().workloads.insert(net("10.161.3.9/32"));
    let mut machine = machine();
    machine.standings = Some([("b".to_owned(), proven(key(2)))].into());
    machine.reconcile(&cluster);
    assert_eq!(
        machine.guarded(GuardSet::RefusedOut)[..2],
        ["10.161.2.0-10.161.2.6", "10.161.2.8-10.161.2.255"],
        "c is not proven"
    );
    assert_eq!(machine.guarded(GuardSet::Own)[..2], ["10.161.1.0/24", "10.161.3.9"]);

    // It returns home: in one transaction, after the routes.
    cluster.nodes.get_mut("c").unwrap().workloads.remove(&net("10.161.2.7/32"));
    let ops = machine.reconcile(&cluster).ops;
    let first = ops.iter().position(|op| matches!(op, Op::Firewall(_))).unwrap();
    assert!(ops[first..].iter().all(|op| matches!(op, Op::Firewall(_))), "{ops:?}");
    assert!(first > 0, "{ops:?}");
}

#[test]
fn an_address_that_moves_between_a_peer_and_us_changes_its_set_in_one_transaction() {
    let moving = net("10.161.3.9/32");
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().workloads.insert(moving);
    let mut machine = machine();
    machine.standings = Some([("b".to_owned(), proven(key(2)))].into());
    machine.reconcile(&cluster);
    for (from, to) in [("b", "a"), ("a", "b")] {
        cluster.nodes.get_mut(from).unwrap().workloads.remove(&moving);
        cluster.nodes.get_mut(to).unwrap().workloads.insert(moving);
        let ops = machine.reconcile(&cluster).ops;
        let first = ops.iter().position(|op| matches!(op, Op::Firewall(_))).unwrap();
        assert!(ops[first..].iter().all(|op| matches!(op, Op::Firewall(_))), "from {from} to {to}: {ops:?}");
        assert!(first > 0, "the routes come before: {ops:?}");
    }
}

#[test]
fn an_address_of_a_node_is_no_workload_unless_it_is_inside_the_tunnel() {
    let mut cluster = three_nodes();
    let b = cluster.nodes.get_mut("b").unwrap();
    b.addresses.extend([ip("10.161.2.0"), ip("10.161.2.1")]);
    b.tunnel_addresses.insert(ip("10.161.2.1"));
    let mut machine = machine();
    machine.reconcile(&cluster);
    assert_eq!(machine.guarded(GuardSet::Nodes), ["10.161.2.0"]);

    machine.settings.encrypt_host_traffic = true;
    machine.reconcile(&cluster);
    assert_eq!(machine.guarded(GuardSet::Nodes), [""; 0], "its packets are encrypted too");
    let refused = machine.guarded(GuardSet::RefusedOut);
    assert!(
        refused.contains(&"192.168.1.2".to_owned()) && refused.contains(&"fd00::2".to_owned()),
        "{refused:?}"
    );
    let own = machine.guarded(GuardSet::Own);
    assert!(own.contains(&"192.168.1.1".to_owned()), "{own:?}");
}

#[test]
fn exempt_are_addresses_of_hosts_alone() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().addresses.insert(ip("10.161.2.0"));
    let mut machine = machine();
    machine.settings.encrypt_host_exempt =
        ["10.160.0.0/15", "10.160.7.0/24", "192.168.1.1/32", "fd61::/64"].map(net).into();
    machine.reconcile(&cluster);
    assert_eq!(machine.guarded(GuardSet::Exempt), [""; 0], "in scoped mode they have no effect");

    machine.settings.encrypt_host_traffic = true;
    let warnings = machine.reconcile(&cluster).warnings;
    let mut exempt = vec!["10.160.0.0/16", "10.161.2.0", "192.168.1.1"];
    assert_eq!(machine.guarded(GuardSet::Exempt), exempt);
    for (prefix, pool) in [("10.160.0.0/15", "10.161.0.0/16"), ("fd61::/64", "fd61::/48")] {
        let expected = Warning::ExemptPool { prefix: net(prefix), pool: net(pool) };
        assert!(warnings.contains(&expected), "{warnings:?}");
    }

    machine.settings.host_transition = Some(HostTransition::Prefer);
    machine.reconcile(&cluster);
    assert_eq!(machine.guarded(GuardSet::Exempt), exempt);
    let hosts = ["192.168.1.2", "192.168.1.3", "fd00::1", "fd00::2", "fd00::3"];
    assert_eq!(machine.guarded(GuardSet::Tolerated), hosts);

    machine.settings.host_transition = Some(HostTransition::Accept);
    machine.reconcile(&cluster);
    exempt.extend(hosts);
    assert_eq!(machine.guarded(GuardSet::Exempt), exempt);
    assert_eq!(machine.guarded(GuardSet::Tolerated), [""; 0]);
}

#[test]
fn no_record_takes_what_is_exempt_into_the_tunnel() {
    let mut cluster = three_nodes();
    let mut machine = machine();
    machine.settings.encrypt_host_traffic = true;
    machine.settings.encrypt_host_exempt = ["198.51.100.5/32", "10.161.2.9/32"].map(net).into();
    // An API server outside the mesh, and a workload of the pool.
    let claimed = net("198.51.100.0/24");
    cluster.nodes.get_mut("b").unwrap().workloads.insert(claimed);
    let warnings = machine.reconcile(&cluster).warnings;
    assert_eq!(machine.guarded(GuardSet::Exempt), ["198.51.100.5"]);
    let outside = Warning::WorkloadOutsidePools { node: "b".into(), workload: claimed, host_mode: true };
    assert!(warnings.contains(&outside), "{warnings:?}");
    assert!(outside.to_string().contains("encrypt_host_exempt"));
    // Nobody has said what else is a workload.
    cluster.pools.clear();
    machine.reconcile(&cluster);
    assert_eq!(machine.guarded(GuardSet::Exempt), [""; 0]);
}

#[test]
fn without_declared_pools_the_workloads_of_all_nodes_are_the_pool() {
    let mut cluster = three_nodes();
    cluster.pools.clear();
    cluster.nodes.get_mut("c").unwrap().workloads.insert(net("10.161.2.7/32"));
    let mut machine = machine();
    machine.reconcile(&cluster);
    let v4: Vec<_> = machine.guarded(GuardSet::Pools).into_iter().filter(|pool| pool.contains('.')).collect();
    assert_eq!(v4, ["10.161.1.0/24", "10.161.2.0/24", "10.161.3.0/24"]);
}

#[test]
fn our_address_inside_the_tunnel_is_the_declared_one_or_the_bridges() {
    let mut machine = machine();
    machine.kernel.here =
        ["10.161.1.0/32", "10.161.1.1/24", "192.168.1.1/24", "fd61:0:0:1::1/64"].map(net).into();
    machine.reconcile(&three_nodes());
    assert_eq!(machine.kernel.addresses, [net("10.161.1.1/32"), net("fd61:0:0:1::1/128")].into());
    assert_eq!(machine.kernel.interface.as_ref().unwrap().rp_filter, 2, "loose is loose with an address");
    let guard = machine.kernel.firewall.as_ref().unwrap().guard.clone().unwrap();
    assert_eq!(guard.error_source_v4.map(Into::into), Some(ip("10.161.1.1")));
    assert_eq!(guard.error_source_v6.map(Into::into), Some(ip("fd61:0:0:1::1")));

    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().tunnel_addresses.insert(ip("10.161.1.250"));
    machine.reconcile(&cluster);
    assert_eq!(machine.kernel.addresses, [net("10.161.1.250/32"), net("fd61:0:0:1::1/128")].into());
}

#[test]
fn a_table_that_is_gone_is_back_before_anything_else() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    let good = machine.kernel.clone();
    for firewall in [None, Some(Firewall { altered: true, ..Firewall::default() })] {
        machine.kernel.firewall = firewall;
        machine.kernel.guarded.clear();
        machine.kernel.routes.clear();
        let ops = machine.reconcile(&three_nodes()).ops;
        let guard = ops.iter().take_while(|op| matches!(op, Op::Firewall(_))).count();
        assert_eq!(guard, 1 + good.guarded.len(), "{ops:?}");
        assert_eq!(machine.kernel, good);
    }
}

#[test]
fn a_proven_node_without_a_key_is_refused_and_named() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut machine = machine();
    machine.standings = Some([("b".to_owned(), proven(key(2)))].into());
    let warnings = machine.reconcile(&cluster).warnings;
    assert!(warnings.contains(&Warning::ProvenNodeKeyless { node: "b".to_owned() }));
    assert_eq!(machine.route("10.161.2.0/24"), Some(&RouteKind::Throw));
    assert!(machine.guarded(GuardSet::RefusedOut).contains(&"10.161.2.0/24".to_owned()));
}

#[test]
fn without_the_guard_there_is_no_table() {
    let mut machine = machine();
    machine.reconcile(&three_nodes());
    machine.settings.guard = false;
    let ops = machine.reconcile(&three_nodes()).ops;
    assert_eq!(ops, [Op::Firewall(FirewallOp::Remove)]);
    assert!(machine.kernel.guarded.is_empty());
}

#[test]
fn in_a_table_of_others_the_guard_is_all_that_is_programmed() {
    let mut machine = machine();
    machine.settings.unproven_peers = UnprovenPeers::Reject;
    machine.kernel.rules = vec![rule("from 203.0.113.2/32 priority 1000 proto 16")];
    let mut planner = machine.planner(&three_nodes());
    let refusal = planner.plan(&machine.kernel).unwrap_err();
    assert!(matches!(refusal, Refusal::ForeignTable { owner: Some(Owner::Protocol(16)), .. }), "{refusal}");
    let ops = planner.plan_guard(&machine.kernel).unwrap();
    machine.kernel.apply_all(&ops).unwrap();
    assert!(machine.kernel.firewall.as_ref().unwrap().guard.as_ref().unwrap().reject);
    assert!(!machine.kernel.guarded.is_empty());
    assert_eq!(planner.plan_guard(&machine.kernel).unwrap(), []);
    assert_eq!(machine.kernel.interface, None);
    assert_eq!(machine.kernel.rules.len(), 1);
}
