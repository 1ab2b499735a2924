//! Objects in the shape in which real Calico wrote them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use wireloom_plan::cluster::Node;

use super::super::{
    affinity::{Block, blocks_of},
    annotations::Annotations,
    felix::guests,
    group::{Group, Migration, chosen},
    own::Blocks,
    pool::pools,
};
use crate::{kubernetes::Workloads, store::Object};

const KEY: &str = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";

fn objects(values: impl IntoIterator<Item = (&'static str, Value)>) -> BTreeMap<String, Object> {
    let object = |value: Value| Object { value: value.to_string(), born: 0, uid: String::new() };
    values.into_iter().map(|(name, value)| (name.to_owned(), object(value))).collect()
}

fn cidrs(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn block(host: &str, cidr: &str) -> Block {
    Block { host: host.into(), cidr: cidr.parse().unwrap() }
}

/// As `crd.projectcalico.org/v1` has it.
fn v1(host: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "BlockAffinity",
        "metadata": {"labels": {"projectcalico.org/affinity-type": "host", "projectcalico.org/ip-version": "4"}},
        "spec": {"cidr": cidr, "deleted": "false", "node": host, "state": "confirmed", "type": "host"},
    })
}

fn with(mut affinity: Value, field: &str, value: Value) -> Value {
    affinity["spec"][field] = value;
    affinity
}

#[test]
fn a_host_has_the_confirmed_blocks_in_both_groups() {
    let v3 = with(v1("n1", "fd61::2893:e83c:c9a6:7f8b:bb80/122"), "deleted", json!(false));
    let mut old = v1("n1", "10.162.0.24/29");
    old["spec"].as_object_mut().unwrap().retain(|field, _| !["type", "deleted"].contains(&field.as_str()));
    let found = objects([
        ("a", v1("n1", "10.161.69.16/29")),
        ("b", v3),
        ("c", old),
        ("d", v1("n2", "10.161.42.72/29")),
    ]);
    let own = [
        block("n1", "10.161.69.16/29"),
        block("n1", "10.162.0.24/29"),
        block("n1", "fd61::2893:e83c:c9a6:7f8b:bb80/122"),
    ];
    assert_eq!(blocks_of(Some("n1"), &found), (own.into(), BTreeSet::new()));
    assert_eq!(blocks_of(None, &found).0.len(), 4);
}

#[test]
fn a_block_that_is_deleted_pending_or_not_a_hosts_counts_for_nothing() {
    let affinity = || v1("n1", "10.161.69.16/29");
    let found = objects([
        ("deleted in v1", with(affinity(), "deleted", json!("true"))),
        ("deleted in v3", with(affinity(), "deleted", json!(true))),
        ("pending", with(affinity(), "state", json!("pending"))),
        ("going", with(affinity(), "state", json!("pendingDeletion"))),
        ("virtual", with(affinity(), "type", json!("virtual"))),
    ]);
    assert_eq!(blocks_of(None, &found), (BTreeSet::new(), BTreeSet::new()));
}

#[test]
fn a_bad_object_is_left_out_and_named() {
    let found = objects([
        ("good", v1("n1", "10.161.69.16/29")),
        ("no cidr", with(v1("n1", ""), "cidr", json!("10.161.69.16"))),
        ("host bits", v1("n1", "10.161.69.17/29")),
        ("number", with(v1("n1", ""), "cidr", json!(7))),
        ("no spec", json!({"kind": "BlockAffinity"})),
    ]);
    let (blocks, complaints) = blocks_of(Some("n1"), &found);
    assert_eq!(blocks, [block("n1", "10.161.69.16/29")].into());
    let named: Vec<&str> = complaints.iter().map(|complaint| complaint.record.as_str()).collect();
    assert_eq!(named, ["host bits", "no cidr", "no spec", "number"]);
}

#[test]
fn pools_of_pods_count_even_if_they_are_disabled() {
    let pool =
        |cidr: &str, uses: Value| json!({"spec": {"cidr": cidr, "disabled": true, "allowedUses": uses}});
    let mut found = objects([
        ("absent", json!({"spec": {"cidr": "10.161.0.0/16", "disabled": true, "vxlanMode": "Never"}})),
        ("null", pool("10.162.0.0/27", Value::Null)),
        ("empty", pool("10.163.0.0/27", json!([]))),
        ("both", pool("fd61::/48", json!(["Tunnel", "Workload"]))),
        ("tunnel", pool("10.164.0.0/27", json!(["Tunnel"]))),
        ("services", pool("10.165.0.0/27", json!(["LoadBalancer"]))),
    ]);
    let expected = cidrs(&["10.161.0.0/16", "10.162.0.0/27", "10.163.0.0/27", "fd61::/48"]);
    assert_eq!(pools(&found), (expected.clone(), BTreeSet::new()));
    found.extend(objects([("bad", pool("10.0.0.0/33", Value::Null))]));
    let (others, complaints) = pools(&found);
    assert_eq!((others, complaints.len()), (expected, 1));
}

#[test]
fn the_old_group_counts_until_everything_is_copied() {
    let migration =
        |phase: &str| Migration::of(&objects([("v1-to-v3", json!({"status": {"phase": phase}}))]));
    assert_eq!(Migration::of(&objects([])), Migration::None);
    assert_eq!(
        Migration::of(&objects([("other", json!({"status": {"phase": "Complete"}}))])),
        Migration::None
    );
    assert_eq!(Migration::of(&objects([("v1-to-v3", json!({"spec": {}}))])), Migration::Copying);
    for phase in ["Pending", "Migrating", "WaitingForConflictResolution", "Failed"] {
        assert_eq!(chosen(true, true, migration(phase)), Some(Group::V1), "{phase}");
    }
    for phase in ["Converged", "Complete"] {
        assert_eq!(chosen(true, true, migration(phase)), Some(Group::V3), "{phase}");
    }
    assert_eq!(chosen(true, true, Migration::None), Some(Group::V1), "v3 is an API server's view of v1");
    assert_eq!(chosen(true, false, Migration::None), Some(Group::V1));
    assert_eq!(chosen(false, true, Migration::None), Some(Group::V3));
    assert_eq!(chosen(false, false, Migration::None), None);
}

/// The annotations of a node with Felix's WireGuard on.
fn annotations() -> BTreeMap<String, String> {
    [
        ("projectcalico.org/IPv4Address", "192.168.77.2/24"),
        ("projectcalico.org/IPv6Address", "fd77::2/64"),
        ("projectcalico.org/IPv4VXLANTunnelAddr", "10.162.0.9"),
        ("projectcalico.org/IPv4WireguardInterfaceAddr", "10.162.0.8"),
        ("projectcalico.org/WireguardPublicKey", KEY),
        ("projectcalico.org/WireguardPublicKeyV6", "no key"),
        ("node.alpha.kubernetes.io/ttl", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

#[test]
fn own_workloads_are_the_blocks_where_the_host_has_some_and_pod_cidrs_where_nobody_has() {
    let none = Annotations::default();
    let pod_cidrs = || Some(cidrs(&["10.244.1.0/24"]));
    let own = Blocks::new(&[block("n1", "10.162.0.16/29")].into(), true);
    let of = |blocks: &Blocks, choice| blocks.workloads(choice, pod_cidrs(), &none);
    for choice in [Workloads::Auto, Workloads::Calico] {
        assert_eq!(of(&own, choice), Some(cidrs(&["10.162.0.16/29"])));
        assert_eq!(of(&Blocks::Unknown, choice), None);
        assert_eq!(
            of(&Blocks::new(&BTreeSet::new(), true), choice),
            None,
            "its podCIDRs may be others' blocks"
        );
    }
    let nobody = Blocks::new(&BTreeSet::new(), false);
    assert_eq!(of(&nobody, Workloads::Auto), pod_cidrs());
    assert_eq!(of(&nobody, Workloads::Calico), None);
    assert_eq!(of(&own, Workloads::PodCidrs), pod_cidrs());
    assert_eq!(nobody.workloads(Workloads::Auto, None, &none), None, "nobody has given it any");
}

#[test]
fn a_host_that_gave_back_its_last_block_has_no_workloads_until_it_gets_another() {
    let own = || Blocks::new(&[block("n1", "10.162.0.16/29")].into(), true);
    let pod_cidrs = || Some(cidrs(&["10.162.0.0/24"]));
    for others in [true, false] {
        let none = || Blocks::new(&BTreeSet::new(), others);
        assert_eq!(Blocks::Unknown.then(none()), none());
        let given_back = own().then(none()).then(none());
        for choice in [Workloads::Auto, Workloads::Calico] {
            let workloads = given_back.workloads(choice, pod_cidrs(), &Annotations::default());
            assert_eq!(workloads, Some(BTreeSet::new()));
        }
        let choice = Workloads::PodCidrs;
        assert_eq!(given_back.workloads(choice, pod_cidrs(), &Annotations::default()), pod_cidrs());
        assert_eq!(given_back.then(own()), own());
    }
}

#[test]
fn a_tunnel_address_from_elsewhere_is_a_workload_of_its_own() {
    let annotations = Annotations::from(&annotations());
    let inside = Blocks::new(&[block("n2", "10.162.0.8/29")].into(), true);
    let workloads = |blocks: &Blocks| blocks.workloads(Workloads::Auto, None, &annotations);
    assert_eq!(workloads(&inside), Some(cidrs(&["10.162.0.8/29"])));
    let elsewhere = Blocks::new(&[block("n2", "10.161.42.72/29")].into(), true);
    assert_eq!(workloads(&elsewhere), Some(cidrs(&["10.161.42.72/29", "10.162.0.8/32"])));
}

#[test]
fn nodes_of_felix_get_records_with_their_ipv4_half() {
    let mut off = annotations();
    off.remove("projectcalico.org/WireguardPublicKey");
    let all = [("n2", annotations()), ("n3", off), ("n4", BTreeMap::new())];
    let all = all.map(|(name, annotations)| (name.to_owned(), Annotations::from(&annotations)));
    let blocks = [
        block("n2", "10.161.42.72/29"),
        block("n2", "fd61::1168:5560:68e4:6df7:2c40/122"),
        block("n4", "10.161.4.0/26"),
    ];
    let (nodes, complaints) = guests(&all.into(), &blocks.into(), &BTreeSet::new());
    let n2 = Node {
        public_key: Some(KEY.parse().unwrap()),
        endpoint: Some("192.168.77.2:51820".parse().unwrap()),
        addresses: addresses(&["192.168.77.2", "fd77::2", "10.162.0.9"]),
        workloads: cidrs(&["10.161.42.72/29", "10.162.0.8/32"]),
        tunnel_addresses: addresses(&["10.162.0.8"]),
        ..Node::default()
    };
    assert_eq!(nodes["n2"], n2);
    assert_eq!(nodes["n3"].public_key, None);
    assert_eq!(nodes["n4"].workloads, cidrs(&["10.161.4.0/26"]));
    assert_eq!(complaints, BTreeSet::new());
}

#[test]
fn keys_are_shared_with_felix_up_to_500_nodes_and_then_with_no_further_ones() {
    let all = |nodes: usize| (0..nodes).map(|n| (format!("n{n}"), Annotations::default())).collect();
    let blocks = [block("n7", "10.161.4.0/26")].into();
    let (nodes, complaints) = guests(&all(500), &BTreeSet::new(), &BTreeSet::new());
    assert_eq!((nodes.len(), complaints.len()), (500, 0));
    let in_force: BTreeSet<String> = nodes.into_keys().collect();
    let (nodes, complaints) = guests(&all(501), &blocks, &in_force);
    assert!(nodes.keys().eq(&in_force), "those in force stay, and no further one comes");
    assert_eq!(nodes["n7"].workloads, cidrs(&["10.161.4.0/26"]), "what they have may change");
    assert_eq!(complaints.len(), 1);
    assert_eq!(guests(&all(501), &blocks, &BTreeSet::new()).0, BTreeMap::new());
    assert_eq!(guests(&all(500), &blocks, &["n3".to_owned()].into()).0.len(), 500, "below, all come");
}

#[test]
fn annotations_are_read_from_the_metadata_of_a_node() {
    let node =
        json!({"kind": "PartialObjectMetadata", "metadata": {"name": "n2", "annotations": annotations()}});
    assert_eq!(Annotations::of(&node.to_string()), Annotations::from(&annotations()));
    for node in ["", "{}", r#"{"metadata": {}}"#, r#"{"metadata": {"annotations": 7}}"#] {
        assert_eq!(Annotations::of(node), Annotations::default());
    }
}

proptest::proptest! {
    #[test]
    fn no_object_and_no_annotation_panics(text in ".{0,80}", field in "cidr|node|state|type|deleted") {
        let garbage = [("text", json!(text)), ("field", with(v1("n1", "10.161.69.16/29"), &field, json!(text)))];
        let found = objects(garbage);
        let _ = (blocks_of(None, &found), pools(&found), Migration::of(&found));
        let all: BTreeMap<String, String> = annotations().into_keys().map(|name| (name, text.clone())).collect();
        let _ = Annotations::from(&all);
    }
}
