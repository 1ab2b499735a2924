//! `deploy/kubernetes/remove.yaml`.

use wireloom_lab::ClusterLayout;

use crate::fixtures::{BOOT_UNIT, WithWireloom};

#[test]
fn removal_leaves_the_keys_and_nothing_else_on_the_nodes() {
    let on = WithWireloom::new(&ClusterLayout::default());
    for node in on.cluster.nodes() {
        assert!(node.host.space.read(BOOT_UNIT).unwrap().is_some(), "{} has no boot unit", node.name);
    }
    on.daemon_set.remove_from_nodes(&on.cluster).unwrap();
    for node in on.cluster.nodes() {
        let run = |line: &str| node.run(line).unwrap();
        assert_eq!(run("find /etc/systemd/system -mindepth 1"), "", "{}", node.name);
        assert_eq!(run("ls -A /var/lib/wireloom"), "wg0.key\n", "{}", node.name);
        assert_eq!(run("ip rule show pref 99") + &run("ip -6 rule show pref 99"), "", "{}", node.name);
        assert!(!run("ip link show").contains("wg0"), "{}", node.name);
        assert!(!run("nft list tables").contains("wireloom"), "{}", node.name);
    }
}
