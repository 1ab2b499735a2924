//! The table that the rules lead to.

use wireloom_plan::{
    kernel::{Family, PROTOCOL, Route, RouteKind},
    op::{DeviceOp, Op, RtnetlinkOp},
    settings::KeylessPeers,
    warning::Warning,
};

use crate::world::{
    End::{Host, Pod},
    Fate, Machine, World, key, net, node, place, three_nodes,
};

const DEVICE: RouteKind = RouteKind::Device { gateway: None, source: None };

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
    assert_eq!(machine.kernel.routes.len(), 6, "and nothing else: node addresses stay out");
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
    let ops = machine.reconcile(&three_nodes()).ops;
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
    // The peer is there before the routes lead to it, and these are replaced, not removed.
    assert!(
        matches!(
            ops.as_slice(),
            [
                Op::Device(DeviceOp::SetPeer(_)),
                Op::Rtnetlink(RtnetlinkOp::SetRoute(_)),
                Op::Rtnetlink(RtnetlinkOp::SetRoute(_))
            ]
        ),
        "{ops:?}"
    );
}

#[test]
fn with_reject_a_node_without_a_key_is_refused_and_nothing_of_a_pool_leaves_in_plaintext() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    let mut world = World::new(cluster);
    world.settings(|settings| settings.keyless_peers = KeylessPeers::Reject);
    world.reconcile();
    let a = &world.machines["a"];
    assert_eq!(a.route("10.161.2.0/24"), Some(&RouteKind::Unreachable));
    assert_eq!(a.route("10.161.0.0/16"), Some(&RouteKind::Unreachable), "the backstop");
    assert_eq!(a.route("fd61::/48"), Some(&RouteKind::Unreachable), "the backstop");
    for (family, a, b, c) in pods() {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", b), family), Fate::Refused);
        assert_eq!(world.both_ways(Pod("a", a), Pod("c", c), family), Fate::Encrypted);
        // Nobody has it, nor had: still nothing leaks.
        let nobody = if family == Family::V4 { "10.161.9.9" } else { "fd61:0:0:9::9" };
        assert_eq!(world.exchange(Pod("a", a), Pod("c", nobody), family)[0], Fate::Refused);
        // Hosts and pods reach each other as ever.
        assert_eq!(world.both_ways(Host("a"), Pod("c", c), family), Fate::Direct);
        assert_eq!(world.both_ways(Pod("a", a), Host("b"), family), Fate::Direct);
    }
}

#[test]
fn the_backstop_comes_after_what_it_must_not_catch() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().workloads.insert(net("10.161.1.9/32"));
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.settings.keyless_peers = KeylessPeers::Reject;
    let ops = machine.plan(&cluster).ops;
    let set = |prefix: &str| {
        place(
            &ops,
            |op| matches!(op, Op::Rtnetlink(RtnetlinkOp::SetRoute(route)) if route.destination == net(prefix)),
        )
    };
    assert!(set("10.161.1.9/32") < set("10.161.1.0/24"));
    assert!(set("10.161.1.0/24") < set("10.161.0.0/16"));
    assert!(set("10.161.2.0/24") < set("10.161.0.0/16"));

    // And it goes before them.
    machine.reconcile(&cluster);
    let mut smaller = cluster.clone();
    smaller.pools.clear();
    smaller.nodes.retain(|name, _| name == "a");
    let ops = machine.plan(&smaller).ops;
    let removed = |prefix: &str| {
        place(
            &ops,
            |op| matches!(op, Op::Rtnetlink(RtnetlinkOp::RemoveRoute(route)) if route.destination == net(prefix)),
        )
    };
    assert!(removed("10.161.0.0/16") < removed("10.161.2.0/24"));
}

#[test]
fn nodes_that_claim_the_same_key_are_both_out() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().public_key = Some(key(2));
    let mut machine = Machine::new("a", key(1), &cluster);
    let plan = machine.reconcile(&cluster);
    assert_eq!(machine.peers(), []);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&RouteKind::Throw));
    assert_eq!(machine.route("10.161.3.0/24"), Some(&RouteKind::Throw));
    let nodes = vec!["b".to_owned(), "c".to_owned()];
    assert!(plan.warnings.contains(&Warning::SharedKey { public_key: key(2), nodes }));

    // One of them mends it: both are in again.
    machine.reconcile(&three_nodes());
    assert_eq!(machine.peers(), [key(2), key(3)]);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));
}

#[test]
fn a_node_that_shares_our_key_is_no_peer_and_nobody_is() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("c").unwrap().public_key = Some(key(1));
    let mut world = World::new(cluster);
    world.reconcile();
    assert_eq!(world.machines["a"].peers(), []);
    assert_eq!(world.machines["b"].peers(), []);
    for (family, a, b, _) in pods() {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", b), family), Fate::Direct, "both ends agree");
    }
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
    // It moves to a, which routes it locally; b and c learn where it is.
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
    // And home: the block alone is enough.
    world.cluster = three_nodes();
    world.reconcile();
    assert_eq!(world.machines["a"].route("10.161.2.77/32"), None);
    for ((family, a, _, _), (_, moved)) in pods().into_iter().zip(addresses) {
        assert_eq!(world.both_ways(Pod("a", a), Pod("b", moved), family), Fate::Encrypted);
    }
}

#[test]
fn a_removed_node_takes_its_routes_along() {
    let mut cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    machine.reconcile(&cluster);
    cluster.nodes.remove("b");
    let ops = machine.reconcile(&cluster).ops;
    // Routes first: none leads to a peer that is gone.
    assert!(
        matches!(ops.as_slice(), [Op::Rtnetlink(RtnetlinkOp::RemoveRoute(_)), Op::Rtnetlink(RtnetlinkOp::RemoveRoute(_)), Op::Device(DeviceOp::RemovePeer { public_key })] if *public_key == key(2)),
        "{ops:?}"
    );
}

#[test]
fn foreign_routes_stay_and_are_reported() {
    let cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    let beside = Route { protocol: 4, ..Route::ours(net("172.16.0.0/12"), RouteKind::Other) };
    let in_the_way = Route { protocol: 4, ..Route::ours(net("10.161.2.0/24"), RouteKind::Other) };
    machine.kernel.routes.extend([beside.clone(), in_the_way.clone()]);
    let plan = machine.reconcile(&cluster);
    assert!(machine.kernel.routes.is_superset(&[beside.clone(), in_the_way.clone()].into()));
    assert!(plan.warnings.contains(&Warning::ForeignRoute { route: beside.clone(), blocks_ours: false }));
    assert!(plan.warnings.contains(&Warning::ForeignRoute { route: in_the_way.clone(), blocks_ours: true }));

    // Once it is out of the way, ours comes.
    machine.kernel.routes.remove(&in_the_way);
    machine.reconcile(&cluster);
    assert_eq!(machine.route("10.161.2.0/24"), Some(&DEVICE));

    machine.kernel.apply_all(&wireloom_plan::diff::teardown(&machine.kernel)).unwrap();
    assert!(machine.kernel.routes.iter().eq([&beside]));
}

#[test]
fn a_stray_route_of_ours_is_cleared_up() {
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
fn a_prefix_that_two_nodes_claim_goes_to_one_and_everybody_agrees_which() {
    let mut cluster = three_nodes();
    cluster.nodes.insert("d".to_owned(), node(Some(4), &["192.168.1.4", "fd00::4"], &["10.161.2.0/24"]));
    let mut world = World::new(cluster);
    world.reconcile();
    for name in ["a", "c"] {
        assert!(world.machines[name].allowed_ips(2).contains(&"10.161.2.0/24".to_owned()));
        assert_eq!(world.machines[name].allowed_ips(4), Vec::<String>::new());
    }
    // Where the workloads really are, they stay local.
    assert_eq!(world.machines["d"].route("10.161.2.0/24"), Some(&RouteKind::Throw));
}

/// The family, and a pod on each of a, b and c.
fn pods() -> [(Family, &'static str, &'static str, &'static str); 2] {
    [
        (Family::V4, "10.161.1.5", "10.161.2.5", "10.161.3.5"),
        (Family::V6, "fd61:0:0:1::5", "fd61:0:0:2::5", "fd61:0:0:3::5"),
    ]
}
