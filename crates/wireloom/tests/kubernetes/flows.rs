//! The flow table, without Wireloom and with it.

use wireloom_lab::{
    Cluster, ClusterLayout, DaemonSet, PodNetwork, ProxyMode,
    flows::{FLOWS, FlowTable, Situation, Testbed},
};

use crate::fixtures::{IMAGES, TAGS, WORKLOAD};

/// Measures the whole table before Wireloom is installed and afterwards, and prints both.
fn measure(proxy: ProxyMode, network: PodNetwork) {
    let cluster = Cluster::new(&ClusterLayout { nodes: 3, proxy, network }, &WORKLOAD).unwrap();
    let testbed = Testbed::start(&cluster).unwrap();
    let mut situation = Situation { wireloom: false, proxy, network };
    let before = FlowTable::measure(&testbed, situation, FLOWS).unwrap();
    print(&before);

    cluster.import(&IMAGES[0]).unwrap();
    let daemon_set = DaemonSet::with_pools(&cluster, TAGS[0]).unwrap();
    daemon_set.wait_for_proofs(&cluster).unwrap();
    situation.wireloom = true;
    let after = FlowTable::measure(&testbed, situation, FLOWS).unwrap();
    print(&after);
    let broken = [before.broken(), after.broken()].concat();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn print(table: &FlowTable) {
    // Captured output goes to a file or a pipe.
    println!("{}\n\n{}", table.situation, anstream::adapter::strip_str(&table.to_string()));
}

#[test]
fn flows_with_iptables() {
    measure(ProxyMode::Iptables, PodNetwork::Bridge);
}

#[test]
fn flows_with_nftables() {
    measure(ProxyMode::Nftables, PodNetwork::Bridge);
}

#[test]
fn flows_with_masquerading() {
    measure(ProxyMode::Iptables, PodNetwork::MasqueradingBridge);
}

#[test]
fn flows_with_vxlan() {
    measure(ProxyMode::Nftables, PodNetwork::Vxlan);
}
