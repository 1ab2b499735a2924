//! The mesh from a file, installed and removed: `deploy/kubernetes/overlays/mesh-file`.

use wireloom_lab::{Cluster, ClusterLayout, DaemonSet};

use crate::fixtures::{BOOT_UNIT, IMAGES, TAGS, WORKLOAD, wireloom};

#[test]
fn removal_leaves_the_keys_and_nothing_else_on_the_nodes() {
    let cluster = Cluster::new(&ClusterLayout::default(), &WORKLOAD).unwrap();
    cluster.import(&IMAGES[0]).unwrap();
    let daemon_set = DaemonSet::with_mesh_file(&cluster, &wireloom(), TAGS[0]).unwrap();
    daemon_set.wait_for_proofs(&cluster).unwrap();
    for node in cluster.nodes() {
        assert!(node.host.space.read(BOOT_UNIT).unwrap().is_some(), "{} has no boot unit", node.name);
    }
    daemon_set.remove_from_nodes(&cluster).unwrap();
    for node in cluster.nodes() {
        let run = |line: &str| node.run(line).unwrap();
        assert_eq!(run("find /etc/systemd/system -mindepth 1"), "", "{}", node.name);
        // With the time of the last handshake that was made with it.
        assert_eq!(run("ls -A /var/lib/wireloom"), "wg0.key\nwg0.timestamp\n", "{}", node.name);
        assert_eq!(run("ip rule show pref 99") + &run("ip -6 rule show pref 99"), "", "{}", node.name);
        assert!(!run("ip link show").contains("wg0"), "{}", node.name);
        assert!(!run("nft list tables").contains("wireloom"), "{}", node.name);
    }
}
