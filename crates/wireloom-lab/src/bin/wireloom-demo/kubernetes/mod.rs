//! `wireloom-demo kubernetes`: who reaches whom on a real cluster, without Wireloom and with it.

mod output;
mod step;
mod traffic;

use std::{path::Path, process::ExitCode, time::Instant};

use anyhow::Context as _;
use wireloom_lab::{
    Capture, Cluster, ClusterLayout, DaemonSet, PodNetwork, ProxyMode,
    flows::{FLOWS, FlowTable, Situation, Testbed},
    require,
};

use self::{step::step, traffic::Traffic};
use super::keep;

/// The nodes of the [`flows`](wireloom_lab::flows).
const NODES: u8 = 3;

/// The tag that `deploy/image/build` gives the image.
const TAG: &str = env!("CARGO_PKG_VERSION");

/// Runs the demo. `image` is the archive that `deploy/image/build` makes.
pub(super) fn run(image: &Path, keep: bool) -> anyhow::Result<ExitCode> {
    if keep {
        // The printed commands use them.
        require(&["nsenter", "ping", "tcpdump"])?;
    }
    let absolute = image.canonicalize();
    let image = absolute.with_context(|| format!("cannot read the image {}", image.display()))?;
    let workload = crate::program("wireloom-workload")?;
    let began = Instant::now();
    output::introduction(NODES);
    let layout = ClusterLayout { nodes: NODES, proxy: ProxyMode::Iptables, network: PodNetwork::Bridge };
    let mut situation = Situation { wireloom: false, proxy: layout.proxy, network: layout.network };
    let cluster = step("Starting the cluster", || Ok(Cluster::new(&layout, &workload)?))?;
    output::versions(&cluster, situation)?;
    let testbed = step("Starting pods and services", || Ok(Testbed::start(&cluster)?))?;

    let (before, traffic) = step("Measuring", || measure(&cluster, &testbed, situation))?;
    output::show('a', "Without Wireloom", &before, &traffic);

    step("Installing Wireloom with kubectl", || {
        cluster.import(&image)?;
        Ok(DaemonSet::with_pools(&cluster, TAG)?.wait_for_proofs(&cluster)?)
    })?;
    situation.wireloom = true;
    let (after, traffic) = step("Measuring", || measure(&cluster, &testbed, situation))?;
    output::show('b', "With Wireloom", &after, &traffic);

    let mut broken = [before.broken(), after.broken()].concat();
    if traffic.plaintext > 0 {
        broken.push(format!("with Wireloom, {traffic}"));
    }
    output::conclusion(&broken, began.elapsed());
    if !broken.is_empty() {
        let logs = "logs --namespace wireloom --selector app.kubernetes.io/name=wireloom --prefix";
        anstream::eprintln!("\nthe agents' logs:\n{}", cluster.kubectl(logs)?);
    }
    if keep {
        keep::kubernetes(cluster, &testbed)?;
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures the whole table, and what crosses the network between the nodes meanwhile.
fn measure(
    cluster: &Cluster,
    testbed: &Testbed,
    situation: Situation,
) -> anyhow::Result<(FlowTable, Traffic)> {
    let capture = Capture::open(&testbed.underlay)?;
    let table = FlowTable::measure(testbed, situation, FLOWS)?;
    let pods: Vec<_> = cluster.nodes().iter().flat_map(|node| node.block).collect();
    Ok((table, Traffic::of(&capture.drain()?, &pods)))
}
