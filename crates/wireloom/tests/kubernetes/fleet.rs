//! The mesh from the API server: `kubectl apply -k deploy/kubernetes` and nothing written by hand, nodes that come and
//! go, and the way out. All of it under pings, one in 10 ms, of which none is lost.

use std::{collections::BTreeSet, time::Instant};

use wireloom_lab::{Cluster, ClusterLayout, DaemonSet, Node, PATIENCE, until};

use crate::{
    fixtures::{BOOT_UNIT, IMAGES, TAGS, WORKLOAD},
    metrics::{POD_MONITORS, assert_metrics},
    pings::{Pings, pod_name, start_pods, wait_for_answer},
};

/// How many nodes Wireloom is installed on under pings.
const JOINING: u8 = if cfg!(feature = "soak") { 6 } else { 3 };

/// So many nodes, and no Wireloom.
fn cluster(nodes: u8) -> Cluster {
    let cluster = Cluster::new(&ClusterLayout { nodes, ..ClusterLayout::default() }, &WORKLOAD).unwrap();
    cluster.import(&IMAGES[0]).unwrap();
    cluster
}

/// The names of the objects of this kind.
fn names(cluster: &Cluster, kind: &str) -> BTreeSet<String> {
    let output = cluster.kubectl(&format!("get {kind} --output name")).unwrap();
    output.lines().map(|line| line.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn joining_and_uninstalling_lose_nothing_and_leave_nothing() {
    let cluster = cluster(JOINING);
    cluster.apply(POD_MONITORS).unwrap();
    start_pods(&cluster, cluster.nodes());
    let pings = Pings::among(&cluster, cluster.nodes());

    let began = Instant::now();
    let daemon_set = DaemonSet::with_component(&cluster, TAGS[0], "metrics").unwrap();
    daemon_set.wait_for_proofs(&cluster).unwrap();
    let took = began.elapsed().as_secs_f64();
    let cost = pings.stop();
    println!("figure: {JOINING} nodes join, until all are proven after {took:.1} s: {cost}");
    assert_eq!(cost.lost, 0, "joining: {cost}");
    let nodes: BTreeSet<String> = cluster.nodes().iter().map(|node| node.name.clone()).collect();
    assert_eq!(names(&cluster, "wireloomnodes"), nodes);
    until(PATIENCE, "every node to report", || {
        (names(&cluster, "wireloomnodestatuses") == nodes).then_some(())
    })
    .unwrap();

    // From here on nothing between pods is in plaintext.
    let pings = Pings::among(&cluster, cluster.nodes());
    pings.wait_for_answers();
    assert_metrics(&cluster);
    let cost = pings.stop();
    assert_eq!((cost.lost, cost.plaintext), (0, 0), "encrypted: {cost}");

    let pings = Pings::among(&cluster, cluster.nodes());
    let began = Instant::now();
    daemon_set.take_off_nodes(&cluster, TAGS[0]).unwrap();
    for kind in ["wireloomnodes", "wireloomnodestatuses"] {
        until(PATIENCE, kind, || names(&cluster, kind).is_empty().then_some(())).unwrap();
    }
    daemon_set.uninstall(&cluster).unwrap();
    pings.wait_for_answers();
    let took = began.elapsed().as_secs_f64();
    let cost = pings.stop();
    println!("figure: {JOINING} nodes are uninstalled in {took:.1} s: {cost}");
    assert_eq!(cost.lost, 0, "uninstalling: {cost}");
    cluster.nodes().iter().for_each(assert_clean);
    for kind in ["namespaces", "clusterroles", "clusterrolebindings", "validatingadmissionpolicies", "crds"] {
        let left = names(&cluster, kind);
        assert!(!left.iter().any(|name| name.contains("wireloom")), "{kind}: {left:?}");
    }
}

fn assert_clean(node: &Node) {
    let run = |line: &str| node.run(line).unwrap();
    assert_eq!(node.host.space.read(BOOT_UNIT).unwrap(), None, "{}", node.name);
    assert_eq!(run("find /etc/systemd/system -mindepth 1"), "", "{}", node.name);
    // It is a mount here, as in no user's cluster, so that it cannot go itself.
    assert_eq!(run("find /var/lib/wireloom /run/wireloom /run/wireguard -mindepth 1"), "", "{}", node.name);
    let rules = run("ip rule show pref 99") + &run("ip -6 rule show pref 99");
    assert_eq!(rules, "", "{}", node.name);
    assert!(!run("ip link show").contains("wg0"), "{}", node.name);
    assert!(!run("nft list tables").contains("wireloom"), "{}", node.name);
}

#[test]
fn nodes_come_go_and_come_back_as_others() {
    let mut cluster = cluster(3);
    cluster.take_out(2).unwrap();
    start_pods(&cluster, &cluster.nodes()[..2]);
    let daemon_set = DaemonSet::install(&cluster, TAGS[0]).unwrap();
    daemon_set.wait_for_proofs(&cluster).unwrap();
    let pings = Pings::start(&cluster);

    // As it was first; with another address and CIDR, on the same disk; under another name, with a key of its own.
    let mut keys = BTreeSet::new();
    for (name, number) in [("node-c", 3), ("node-c", 9), ("node-z", 9)] {
        cluster.bring_in(2, name, number).unwrap();
        daemon_set.wait(&cluster).unwrap();
        daemon_set.wait_for_proofs(&cluster).unwrap();
        start_pods(&cluster, &cluster.nodes()[2..]);
        let [a, c] = [&cluster.nodes()[0], &cluster.nodes()[2]].map(|node| pod_of(&cluster, node));
        wait_for_answer(&a, &c);
        let record = cluster.get(&format!("wireloomnode {name}")).unwrap();
        let address = cluster.nodes()[2].host.addresses.v4.to_string();
        assert!(record["spec"]["endpoints"][0].as_str().unwrap().starts_with(&address), "{record}");
        let node = cluster.get(&format!("node {name}")).unwrap();
        assert_eq!(record["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
        keys.insert(record["spec"]["publicKey"].as_str().unwrap().to_owned());
        // It goes without a word, and what it wrote goes with its Node.
        until(PATIENCE, "the node to report", || {
            names(&cluster, "wireloomnodestatuses").contains(name).then_some(())
        })
        .unwrap();
        cluster.take_out(2).unwrap();
        until(2 * PATIENCE, "record and status to go", || {
            let left = ["wireloomnodes", "wireloomnodestatuses"].map(|kind| names(&cluster, kind));
            (!left.iter().any(|names| names.contains(name))).then_some(())
        })
        .unwrap();
    }
    assert_eq!(keys.len(), 2, "one key for each name: {keys:?}");
    let cost = pings.stop();
    println!("figure: a node joins, leaves and comes back, between pods of other nodes: {cost}");
    assert_eq!((cost.lost, cost.plaintext), (0, 0), "{cost}");
}

fn pod_of(cluster: &Cluster, node: &Node) -> wireloom_lab::Place {
    cluster.pod(&pod_name(node)).unwrap()
}
