//! The warnings to the operator, each of which names the fix.

use std::collections::BTreeSet;

use ipnet::IpNet;
use proptest::prelude::*;
use wireloom_plan::{
    cluster::Cluster,
    connections::Connection,
    observed::Observed,
    planner::Planner,
    routing::Family,
    settings::{HostTransition, Scope, Settings},
    warning::{Severity, Warning},
};

use crate::universe::{OWN, cluster, named_node};
use crate::world::{Machine, ip, key, net, node, proven, three_nodes};

fn warnings(cluster: &Cluster, settings: Settings) -> BTreeSet<Warning> {
    let kernel = Machine::new("a", key(1), &three_nodes()).kernel;
    Planner::new(settings, key(1), cluster.clone()).plan(&kernel).unwrap().warnings
}

fn defaults() -> Settings {
    Settings::defaults("a")
}

fn host_mode() -> Settings {
    Settings { encrypt_host_traffic: true, ..defaults() }
}

#[test]
fn a_sound_mesh_causes_no_warnings() {
    assert_eq!(warnings(&three_nodes(), defaults()), [].into());
    assert_eq!(warnings(&three_nodes(), host_mode()), [].into());
    assert_eq!(warnings(&three_nodes(), Settings { scope: Scope::Node, ..defaults() }), [].into());
}

/// A session from b by SSH, and our own connections to the API server on c and to a stranger.
#[test]
fn what_host_mode_leads_into_the_tunnel_is_named_before_and_after_unless_it_is_exempt() {
    let cluster = three_nodes();
    let mut machine = Machine::new("a", key(1), &cluster);
    let connections = [("192.168.1.2", 40000, 22), ("fd00::3", 6443, 40000), ("192.0.2.1", 6443, 40000)];
    let connections =
        connections.map(|(remote, there, here)| Connection::of(ip(remote), here, there).unwrap());
    machine.kernel.connections = connections.into();
    machine.standings = Some([("c".to_owned(), proven(key(3)))].into());
    let named = |machine: &Machine| {
        let warnings = machine.plan(&three_nodes()).warnings;
        let named = warnings.into_iter().filter(|warning| matches!(warning, Warning::TunnelOnly { .. }));
        named.collect::<Vec<_>>()
    };
    assert_eq!(named(&machine), [], "in scoped mode hosts are direct");

    machine.settings.encrypt_host_traffic = true;
    let of = |node: &str, address, port, already| Warning::TunnelOnly {
        node: node.to_owned(),
        address: ip(address),
        port,
        already,
    };
    let all = [of("b", "192.168.1.2", 22, false), of("c", "fd00::3", 6443, true)];
    assert_eq!(named(&machine), all);
    assert_eq!(all.each_ref().map(Warning::severity), [Severity::Warning, Severity::Info]);
    let text = "b has a connection of SSH (port 22) with this node from 192.168.1.2, which will be reachable through \
                the tunnel only, once host mode is on and that node has proved that it encrypts; for a way around it, \
                set encrypt_host_exempt = [\"192.168.1.2/32\"] on all nodes";
    assert_eq!(all[0].to_string(), text);

    machine.settings.host_transition = Some(HostTransition::Accept);
    assert_eq!(named(&machine)[1], of("c", "fd00::3", 6443, false));
    machine.settings.encrypt_host_exempt = ["192.168.1.0/24", "fd00::3/128"].map(net).into();
    assert_eq!(named(&machine), []);
}

#[test]
fn a_local_address_that_no_rule_covers_is_reported() {
    for borrowed in ["10.99.0.1/32", "fd99::1/128"] {
        let mut cluster = three_nodes();
        cluster.nodes.get_mut("a").unwrap().workloads.insert(net(borrowed));
        let expected = Warning::UncoveredWorkload { workload: net(borrowed) };
        assert_eq!(warnings(&cluster, defaults()), [expected].into());
        assert_eq!(warnings(&cluster, host_mode()), [].into(), "host mode covers everything");
    }
    // One inside a pool is covered; with scope = "node" it lies outside the node's own blocks.
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().workloads.insert(net("10.161.2.9/32"));
    assert_eq!(warnings(&cluster, defaults()), [].into());
    let by_node = warnings(&cluster, Settings { scope: Scope::Node, ..defaults() });
    assert_eq!(by_node, [Warning::UncoveredWorkload { workload: net("10.161.2.9/32") }].into());
}

#[test]
fn a_local_block_outside_every_pool_is_reported() {
    let mut cluster = three_nodes();
    cluster.pools = [net("10.161.0.0/16")].into();
    let outside = |node: &str, workload, host_mode| Warning::WorkloadOutsidePools {
        host_mode,
        node: node.to_owned(),
        workload: net(workload),
    };
    let expected = [
        Warning::UncoveredWorkload { workload: net("fd61:0:0:1::/64") },
        outside("b", "fd61:0:0:2::/64", false),
        outside("c", "fd61:0:0:3::/64", false),
    ];
    assert_eq!(warnings(&cluster, defaults()), expected.into(), "and so are those of others, on every node");
    let reached = [outside("b", "fd61:0:0:2::/64", true), outside("c", "fd61:0:0:3::/64", true)];
    assert_eq!(warnings(&cluster, host_mode()), reached.into(), "whatever else is there");
    assert_eq!(warnings(&cluster, Settings { scope: Scope::Node, ..defaults() }), [].into());
}

#[test]
fn a_node_without_workloads_is_reported_unless_it_is_on_the_link() {
    let mut cluster = three_nodes();
    for name in ["a", "c"] {
        cluster.nodes.get_mut(name).unwrap().workloads.clear();
    }
    let expected = ["a", "c"].map(|node| Warning::NodeWithoutWorkloads { node: node.to_owned() });
    assert_eq!(warnings(&cluster, defaults()), expected.clone().into());
    cluster.nodes.get_mut("a").unwrap().link_addresses.insert(ip("100.64.0.1"));
    assert_eq!(warnings(&cluster, defaults()), [expected[1].clone()].into());
}

#[test]
fn a_port_unlike_that_of_the_own_endpoint_is_reported() {
    let mut cluster = three_nodes();
    let mut judged = |endpoint: &str| {
        cluster.nodes.get_mut("a").unwrap().endpoint = Some(endpoint.parse().unwrap());
        let warnings = warnings(&cluster, defaults());
        warnings.first().map(Warning::severity)
    };
    assert_eq!(judged("192.168.1.1:51820"), None);
    assert_eq!(judged("192.168.1.1:51821"), Some(Severity::Warning));
    assert_eq!(judged("203.0.113.1:51821"), Some(Severity::Info), "a NAT may translate it");
}

#[test]
fn nodes_without_keys_or_endpoints_are_reported() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("b").unwrap().public_key = None;
    cluster.nodes.get_mut("c").unwrap().endpoint = None;
    let expected =
        [Warning::KeylessNode { node: "b".to_owned() }, Warning::NoEndpoint { node: "c".to_owned() }];
    assert_eq!(warnings(&cluster, defaults()), expected.clone().into());
    assert_eq!(expected.map(|warning| warning.severity()), [Severity::Warning, Severity::Info]);
}

#[test]
fn a_missing_or_different_own_key_is_reported() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().public_key = None;
    assert_eq!(warnings(&cluster, defaults()), [Warning::OwnNodeKeyless].into());
    cluster.nodes.get_mut("a").unwrap().public_key = Some(key(9));
    let expected = Warning::OwnKeyDiffers { key_file: key(1), membership: key(9) };
    assert_eq!(warnings(&cluster, defaults()), [expected].into());
}

#[test]
fn a_key_file_copied_from_another_node_is_reported() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().public_key = Some(key(9));
    cluster.nodes.get_mut("b").unwrap().public_key = Some(key(1));
    let shared = Warning::SharedKey {
        public_key: key(1),
        nodes: vec!["a".to_owned(), "b".to_owned()],
        kept_by: Some("a".to_owned()),
    };
    assert!(warnings(&cluster, defaults()).contains(&shared));
}

#[test]
fn overlapping_claims_are_reported() {
    let mut cluster = three_nodes();
    cluster
        .nodes
        .insert("d".to_owned(), node(Some(4), &["192.168.1.4"], &["10.161.2.0/24", "10.161.0.0/20"]));
    let contested = Warning::ContestedPrefix {
        prefix: net("10.161.2.0/24"),
        taken_by: "b".to_owned(),
        refused: vec!["d".to_owned()],
    };
    let nested = Warning::NestedPrefixes {
        prefix: net("10.161.0.0/20"),
        node: "d".to_owned(),
        inner: net("10.161.1.0/24"),
        count: 3,
    };
    assert_eq!(warnings(&cluster, defaults()), [contested, nested].into());
}

#[test]
fn an_own_address_that_a_rule_takes_for_a_workload_is_reported() {
    let mut cluster = three_nodes();
    cluster.pools.insert(net("192.168.0.0/16"));
    let expected = Warning::AddressInScope { address: ip("192.168.1.1"), source: net("192.168.0.0/16") };
    assert_eq!(warnings(&cluster, defaults()), [expected].into());
    assert_eq!(warnings(&cluster, host_mode()), [].into());
    assert_eq!(warnings(&cluster, Settings { scope: Scope::Node, ..defaults() }), [].into());
    // An address that is declared as both is deliberate.
    cluster.nodes.get_mut("a").unwrap().workloads.insert(net("192.168.1.1/32"));
    assert_eq!(warnings(&cluster, defaults()), [].into());
}

#[test]
fn an_address_among_the_workloads_on_an_interface_to_other_machines_is_reported_until_it_is_declared() {
    let mut machine = Machine::new("a", key(1), &three_nodes());
    machine.kernel.here_outward = ["10.161.1.0", "10.161.2.0", "192.168.1.1"].map(ip).into();
    let expected = Warning::AddressNotDeclared { address: ip("10.161.1.0") };
    let mut cluster = three_nodes();
    assert_eq!(machine.reconcile(&cluster).warnings, [expected].into());
    let own = cluster.nodes.get_mut("a").unwrap();
    own.tunnel_addresses.insert(ip("10.161.1.0"));
    assert_eq!(machine.reconcile(&cluster).warnings, [].into());
    let own = cluster.nodes.get_mut("a").unwrap();
    own.tunnel_addresses.clear();
    own.addresses.insert(ip("10.161.1.0"));
    assert_eq!(machine.reconcile(&cluster).warnings, [].into());
    cluster.nodes.get_mut("a").unwrap().addresses.remove(&ip("10.161.1.0"));
    machine.settings.encrypt_host_traffic = true;
    assert_eq!(machine.reconcile(&cluster).warnings, [].into(), "there its packets enter the tunnel");
}

#[test]
fn missing_own_addresses_are_reported_in_host_mode() {
    let mut cluster = three_nodes();
    cluster.nodes.get_mut("a").unwrap().addresses = [ip("192.168.1.1"), ip("fd00::99")].into();
    let expected =
        [Warning::NoOwnAddress { family: Family::V6 }, Warning::AddressNotHere { address: ip("fd00::99") }];
    assert_eq!(warnings(&cluster, host_mode()), expected.into());
    assert_eq!(warnings(&cluster, defaults()), [].into(), "scoped mode needs none");
}

#[test]
fn every_text_names_the_fix() {
    let uncovered = Warning::UncoveredWorkload { workload: net("10.99.0.1/32") };
    assert_eq!(
        uncovered.to_string(),
        "local workload 10.99.0.1/32 is covered by no rule: what it sends leaves in plaintext; \
         declare a pool that holds it (or, with scope = \"node\", give this node a block that does)"
    );
    let keyless = Warning::KeylessNode { node: "b".to_owned() };
    assert_eq!(
        keyless.to_string(),
        "node b has no public key, so traffic with it is not encrypted; \
         publish its key, or refuse such traffic with unproven_peers = \"reject\""
    );
    let shared =
        Warning::SharedKey { public_key: key(0), nodes: vec!["b".to_owned(), "c".to_owned()], kept_by: None };
    assert_eq!(
        shared.to_string(),
        format!(
            "nodes b, c claim the same key {} and are left out of the mesh; \
             generate a key of its own for each of them",
            key(0)
        )
    );
}

/// Contested and nested prefixes, found by comparing every claim with every other.
fn overlaps(cluster: &Cluster) -> BTreeSet<Warning> {
    let claimed: Vec<(IpNet, &str)> = cluster
        .nodes
        .iter()
        .flat_map(|(name, node)| node.workloads.iter().map(|prefix| (*prefix, name.as_str())))
        .collect();
    let mut warnings = BTreeSet::new();
    for prefix in claimed.iter().map(|(prefix, _)| *prefix).collect::<BTreeSet<_>>() {
        let of = |prefix| claimed.iter().filter(move |(other, _)| *other == prefix).map(|(_, name)| *name);
        let owner = of(prefix).min_by_key(|name| (*name != OWN, *name)).unwrap();
        let mut refused: Vec<_> = of(prefix).filter(|name| *name != owner).map(str::to_owned).collect();
        refused.sort();
        let inside: BTreeSet<_> = claimed
            .iter()
            .filter(|(inner, name)| inner.prefix_len() < inner.max_prefix_len() && *name != owner)
            .filter(|(inner, _)| *inner != prefix && prefix.contains(inner))
            .map(|(inner, _)| *inner)
            .collect();
        if !refused.is_empty() {
            warnings.insert(Warning::ContestedPrefix { prefix, taken_by: owner.to_owned(), refused });
        }
        if let Some(inner) = inside.first() {
            let (node, inner, count) = (owner.to_owned(), *inner, inside.len());
            warnings.insert(Warning::NestedPrefixes { prefix, node, inner, count });
        }
    }
    warnings
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn every_overlap_is_reported_after_every_change(
        first in cluster(),
        changes in prop::collection::vec((named_node(), prop::bool::weighted(0.7)), 0..6),
    ) {
        let mut planner = Planner::new(defaults(), key(0), first);
        let kernel = Observed::default();
        let reported = |planner: &mut Planner| -> BTreeSet<Warning> {
            let warnings = planner.plan(&kernel).unwrap().warnings;
            let of_claims = |warning: &Warning| {
                matches!(warning, Warning::ContestedPrefix { .. } | Warning::NestedPrefixes { .. })
            };
            warnings.into_iter().filter(of_claims).collect()
        };
        prop_assert_eq!(reported(&mut planner), overlaps(planner.cluster()));
        for ((name, node), stays) in changes {
            if stays || name == OWN {
                planner.set_node(name, node);
            } else {
                planner.remove_node(name);
            }
            prop_assert_eq!(reported(&mut planner), overlaps(planner.cluster()));
        }
    }
}
