//! The addresses that each peer may send from: `source_check = "firewall"`.

use wireloom_plan::{
    cluster::Cluster,
    firewall::Firewall,
    op::{DeviceOp, FirewallOp, Op, SysctlOp},
    settings::Settings,
};
use wireloom_types::{LinkAddress, PeerLookup, SourceCheck};

use crate::world::{Fate, World, ip, key, net, place, three_nodes};

fn firewall_check(settings: &mut Settings) {
    settings.peer_lookup = PeerLookup::Gateway;
    settings.source_check = SourceCheck::Firewall;
    settings.guard = false;
}

fn mesh() -> Cluster {
    let mut cluster = three_nodes();
    let b = cluster.nodes.get_mut("b").unwrap();
    b.link_addresses = [ip("100.64.0.2"), ip("fd64::2")].into();
    cluster
}

fn world(cluster: Cluster) -> World {
    let mut world = World::new(cluster);
    world.settings(firewall_check);
    world.reconcile();
    world
}

fn link_local(number: u8) -> String {
    LinkAddress::of(key(number)).link_local().to_string()
}

#[test]
fn a_peer_sends_from_its_workloads_and_its_addresses_on_the_link() {
    let mut world = world(mesh());
    let a = world.machine("a");
    let expected = ["10.161.2.0/24", "100.64.0.2", "fd61:0:0:2::/64", "fd64::2", &link_local(2)];
    assert_eq!(a.sources(2), expected);
    assert_eq!(a.sources(1), [""; 0], "no peer may send from our addresses");
    assert_eq!(a.kernel.judged_peers, [2, 3].map(|peer| LinkAddress::of(key(peer))).into());
    assert!(a.kernel.firewall.as_ref().unwrap().judge_sources);

    a.settings.encrypt_host_traffic = true;
    let cluster = world.cluster.clone();
    let a = world.machine("a");
    let ops = a.reconcile(&cluster).ops;
    assert_eq!(a.sources(3), ["10.161.3.0/24", "192.168.1.3", "fd00::3", "fd61:0:0:3::/64", &link_local(3)]);
    let kept = |op: &Op| matches!(op, Op::Firewall(FirewallOp::Set { anew: false, .. }));
    assert!(
        ops.iter().any(kept)
            && !ops.iter().any(|op| matches!(op, Op::Firewall(FirewallOp::JudgePeer { .. }))),
        "counters stay"
    );
}

#[test]
fn every_mode_works_with_the_firewall_check() {
    let direct = [Fate::Direct; 2];
    let scoped = [direct, [Fate::Encrypted; 2], direct, direct];
    let mut world = world(mesh());
    assert_eq!(world.matrix(), scoped);
    world.settings(|settings| settings.encrypt_host_traffic = true);
    world.reconcile();
    assert_eq!(world.matrix(), [[Fate::Encrypted; 2]; 4]);
    world.settings(|settings| settings.encrypt_host_traffic = false);
    world.reconcile();
    assert_eq!(world.matrix(), scoped);
}

/// The longest prefix decides which peer may send from an address, as it decides where packets for it go.
#[test]
fn only_the_borrower_may_send_from_a_borrowed_address() {
    let mut cluster = mesh();
    cluster.nodes.get_mut("c").unwrap().workloads.insert(net("10.161.2.7/32"));
    let mut world = world(cluster);
    let a = world.machine("a");
    assert_eq!(a.sources(2)[..2], ["10.161.2.0-10.161.2.6", "10.161.2.8-10.161.2.255"]);
    assert_eq!(a.sources(3)[0], "10.161.2.7");

    // It returns home: one transaction, in which the block becomes whole.
    world.cluster.nodes.get_mut("c").unwrap().workloads.remove(&net("10.161.2.7/32"));
    let cluster = world.cluster.clone();
    let ops = world.machine("a").reconcile(&cluster).ops;
    let block = net("10.161.2.0/24").into();
    let whole = |op: &Op| matches!(op, Op::Firewall(FirewallOp::AdmitSource(it)) if it.addresses == block);
    let refused: Vec<_> =
        ops.iter().filter(|op| matches!(op, Op::Firewall(FirewallOp::RefuseSource(_)))).collect();
    assert_eq!(refused.len(), 3, "{ops:?}");
    let place = place(&ops, whole);
    assert!(
        matches!(
            ops[..place],
            [Op::Firewall(FirewallOp::RefuseSource(_)), Op::Firewall(FirewallOp::RefuseSource(_))]
        ),
        "{ops:?}"
    );
    assert!(
        matches!(ops.last(), Some(Op::Firewall(FirewallOp::RefuseSource(_)))),
        "a source that nothing replaces is removed last: {ops:?}"
    );
    assert_eq!(world.machine("a").sources(2)[0], "10.161.2.0/24");
}

#[test]
fn no_peer_may_send_from_what_a_keyless_node_or_this_node_borrows() {
    let mut cluster = mesh();
    cluster.nodes.get_mut("c").unwrap().public_key = None;
    cluster.nodes.get_mut("c").unwrap().workloads.insert(net("10.161.2.0/25"));
    cluster.nodes.get_mut("a").unwrap().workloads.insert(net("10.161.2.128/26"));
    let mut world = world(cluster);
    assert_eq!(world.machine("a").sources(2)[0], "10.161.2.192/26");
    assert_eq!(world.machine("a").kernel.judged_peers.len(), 1);
}

/// Whichever way the check is switched.
#[test]
fn the_firewall_is_set_up_first_and_removed_last() {
    let mut world = World::new(mesh());
    world.settings(|settings| settings.guard = false);
    world.reconcile();
    world.settings(firewall_check);
    let ops = world.machines["a"].plan(&world.cluster).ops;
    let first_other = ops.iter().position(|op| !of_the_firewall(op) && !is_sysctl(op)).unwrap();
    assert!(
        ops[..first_other].iter().any(|op| matches!(op, Op::Firewall(FirewallOp::ReplaceSources { .. }))),
        "{ops:?}"
    );
    assert!(!ops[first_other..].iter().any(of_the_firewall), "{ops:?}");
    world.reconcile();

    world.settings(|settings| settings.source_check = SourceCheck::Off);
    let ops = world.machines["a"].plan(&world.cluster).ops;
    assert!(
        matches!(ops[..], [Op::Device(DeviceOp::Configure { .. }), Op::Firewall(FirewallOp::Remove)]),
        "{ops:?}"
    );
}

#[test]
fn a_table_that_somebody_changed_is_recreated_in_one_transaction() {
    let mut world = world(mesh());
    let good = world.machines["a"].kernel.clone();
    for (firewall, anew) in [(Some(Firewall { altered: true, ..Firewall::default() }), true), (None, false)] {
        let kernel = &mut world.machine("a").kernel;
        kernel.firewall = firewall;
        kernel.judged_peers.clear();
        kernel.sources.clear();
        let cluster = world.cluster.clone();
        let a = world.machine("a");
        let ops = a.reconcile(&cluster).ops;
        assert!(ops.iter().all(of_the_firewall), "{ops:?}");
        assert!(
            matches!(ops[0], Op::Firewall(FirewallOp::Set { anew: found, .. }) if found == anew),
            "{ops:?}"
        );
        assert_eq!(a.kernel, good);
    }
}

/// The kernel would take seconds for five thousand single removals.
#[test]
fn many_removed_sources_are_replaced_at_once() {
    let mut cluster = mesh();
    let many = (0..600_u32).map(|number| net(&format!("10.200.{}.{}/32", number >> 8, number & 0xff)));
    cluster.nodes.get_mut("b").unwrap().workloads.extend(many);
    let mut world = world(cluster.clone());
    let b = cluster.nodes.get_mut("b").unwrap();
    b.workloads.retain(|workload| workload.prefix_len() != 32);
    let ops = world.machine("a").reconcile(&cluster).ops;
    assert!(!ops.iter().any(|op| matches!(op, Op::Firewall(FirewallOp::RefuseSource(_)))));
    let replaced = place(&ops, |op| matches!(op, Op::Firewall(FirewallOp::ReplaceSources { .. })));
    let shrunk = ops.iter().rposition(|op| matches!(op, Op::Device(DeviceOp::SetPeer(_)))).unwrap();
    assert!(shrunk < replaced, "not before the peer has lost them");
}

fn of_the_firewall(op: &Op) -> bool {
    crate::world::are_one(op, &Op::Firewall(FirewallOp::Remove))
}

fn is_sysctl(op: &Op) -> bool {
    matches!(op, Op::Sysctl(SysctlOp::Set { .. } | SysctlOp::Restore { .. }))
}
