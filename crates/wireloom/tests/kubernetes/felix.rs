//! Keys shared with Calico's Felix by annotations on Nodes, with the rights of the component `felix-peers`, and
//! workloads from Calico's objects. Nothing of Calico's runs: its kinds and objects are there, without their schemas.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wireloom_lab::{
    Cluster, DaemonSet, Node, PATIENCE,
    mesh::{KeyPair, PORT},
    until,
};

use crate::fixtures::wireloom;

/// Calico's kinds, in both API groups: as in a cluster with Calico's API server.
const KINDS: [(&str, &str, &str, &str); 4] = [
    ("crd.projectcalico.org", "v1", "IPPool", "ippools"),
    ("crd.projectcalico.org", "v1", "BlockAffinity", "blockaffinities"),
    ("projectcalico.org", "v3", "IPPool", "ippools"),
    ("projectcalico.org", "v3", "BlockAffinity", "blockaffinities"),
];

/// A Node whose Felix encrypts. It has no machine.
const FELIX: &str = "felix";
const FELIX_BLOCK: &str = "10.161.200.0/24";
const FELIX_ADDRESS: &str = "192.168.1.200";
const FELIX_TUNNEL_ADDRESS: &str = "10.161.200.1";

/// Where its Felix publishes its key.
const KEY: &str = "projectcalico.org/WireguardPublicKey";

/// How often another Node changes.
const CHANGES: usize = 10;

/// Turns a cluster with Wireloom into one with Calico that moves to Wireloom, lets the agents share keys with Felix,
/// and looks at what they know and publish.
pub(crate) fn assert_keys_are_shared(cluster: &Cluster, daemon_set: &DaemonSet) {
    cluster.apply(&list(&KINDS.map(kind))).unwrap();
    cluster.kubectl("wait --for condition=established --timeout 30s crd --all").unwrap();
    cluster.apply(&list(&objects(cluster))).unwrap();
    let [key, last] = [(); 2].map(|()| KeyPair::generate(&wireloom(), &cluster.nodes()[0]).unwrap().public);
    annotate(cluster, FELIX, KEY, &key);
    daemon_set.delete(cluster).unwrap();
    daemon_set.share_with_felix().unwrap();
    daemon_set.apply(cluster).unwrap();
    daemon_set.wait_for_proofs(cluster).unwrap();

    wait_for_key(cluster, daemon_set, &key);
    for node in cluster.nodes() {
        let record = cluster.get(&format!("wireloomnode {}", node.name)).unwrap();
        until(PATIENCE, &format!("{} to share its key with Felix", node.name), || {
            let found = cluster.get(&format!("node {}", node.name)).ok()?;
            (found["metadata"]["annotations"][KEY] == record["spec"]["publicKey"]).then_some(())
        })
        .unwrap();
    }
    // A Node with all that a kubelet and controllers write. Its own agent reads more of it than its metadata.
    let (changing, others) = cluster.nodes().split_first().unwrap();
    let before: Vec<_> = others.iter().map(received).collect();
    (0..CHANGES).for_each(|turn| annotate(cluster, &changing.name, "turn", &turn.to_string()));
    annotate(cluster, FELIX, KEY, &last);
    wait_for_key(cluster, daemon_set, &last);
    let grown: u64 = others.iter().zip(&before).map(|(node, before)| grown(before, &received(node))).sum();
    let bytes = grown / u64::try_from(others.len() * (CHANGES + 1)).unwrap();
    println!("figure: felix_peers: an agent receives {bytes} bytes each time that a Node changes, with TLS");
}

fn list(items: &[Value]) -> String {
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn kind((group, version, kind, plural): (&str, &str, &str, &str)) -> Value {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let version = json!({
        "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "scope": "Cluster",
            "versions": [version],
        },
    })
}

/// The pools, a block of each family for every node, and the node whose Felix encrypts.
fn objects(cluster: &Cluster) -> Vec<Value> {
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": kind,
            "metadata": { "name": name },
            "spec": spec,
        })
    };
    let block = |host: &str, number: usize, cidr: &str| {
        let spec =
            json!({ "cidr": cidr, "deleted": "false", "node": host, "state": "confirmed", "type": "host" });
        object("BlockAffinity", &format!("{host}-{number}"), spec)
    };
    let mut objects = vec![
        object("IPPool", "pods4", json!({ "cidr": "10.161.0.0/16", "vxlanMode": "Never" })),
        object("IPPool", "pods6", json!({ "cidr": "fd00:10:161::/48", "vxlanMode": "Never" })),
        block(FELIX, 0, FELIX_BLOCK),
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": FELIX,
                "annotations": {
                    "projectcalico.org/IPv4Address": format!("{FELIX_ADDRESS}/24"),
                    "projectcalico.org/IPv4WireguardInterfaceAddr": FELIX_TUNNEL_ADDRESS,
                },
            },
        }),
    ];
    for node in cluster.nodes() {
        let blocks = node.block.iter().enumerate();
        objects.extend(blocks.map(|(number, cidr)| block(&node.name, number, &cidr.to_string())));
    }
    objects
}

fn annotate(cluster: &Cluster, node: &str, name: &str, value: &str) {
    cluster.kubectl(&format!("annotate --overwrite node {node} {name}={value}")).unwrap();
}

/// Waits until every agent has the peer with this key, where its Felix listens.
fn wait_for_key(cluster: &Cluster, daemon_set: &DaemonSet, key: &str) {
    for (n, node) in cluster.members() {
        let mut status = Value::Null;
        let known = until(PATIENCE, &format!("{} to know the key", node.name), || {
            status = daemon_set.status(cluster, n).ok()?;
            let peer = status["peers"].as_array()?.iter().find(|peer| peer["name"] == FELIX)?;
            let is_known = peer["public_key"] == key && peer["endpoint"] == format!("{FELIX_ADDRESS}:{PORT}");
            (is_known && peer["allowed_ips"] == json!([FELIX_BLOCK])).then_some(())
        });
        assert!(known.is_ok(), "{known:?}: {status}");
    }
}

/// How many bytes the agent of a node has received over each TCP connection, by the connection's two ends: only the API
/// server sends it any.
fn received(node: &Node) -> BTreeMap<String, u64> {
    let sockets = node.run("ss --tcp --numeric --info --processes --oneline --no-header").unwrap();
    let agents = sockets.lines().filter(|line| line.contains("(\"wireloom\""));
    let counts = agents.filter_map(|line| {
        let count = line.split("bytes_received:").nth(1)?.split(' ').next()?;
        // Before the ends there are the state and two queues.
        let ends: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        Some((ends.join(" "), count.trim().parse().unwrap()))
    });
    counts.collect()
}

/// How many bytes more there are now. A connection may have closed meanwhile, and its end be used again.
fn grown(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> u64 {
    let of = |(ends, count): (&String, &u64)| match before.get(ends) {
        Some(had) if had <= count => count - had,
        _ => *count,
    };
    now.iter().map(of).sum()
}
