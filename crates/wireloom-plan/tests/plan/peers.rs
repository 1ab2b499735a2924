//! The device's peers: keys, endpoints and allowed-IPs.

use std::{net::SocketAddr, time::Duration};

use wireloom_plan::{
    cluster::Cluster,
    observed::Peer,
    op::{DeviceOp, FirewallOp, Op, RtnetlinkOp, SetPeer},
    refusal::Refusal,
};
use wireloom_types::{PresharedKey, PresharedKeyHash};

use crate::world::{Machine, key, net, three_nodes};

fn machine() -> Machine {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.reconcile(&three_nodes());
    machine
}

fn peer(machine: &mut Machine) -> &mut Peer {
    machine.kernel.device.as_mut().unwrap().peers.get_mut(&key(2)).unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const DECLARED: &str = "192.168.1.2:51820";
const ROAMED: &str = "203.0.113.7:4500";

#[test]
fn every_other_node_is_a_peer_with_its_workloads_only() {
    let mut machine = machine();
    assert_eq!(machine.peers(), [key(2), key(3)]);
    assert_eq!(machine.allowed_ips(2), ["10.161.2.0/24", "fd61:0:0:2::/64"], "not widened to its addresses");
    assert_eq!(peer(&mut machine).endpoint, Some(address(DECLARED)));
}

#[test]
fn host_mode_adds_the_nodes_addresses() {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.settings.encrypt_host_traffic = true;
    machine.reconcile(&three_nodes());
    let all = ["10.161.2.0/24", "192.168.1.2/32", "fd00::2/128", "fd61:0:0:2::/64"];
    assert_eq!(machine.allowed_ips(2), all);
}

#[test]
fn a_changed_key_adds_a_peer_before_removing_the_old_one() {
    let mut machine = machine();
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = Some(key(22));
    let ops = machine.reconcile(&cluster).ops;
    let [Op::Device(DeviceOp::SetPeer(new)), Op::Device(DeviceOp::RemovePeer { public_key: old })] =
        ops.as_slice()
    else {
        panic!("{ops:?}")
    };
    assert_eq!((new.public_key, *old), (key(22), key(2)));
    assert_eq!(new.endpoint, Some(address(DECLARED)));
    assert_eq!(machine.allowed_ips(22), ["10.161.2.0/24", "fd61:0:0:2::/64"]);
}

#[test]
fn a_changed_endpoint_is_set_even_on_a_live_peer_that_roamed() {
    let mut machine = machine();
    peer(&mut machine).endpoint = Some(address(ROAMED));
    peer(&mut machine).handshake_age = Some(Duration::from_secs(5));
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().endpoint = Some(address("192.168.1.99:51820"));
    let ops = machine.reconcile(&cluster).ops;
    let [Op::Device(DeviceOp::SetPeer(SetPeer { endpoint, .. }))] = ops.as_slice() else { panic!("{ops:?}") };
    assert_eq!(*endpoint, Some(address("192.168.1.99:51820")));
}

#[test]
fn a_peer_that_roamed_stays_where_it_is() {
    let mut machine = machine();
    peer(&mut machine).endpoint = Some(address(ROAMED));
    for age in [None, Some(5), Some(100_000)] {
        peer(&mut machine).handshake_age = age.map(Duration::from_secs);
        assert_eq!(machine.plan(&three_nodes()).ops, vec![], "we remember what was declared: {age:?}");
    }

    // A restarted agent remembers nothing and trusts a recent handshake.
    peer(&mut machine).configured_endpoint = None;
    for (age, stays) in [(Some(5), true), (Some(180), true), (Some(181), false), (None, false)] {
        peer(&mut machine).handshake_age = age.map(Duration::from_secs);
        assert_eq!(machine.plan(&three_nodes()).ops.is_empty(), stays, "{age:?}");
    }
}

#[test]
fn a_change_of_allowed_ips_leaves_the_endpoint_alone() {
    let mut machine = machine();
    peer(&mut machine).endpoint = Some(address(ROAMED));
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().workloads.insert(net("10.161.22.0/24"));
    machine.reconcile(&cluster);
    assert_eq!(peer(&mut machine).endpoint, Some(address(ROAMED)));
    assert!(machine.allowed_ips(2).contains(&"10.161.22.0/24".to_owned()));
}

#[test]
fn a_prefix_moves_between_peers_in_one_transaction_without_a_gap() {
    let borrowed = net("10.161.1.200/32");
    let mut from_b = three_nodes();
    from_b.nodes.get_mut("b").unwrap().workloads.insert(borrowed);
    let mut to_c = three_nodes();
    to_c.nodes.get_mut("c").unwrap().workloads.insert(borrowed);
    for [first, second] in [[&from_b, &to_c], [&to_c, &from_b]] {
        let mut machine = machine();
        machine.reconcile(first);
        let ops = machine.reconcile(second).ops;
        // The new owner takes it and the route stays. One operation is certainly one transaction.
        assert!(matches!(ops.as_slice(), [Op::Device(DeviceOp::SetPeer(_))]), "{ops:?}");
    }
}

#[test]
fn allowed_ips_shrink_after_the_route_is_removed() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().workloads.insert(net("10.161.22.0/24"));
    let mut machine = machine();
    machine.reconcile(&cluster);
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(
        matches!(
            ops.as_slice(),
            [
                Op::Firewall(FirewallOp::Unguard(_)),
                Op::Firewall(FirewallOp::Unguard(_)),
                Op::Rtnetlink(RtnetlinkOp::RemoveRoute(_)),
                Op::Device(DeviceOp::SetPeer(_))
            ]
        ),
        "{ops:?}"
    );
}

#[test]
fn keepalive_follows_the_settings() {
    let mut machine = machine();
    machine.settings.persistent_keepalive = 25;
    let ops = machine.reconcile(&three_nodes()).ops;
    assert!(
        ops.iter()
            .all(|op| matches!(op, Op::Device(DeviceOp::SetPeer(peer)) if peer.persistent_keepalive == 25))
    );
    assert_eq!(ops.len(), 2);
}

#[test]
fn a_new_private_key_keeps_the_peers() {
    let mut machine = machine();
    machine.public_key = key(11);
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().public_key = Some(key(11));
    let ops = machine.reconcile(&cluster).ops;
    assert!(
        matches!(ops.as_slice(), [Op::Device(DeviceOp::Configure { public_key, .. })] if *public_key == key(11)),
        "{ops:?}"
    );
}

fn hash(byte: u8) -> PresharedKeyHash {
    PresharedKeyHash::of(&PresharedKey::from_bytes([byte; 32]))
}

fn with_preshared_key() -> Cluster {
    Cluster { preshared_key_file: Some("/etc/wireloom/mesh.psk".into()), ..three_nodes() }
}

#[test]
fn a_new_preshared_key_reaches_all_peers_in_one_transaction_and_changes_nothing_else() {
    let mut machine = Machine::new("a", key(1), &with_preshared_key());
    let mut planner = machine.planner(&with_preshared_key());
    let mut keys = Vec::new();
    for byte in [1, 2] {
        planner.set_preshared_key(Some(hash(byte)));
        let ops = planner.plan(&machine.kernel).unwrap().ops;
        machine.kernel.apply_all(&ops).unwrap();
        keys.push([2, 3].map(|peer| machine.kernel.device.as_ref().unwrap().peers[&key(peer)].preshared_key));
        if byte == 2 {
            assert!(matches!(
                ops.as_slice(),
                [Op::Device(DeviceOp::SetPeer(_)), Op::Device(DeviceOp::SetPeer(_))]
            ));
        }
    }
    assert_eq!(keys, [[Some(hash(1)); 2], [Some(hash(2)); 2]]);

    // A change of the file's name in the mesh alone is none for the device; without it, the keys go.
    let elsewhere = Cluster { preshared_key_file: Some("/elsewhere".into()), ..three_nodes() };
    planner.set_cluster(elsewhere);
    assert_eq!(planner.changes(&machine.kernel).unwrap(), []);
    planner.set_cluster(three_nodes());
    let ops = planner.changes(&machine.kernel).unwrap();
    machine.kernel.apply_all(&ops).unwrap();
    assert_eq!(peer(&mut machine).preshared_key, None);
    assert_eq!(ops.len(), 2, "{ops:?}");
}

#[test]
fn nothing_is_planned_without_the_preshared_key_that_the_mesh_names_but_the_guard() {
    let machine = Machine::new("a", key(1), &with_preshared_key());
    let mut planner = machine.planner(&with_preshared_key());
    let refusal = Refusal::NoPresharedKey { path: "/etc/wireloom/mesh.psk".into() };
    assert_eq!(planner.plan(&machine.kernel).unwrap_err(), refusal);
    assert_eq!(planner.changes(&machine.kernel), Err(refusal));
    let ops = planner.plan_guard(&machine.kernel).unwrap();
    assert!(!ops.is_empty() && ops.iter().all(|op| matches!(op, Op::Firewall(_))), "{ops:?}");
}

#[test]
fn a_preshared_key_that_somebody_else_sets_or_removes_is_put_right() {
    let mut machine = machine();
    peer(&mut machine).preshared_key = Some(hash(9));
    machine.reconcile(&three_nodes());
    assert_eq!(peer(&mut machine).preshared_key, None);
}
