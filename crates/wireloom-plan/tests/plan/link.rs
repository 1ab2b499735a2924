//! Peers as neighbours: `peer_lookup = "gateway"`.

use wireloom_plan::{
    cluster::Cluster,
    op::{DeviceOp, InterfaceOp, Op, RtnetlinkOp},
    routing::RouteKind,
    settings::{Settings, UnprovenPeers},
    sysctl::{ALL, UnderlaySysctl},
    warning::Warning,
};
use wireloom_types::{LinkAddress, PeerLookup, SourceCheck};

use crate::{
    universe::colliding_keys,
    world::{End, Fate, World, ip, key, net, place, three_nodes},
};

const DIRECT: [Fate; 2] = [Fate::Direct; 2];
const ENCRYPTED: [Fate; 2] = [Fate::Encrypted; 2];
/// host→pod, pod→pod, pod→host, host→host; there and back.
const SCOPED: [[Fate; 2]; 4] = [DIRECT, ENCRYPTED, DIRECT, DIRECT];
const HOST: [[Fate; 2]; 4] = [ENCRYPTED; 4];

fn link_mode(settings: &mut Settings) {
    settings.peer_lookup = PeerLookup::Gateway;
    settings.source_check = SourceCheck::Off;
}

/// a declares nothing, b one address of each family, c an IPv6 one.
fn mesh() -> Cluster {
    let mut cluster = three_nodes();
    let mut declare = |name: &str, addresses: &[&str]| {
        let node = cluster.nodes.get_mut(name).unwrap();
        node.link_addresses = addresses.iter().copied().map(ip).collect();
    };
    declare("b", &["100.64.0.2", "fd64::2"]);
    declare("c", &["fd64::3"]);
    cluster
}

fn world(cluster: Cluster) -> World {
    let mut world = World::new(cluster);
    world.settings(link_mode);
    world.reconcile();
    world
}

fn via(gateway: &str) -> RouteKind {
    RouteKind::Device { gateway: Some(ip(gateway)), source: None, mtu: None }
}

#[test]
fn workloads_are_routed_by_way_of_the_peers_address_on_the_link() {
    let mut world = world(mesh());
    let a = world.machine("a");
    assert_eq!(a.route("10.161.2.0/24"), Some(&via("100.64.0.2")));
    assert_eq!(a.route("fd61:0:0:2::/64"), Some(&via("fd64::2")));
    assert_eq!(a.route("10.161.3.0/24"), Some(&via("fd64::3")), "IPv4 has an IPv6 next hop");
    assert_eq!(a.route("fd61:0:0:3::/64"), Some(&via("fd64::3")));
    assert_eq!(a.allowed_ips(2), ["10.161.2.0/24", "100.64.0.2/32", "fd61:0:0:2::/64", "fd64::2/128"]);

    let link_local = LinkAddress::of(key(1)).link_local().to_string();
    let b = world.machine("b");
    assert_eq!(b.route("10.161.1.0/24"), Some(&via(&link_local)), "a declares none");
    assert_eq!(b.route("fd61:0:0:1::/64"), Some(&via(&link_local)));
    assert_eq!(b.kernel.addresses, [net("100.64.0.2/32"), net("fd64::2/128")].into());
}

#[test]
fn every_peer_is_a_neighbour_with_all_its_addresses() {
    let mut world = world(mesh());
    let kernel = &world.machine("a").kernel;
    let (b, c) = (LinkAddress::of(key(2)), LinkAddress::of(key(3)));
    let neighbours = [
        (ip("100.64.0.2"), b),
        (ip("fd64::2"), b),
        (b.link_local().into(), b),
        (ip("fd64::3"), c),
        (c.link_local().into(), c),
    ];
    assert_eq!(kernel.neighbours, neighbours.into());
    assert_eq!(kernel.link_routes, ["100.64.0.2", "fd64::2", "fd64::3"].map(ip).into(), "none to fe80::");
}

#[test]
fn every_mode_works_in_link_mode() {
    let mut world = world(mesh());
    assert_eq!(world.matrix(), SCOPED);
    world.settings(|settings| settings.encrypt_host_traffic = true);
    world.reconcile();
    assert_eq!(world.matrix(), HOST);
    world.settings(|settings| settings.encrypt_host_traffic = false);
    world.reconcile();
    assert_eq!(world.matrix(), SCOPED);
}

#[test]
fn a_keyless_node_is_treated_as_without_link_mode() {
    for (unproven_peers, fate) in
        [(UnprovenPeers::Plaintext, Fate::Direct), (UnprovenPeers::Reject, Fate::Refused)]
    {
        let mut cluster = mesh();
        cluster.nodes.get_mut("b").unwrap().public_key = None;
        let mut world = World::new(cluster);
        world.settings(|settings| {
            link_mode(settings);
            settings.unproven_peers = unproven_peers;
        });
        world.reconcile();
        let [there, _] = world.exchange(
            End::Pod("a", "10.161.1.5"),
            End::Pod("b", "10.161.2.5"),
            wireloom_plan::routing::Family::V4,
        );
        assert_eq!(there, fate);
        let kernel = &world.machine("a").kernel;
        assert_eq!(kernel.neighbours.len(), 2, "only c is a neighbour");
        assert_eq!(kernel.link_routes, [ip("fd64::3")].into());
    }
}

#[test]
fn a_missing_neighbour_is_added_and_a_surplus_one_removed() {
    let mut world = world(mesh());
    let cluster = world.cluster.clone();
    let a = world.machine("a");
    a.kernel.neighbours.remove(&ip("100.64.0.2"));
    a.kernel.neighbours.insert(ip("100.64.0.77"), LinkAddress::of(key(77)));
    let plan = a.reconcile(&cluster);
    let link_address = LinkAddress::of(key(2));
    assert_eq!(
        plan.ops,
        [
            Op::Rtnetlink(RtnetlinkOp::SetNeighbour { address: ip("100.64.0.2"), link_address }),
            Op::Rtnetlink(RtnetlinkOp::RemoveNeighbour { address: ip("100.64.0.77") }),
        ]
    );
}

#[test]
fn a_hardware_address_that_somebody_changed_is_set_back_with_the_neighbours() {
    let mut world = world(mesh());
    let cluster = world.cluster.clone();
    let a = world.machine("a");
    let whole = a.kernel.clone();
    a.kernel.interface.as_mut().unwrap().link_address = Some(LinkAddress::from_bytes([2, 0, 0, 0, 0, 1]));
    // The kernel forgets them.
    a.kernel.neighbours.clear();
    let own = RtnetlinkOp::SetLinkAddress { link_address: LinkAddress::of(key(1)) };
    assert_eq!(a.reconcile(&cluster).ops.first(), Some(&Op::Rtnetlink(own)));
    assert_eq!(a.kernel, whole);
}

#[test]
fn the_next_hop_follows_an_address_on_the_link_that_moves() {
    let mut world = world(mesh());
    world.cluster.nodes.get_mut("b").unwrap().link_addresses.remove(&ip("100.64.0.2"));
    world.cluster.nodes.get_mut("c").unwrap().link_addresses.insert(ip("100.64.0.2"));
    world.reconcile();
    assert_eq!(world.matrix(), SCOPED);
    let a = world.machine("a");
    assert_eq!(a.route("10.161.2.0/24"), Some(&via("fd64::2")));
    assert_eq!(a.route("10.161.3.0/24"), Some(&via("100.64.0.2")));
    assert_eq!(a.kernel.neighbours[&ip("100.64.0.2")], LinkAddress::of(key(3)));
}

#[test]
fn peers_with_the_same_link_address_are_reported_and_left_out() {
    let [one, other] = colliding_keys();
    assert_eq!(LinkAddress::of(one), LinkAddress::of(other));
    let mut cluster = mesh();
    cluster.nodes.get_mut("b").unwrap().public_key = Some(one);
    cluster.nodes.get_mut("c").unwrap().public_key = Some(other);
    let mut world = World::new(cluster.clone());
    let plan = world.machine("a").plan(&cluster);
    assert!(!plan.warnings.iter().any(|warning| matches!(warning, Warning::SharedLinkAddress { .. })));
    world.settings(link_mode);
    let a = world.machine("a");
    let plan = a.reconcile(&cluster);
    let nodes = vec!["b".to_owned(), "c".to_owned()];
    let link_address = LinkAddress::of(one);
    assert!(plan.warnings.contains(&Warning::SharedLinkAddress { link_address, nodes }));
    assert_eq!(a.peers(), []);
    assert_eq!(a.route("10.161.2.0/24"), Some(&RouteKind::Throw));
    assert!(a.kernel.neighbours.is_empty());
}

#[test]
fn redirects_are_off_on_all_interfaces_and_restored_afterwards() {
    let mut world = World::new(mesh());
    world.machines.values_mut().for_each(|machine| machine.kernel.send_redirects = true);
    world.settings(link_mode);
    world.reconcile();
    let kernel = &world.machine("a").kernel;
    assert!(!kernel.send_redirects);
    assert_eq!(kernel.saved_sysctls[ALL], [(UnderlaySysctl::SendRedirects, 1)].into());
    world.settings(|settings| {
        (settings.peer_lookup, settings.source_check) = (PeerLookup::Destination, SourceCheck::AllowedIps);
    });
    world.reconcile();
    let kernel = &world.machine("a").kernel;
    assert!(kernel.send_redirects && !kernel.saved_sysctls.contains_key(ALL));
    assert!(kernel.addresses.is_empty() && kernel.neighbours.is_empty() && kernel.link_routes.is_empty());
}

/// The interface cannot change its kind, so it is removed and created.
#[test]
fn nothing_leaks_while_the_interface_is_recreated() {
    for back in [false, true] {
        let mut world = World::new(mesh());
        if back {
            world.settings(link_mode);
        }
        world.reconcile();
        world.settings(|settings| match back {
            true => *settings = Settings::defaults(settings.node.clone()),
            false => link_mode(settings),
        });
        let [b, c] = ["b", "c"].map(|name| world.machines.remove(name).unwrap());
        world.machines.extend([("b".to_owned(), b), ("c".to_owned(), c)]);
        let pods = (End::Pod("a", "10.161.1.5"), End::Pod("b", "10.161.2.5"));
        world.step("a", |world, op| {
            let [there, _] = world.exchange(pods.0, pods.1, wireloom_plan::routing::Family::V4);
            assert_ne!(there, Fate::Direct, "after {op:?}");
        });
        world.reconcile();
        assert_eq!(world.matrix(), SCOPED);
    }
}

#[test]
fn a_device_that_ended_is_restarted_behind_its_interface() {
    let mut world = world(mesh());
    let cluster = world.cluster.clone();
    let a = world.machine("a");
    a.kernel.device = None;
    a.kernel.interface.as_mut().unwrap().left = true;
    let ops = a.reconcile(&cluster).ops;
    assert_eq!(place(&ops, |op| matches!(op, Op::Interface(InterfaceOp::StartDevice { .. }))), 0);
    assert!(!ops.iter().any(|op| matches!(
        op,
        Op::Interface(InterfaceOp::Remove)
            | Op::Rtnetlink(RtnetlinkOp::SetRoute(_) | RtnetlinkOp::AddAddress { .. })
    )));
    assert_eq!(world.matrix(), SCOPED);
}

#[test]
fn the_source_check_is_switched_on_the_live_device() {
    let mut world = World::new(mesh());
    world.reconcile();
    world.settings(|settings| settings.source_check = SourceCheck::Off);
    let cluster = world.cluster.clone();
    let ops = world.machine("a").reconcile(&cluster).ops;
    assert!(
        matches!(ops.as_slice(), [Op::Device(DeviceOp::Configure { source_check: SourceCheck::Off, .. })]),
        "{ops:?}"
    );
}
