//! The interface's MTU follows the widest way out, and the routes to peers follow their paths.

use wireloom_plan::{
    cluster::Cluster,
    paths::{Known, Path, Paths},
    routing::{Family, RouteKind},
    settings::Settings,
};

use crate::world::{Machine, ip, key, net, three_nodes};

fn path(outer: Family, way_out: u32, mtu: u32) -> Path {
    Path { outer, way_out, mtu, known: Known::Reported }
}

/// Node a after a pass with these paths to b and c.
fn machine(cluster: &Cluster, paths: [Option<Path>; 2], settings: Settings) -> Machine {
    let mut machine = Machine::new("a", key(1), cluster);
    machine.settings = settings;
    let known = paths.into_iter().zip([key(2), key(3)]).filter_map(|(path, key)| Some((key, path?)));
    machine.kernel.paths = Paths::from_iter(known);
    machine.reconcile(cluster);
    machine
}

fn interface_mtu(machine: &Machine) -> u32 {
    machine.kernel.interface.as_ref().unwrap().mtu
}

/// The `mtu` of the route to this destination.
fn route_mtu(machine: &Machine, destination: &str) -> Option<u32> {
    let Some(RouteKind::Device { mtu, .. }) = machine.route(destination) else { panic!("{destination}") };
    *mtu
}

#[test]
fn the_interface_follows_the_widest_way_out_and_narrow_paths_have_their_own_mtu() {
    let cluster = three_nodes();
    // By another interface than the one with our addresses, whose MTU is 1500.
    let b = path(Family::V4, 1450, 1450);
    let c = path(Family::V6, 1450, 1400);
    let machine = machine(&cluster, [Some(b), Some(c)], Settings::defaults("a"));
    assert_eq!(interface_mtu(&machine), 1370);
    assert_eq!(route_mtu(&machine, "10.161.2.0/24"), None);
    assert_eq!(route_mtu(&machine, "10.161.3.0/24"), Some(1312));
    assert_eq!(route_mtu(&machine, "fd61:0:0:3::/64"), Some(1312));
}

#[test]
fn a_path_that_widens_or_narrows_changes_routes_in_place() {
    let cluster = three_nodes();
    let wide = path(Family::V4, 1500, 1500);
    let mut machine = machine(&cluster, [Some(wide), Some(wide)], Settings::defaults("a"));
    assert_eq!(interface_mtu(&machine), 1420);
    for (mtu, expected) in [(1400, Some(1328)), (1368, Some(1296)), (1500, None)] {
        machine.kernel.paths = Paths::from_iter([(key(2), path(Family::V4, 1500, mtu)), (key(3), wide)]);
        assert_eq!(machine.reconcile(&cluster).ops.len(), 2, "one route of each family");
        assert_eq!(route_mtu(&machine, "10.161.2.0/24"), expected);
    }
}

#[test]
fn ipv6_always_has_its_least_mtu() {
    let mut cluster = three_nodes();
    let narrow = path(Family::V6, 1500, 1280);
    let mixed = machine(&cluster, [Some(narrow), None], Settings::defaults("a"));
    assert_eq!(route_mtu(&mixed, "10.161.2.0/24"), Some(1200));
    assert_eq!(route_mtu(&mixed, "fd61:0:0:2::/64"), Some(1280));
    // The kernel takes IPv6 away from an interface with less.
    let narrow = path(Family::V4, 1300, 1300);
    let same = machine(&cluster, [Some(narrow); 2], Settings::defaults("a"));
    assert_eq!(interface_mtu(&same), 1280);
    assert_eq!(route_mtu(&same, "10.161.2.0/24"), Some(1232));
    assert_eq!(route_mtu(&same, "fd61:0:0:2::/64"), None);

    cluster.pools.retain(|pool| pool.addr().is_ipv4());
    for node in cluster.nodes.values_mut() {
        node.workloads.retain(|workload| workload.addr().is_ipv4());
    }
    let ipv4 = machine(&cluster, [Some(narrow); 2], Settings::defaults("a"));
    assert_eq!(interface_mtu(&ipv4), 1220);
    // A node with IPv6 joins.
    let mut planner = ipv4.planner(&cluster);
    planner.plan(&ipv4.kernel).unwrap();
    let mut b = cluster.nodes["b"].clone();
    b.workloads.insert(net("fd61:0:0:2::/64"));
    planner.set_node("b", b);
    let mut kernel = ipv4.kernel.clone();
    kernel.apply_all(&planner.changes(&kernel).unwrap()).unwrap();
    assert_eq!(kernel.interface.unwrap().mtu, 1280);
}

#[test]
fn the_settings_mtu_is_the_interfaces_and_narrow_paths_still_count() {
    let cluster = three_nodes();
    let settings = Settings { mtu: Some(1380), ..Settings::defaults("a") };
    let paths = [Some(path(Family::V4, 1500, 1500)), Some(path(Family::V4, 1500, 1400))];
    let machine = machine(&cluster, paths, settings);
    assert_eq!(interface_mtu(&machine), 1380);
    assert_eq!(route_mtu(&machine, "10.161.2.0/24"), None);
    assert_eq!(route_mtu(&machine, "10.161.3.0/24"), Some(1328));
}

#[test]
fn in_host_mode_the_routes_to_hosts_have_it_too() {
    let cluster = three_nodes();
    let settings = Settings { encrypt_host_traffic: true, ..Settings::defaults("a") };
    let paths = [Some(path(Family::V4, 1500, 1400)), Some(path(Family::V4, 1500, 1500))];
    let machine = machine(&cluster, paths, settings);
    assert_eq!(
        machine.route("192.168.1.2/32"),
        Some(&RouteKind::Device { gateway: None, source: Some(ip("192.168.1.1")), mtu: Some(1328) })
    );
}
