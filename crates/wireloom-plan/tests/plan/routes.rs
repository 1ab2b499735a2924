//! The table that the rules lead to.

use wireloom_plan::{
    op::{DeviceOp, FirewallOp, Op, RtnetlinkOp},
    routing::{Family, OtherRoute, PROTOCOL, Route, RouteKind},
    settings::UnprovenPeers,
    warning::Warning,
};

use crate::world::{
    End::{Host, Pod},
    Fate, Machine, World, all_proven, key, net, node, proven, three_nodes,
};

const DEVICE: RouteKind = RouteKind::Device { gateway: None, source: None, mtu: None };

#[test]
fn workloads_of_peers_go_to_the_device_and_local_ones_are_thrown() {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.reconcile(&three_nodes());
    for (destination, kind) in [
        ("10.161.1.0/24", RouteKind::Throw),
        ("10.161.2.0/24", DEVICE),
        ("10.161.3.0/24", DEVICE),
        ("fd61:0:0:1::/64", RouteKind::Throw),
        ("fd61:0:0:2::/64", DEVICE),
        ("fd61:0:0:3::/64", DEVICE),
    ] {
        assert_eq!(machine.route(destination), Some(&kind), "{destination}");
    }
    assert_eq!(machine.kernel.routes.len(), 6, "no others: node addresses get no routes");
    let metrics =
        machine.kernel.routes.iter().map(|route| (route.destination.addr().is_ipv4(), route.metric));
    assert!(metrics.into_iter().all(|(v4, metric)| metric == if v4 { 0 } else { 1024 }));
}

#[test]
fn a_node_without_a_key_is_reached_in_plaintext() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut world = World::new(cluster);
    world.reconcile();
    assert_eq!(world.machines["a"].route("10.161.2.0/24"), Some(&RouteKind::Throw));
    assert_eq!(world.machines["a"].peers(), [key(3)]);
    for (family, a, b, c) in pods() {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", b), family), Fate::Direct);
        assert_eq!(world.both_ways(Pod("b", b), Pod("c", c), family), Fate::Direct);
        assert_eq!(world.both_ways(Pod("a", a), Pod("c", c), family), Fate::Encrypted);
    }
}

#[test]
fn a_node_that_gains_a_key_is_encrypted_from_then_on() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.reconcile(&cluster);
    let proven = machine.standings.insert(all_proven("a", &three_nodes())).remove("b");
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(matches!(ops.as_slice(), [Op::Device(DeviceOp::SetPeer(_))]), "{ops:?}");
    assert_eq!(machine.route("10.161.2.0/24"), Some(&RouteKind::Throw), "not before it is proven");

    machine.standings.as_mut().unwrap().insert("b".to_owned(), proven.unwrap());
    let ops = machine.reconcile(&three_nodes()).ops;
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
    // The routes are replaced, not removed, before plaintext is refused.
    let [Op::Rtnetlink(RtnetlinkOp::SetRoute(_)), Op::Rtnetlink(RtnetlinkOp::SetRoute(_)), guard @ ..] =
        ops.as_slice()
    else {
        panic!("{ops:?}")
    };
    assert!(guard.iter().all(|op| matches!(op, Op::Firewall(FirewallOp::Guard(_)))), "{ops:?}");
    assert_eq!(guard.len(), 4, "both directions, both families");
}

#[test]
fn with_reject_nothing_for_a_keyless_node_or_a_pool_leaves_in_plaintext() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut world = World::new(cluster);
    world.settings(|settings| settings.unproven_peers = UnprovenPeers::Reject);
    world.reconcile();
    assert_eq!(world.machines["a"].route("10.161.2.0/24"), Some(&RouteKind::Throw), "the guard refuses");
    for (family, a, b, c) in pods() {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", b), family), Fate::Refused);
        assert_eq!(world.both_ways(Pod("a", a), Pod("c", c), family), Fate::Encrypted);
        // No node claims the address: still nothing leaks.
        let nobody = if family == Family::V4 { "10.161.9.9" } else { "fd61:0:0:9::9" };
        assert_eq!(world.exchange(Pod("a", a), Pod("c", nobody), family)[0], Fate::Refused);
        // Hosts and pods still reach each other.
        assert_eq!(world.both_ways(Host("a"), Pod("c", c), family), Fate::Direct);
        assert_eq!(world.both_ways(Pod("a", a), Host("b"), family), Fate::Direct);
    }
}

#[test]
fn nodes_that_claim_the_same_key_are_both_left_out() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().public_key = Some(key(2));
    let mut machine = Machine::new("a", key(1), &cluster);
    let plan = machine.reconcile(&cluster);
    assert_eq!(machine.peers(), []);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&RouteKind::Throw));
    assert_eq!(machine.route("10.161.3.0/24"), Some(&RouteKind::Throw));
    let nodes = vec!["b".to_owned(), "c".to_owned()];
    assert!(plan.warnings.contains(&Warning::SharedKey { public_key: key(2), nodes, kept_by: None }));

    // One of them gets another key: both are peers again.
    machine.reconcile(&three_nodes());
    assert_eq!(machine.peers(), [key(2), key(3)]);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
}

#[test]
fn of_nodes_that_claim_the_same_key_the_one_that_proved_it_stays() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().public_key = Some(key(2));
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.standings = Some([("b".to_owned(), proven(key(2)))].into());
    let warnings = machine.reconcile(&cluster).warnings;
    let nodes = vec!["b".to_owned(), "c".to_owned()];
    assert!(warnings.contains(&Warning::SharedKey {
        public_key: key(2),
        nodes,
        kept_by: Some("b".to_owned())
    }));
    assert_eq!(machine.peers(), [key(2)]);
    assert_eq!(machine.allowed_ips(2), ["10.161.2.0/24", "fd61:0:0:2::/64"]);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
    assert_eq!(machine.route("10.161.3.0/24"), Some(&RouteKind::Throw));

    // The one that claims ours is left out, and everything else stays.
    cluster.nodes.get_mut("c").unwrap().public_key = Some(key(1));
    machine.reconcile(&cluster);
    assert_eq!(machine.peers(), [key(2)]);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
}

#[test]
fn without_a_key_of_our_own_both_ends_agree_on_plaintext() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().public_key = None;
    let mut world = World::new(cluster);
    world.reconcile();
    assert_eq!(world.machines["a"].peers(), []);
    for (family, a, b, c) in pods() {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", b), family), Fate::Direct);
        assert_eq!(world.both_ways(Pod("b", b), Pod("c", c), family), Fate::Encrypted);
    }
}

#[test]
fn a_borrowed_single_address_goes_to_the_node_that_has_it() {
    let mut cluster = three_nodes();
    let borrowed = [net("10.161.2.77/32"), net("fd61:0:0:2::77/128")];
    cluster.nodes.get_mut("c").unwrap().workloads.extend(borrowed);
    let mut world = World::new(cluster);
    world.reconcile();
    let addresses = [(Family::V4, "10.161.2.77"), (Family::V6, "fd61:0:0:2::77")];
    for ((family, a, b, _), (_, moved)) in pods().into_iter().zip(addresses) {
        assert_eq!(world.both_ways(Pod("a", a), Pod("c", moved), family), Fate::Encrypted);
        assert_eq!(
            world.both_ways(Pod("b", b), Pod("c", moved), family),
            Fate::Encrypted,
            "also from its block"
        );
    }
    // It moves to a, which routes it locally; b and c follow.
    for borrowed in borrowed {
        world.cluster.nodes.get_mut("c").unwrap().workloads.remove(&borrowed);
        world.cluster.nodes.get_mut("a").unwrap().workloads.insert(borrowed);
    }
    world.reconcile();
    assert_eq!(world.machines["a"].route("10.161.2.77/32"), Some(&RouteKind::Throw));
    for ((family, _, b, c), (_, moved)) in pods().into_iter().zip(addresses) {
        assert_eq!(world.both_ways(Pod("c", c), Pod("a", moved), family), Fate::Encrypted);
        assert_eq!(world.both_ways(Pod("b", b), Pod("a", moved), family), Fate::Encrypted);
    }
    // It returns home: the route to the block suffices.
    world.cluster = three_nodes();
    world.reconcile();
    assert_eq!(world.machines["a"].route("10.161.2.77/32"), None);
    for ((family, a, _, _), (_, moved)) in pods().into_iter().zip(addresses) {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", moved), family), Fate::Encrypted);
    }
}

#[test]
fn the_routes_of_a_removed_node_are_removed() {
    let mut cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.reconcile(&cluster);
    cluster.nodes.remove("b");
    let ops = machine.reconcile(&cluster).ops;
    // The guard stops refusing; then routes go first, so that none leads to a removed peer.
    let unguards = |op: &Op| matches!(op, Op::Firewall(FirewallOp::Unguard(_)));
    let guard = ops.iter().take_while(|op| unguards(op)).count();
    let [routes @ .., last] = &ops[guard..] else { panic!("no operations") };
    assert_eq!((guard, routes.len()), (4, 2), "{ops:?}");
    assert!(routes.iter().all(|op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRoute(_)))), "{ops:?}");
    assert_eq!(*last, DeviceOp::RemovePeer { public_key: key(2) }.into());
}

#[test]
fn foreign_routes_stay_and_are_reported() {
    let cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.reconcile(&cluster);
    machine.kernel.routes.remove(&Route::ours(net("10.161.2.0/24"), DEVICE));
    let beside =
        Route { protocol: 4, ..Route::ours(net("172.16.0.0/12"), RouteKind::Other(OtherRoute::default())) };
    let in_the_way =
        Route { protocol: 4, ..Route::ours(net("10.161.2.0/24"), RouteKind::Other(OtherRoute::default())) };
    machine.kernel.routes.extend([beside.clone(), in_the_way.clone()]);
    let plan = machine.reconcile(&cluster);
    assert!(machine.kernel.routes.is_superset(&[beside.clone(), in_the_way.clone()].into()));
    assert!(plan.warnings.contains(&Warning::ForeignRoute { route: beside.clone(), blocks_ours: false }));
    assert!(plan.warnings.contains(&Warning::ForeignRoute { route: in_the_way.clone(), blocks_ours: true }));

    // Once it is gone, ours is set.
    machine.kernel.routes.remove(&in_the_way);
    machine.reconcile(&cluster);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));

    machine.kernel.apply_all(&wireloom_plan::diff::teardown(&machine.kernel)).unwrap();
    assert!(machine.kernel.routes.iter().eq([&beside]));
}

#[test]
fn stray_routes_of_ours_are_removed() {
    let cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.reconcile(&cluster);
    let good = machine.kernel.routes.clone();
    let stray = Route::ours(net("10.99.0.0/16"), RouteKind::Throw);
    let hiding = Route { metric: 7, ..Route::ours(net("fd61:0:0:2::/64"), RouteKind::Throw) };
    machine.kernel.routes.extend([stray, hiding]);
    machine.reconcile(&cluster);
    assert_eq!(machine.kernel.routes, good);
    assert!(good.iter().all(|route| route.protocol == PROTOCOL));
}

#[test]
fn all_nodes_agree_on_the_owner_of_a_contested_prefix() {
    let mut cluster = three_nodes();
    cluster.nodes.insert("d".to_owned(), node(Some(4), &["192.168.1.4", "fd00::4"], &["10.161.2.0/24"]));
    let mut world = World::new(cluster);
    world.reconcile();
    for name in ["a", "c"] {
        assert!(world.machines[name].allowed_ips(2).contains(&"10.161.2.0/24".to_owned()));
        assert_eq!(world.machines[name].allowed_ips(4), Vec::<String>::new());
    }
    // The node that really has the workloads keeps them local.
    assert_eq!(world.machines["d"].route("10.161.2.0/24"), Some(&RouteKind::Throw));
}

/// The family, and a pod on each of a, b and c.
fn pods() -> [(Family, &'static str, &'static str, &'static str); 2] {
    [
        (Family::V4, "10.161.1.5", "10.161.2.5", "10.161.3.5"),
        (Family::V6, "fd61:0:0:1::5", "fd61:0:0:2::5", "fd61:0:0:3::5"),
    ]
}
