//! Figures with 5,000 nodes: an agent's first snapshot, its memory, and how soon it hears of a change.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use etcd_client::{Txn, TxnOp};
use tokio::time::sleep;

use super::fixtures::{
    agent::Agent,
    cluster::{Edition, Etcd},
    inside::{inside, until},
    nodes::{node, record},
    proxy::Proxy,
};
use crate::etcd::{Settings, layout};

const NODES: u16 = 5_000;

/// How often a change is measured.
const CHANGES: u16 = 20;

/// Debug builds are not fast, and CI's processors have other work: the figures are for reading, these bounds for what
/// must never be.
const FIRST: Duration = Duration::from_secs(60);

/// With `WIRELOOM_REST_SECONDS` in the environment it also measures for so long what an agent receives while nothing
/// changes.
#[test]
fn figures_with_5000_nodes() {
    let etcd = Etcd::start(Edition::Modern, 1);
    inside(&etcd.space, async || {
        let prefix = layout::prefix("m");
        let mut client = etcd.client(None).await;
        let numbers: Vec<u16> = (1..=NODES).collect();
        // A record and its key, twice 64: as many as fit in a transaction.
        for numbers in numbers.chunks(64) {
            let puts: Vec<TxnOp> = numbers
                .iter()
                .flat_map(|number| {
                    let (name, node) = (format!("n{number:04}"), node(*number));
                    let key = node.public_key.unwrap();
                    [
                        TxnOp::put(format!("{prefix}{}{name}", layout::NODES), record(&node), None),
                        TxnOp::put(format!("{prefix}{}{key}", layout::KEYS), name, None),
                    ]
                })
                .collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
        let proxy = Proxy::start("127.0.0.1:2379".parse().unwrap(), Duration::ZERO, 0);
        let settings = Settings { endpoints: vec![format!("http://{}", proxy.address)], ..etcd.settings() };
        let memory = resident();
        let begun = Instant::now();
        let agent = Agent::start(&settings, "n0001");
        let first = loop {
            if let Some(changed) = agent.seen().changed {
                break changed.duration_since(begun);
            }
            assert!(begun.elapsed() < FIRST, "no first snapshot after {FIRST:?}");
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(agent.names().len(), usize::from(NODES));
        println!(
            "{NODES} nodes: first snapshot after {first:?}, {} KiB received, {} KiB more memory",
            proxy.received() / 1024,
            resident().saturating_sub(memory)
        );
        let received = proxy.received();
        let mut times: Vec<Duration> = Vec::new();
        for change in 0..CHANGES {
            let name = format!("n{:04}", change + 1);
            let next = node(NODES + 1 + change);
            let begun = Instant::now();
            client.put(format!("{prefix}{}{name}", layout::NODES), record(&next), None).await.unwrap();
            let has = async || {
                let seen = agent.seen();
                let is_new = seen.mesh.as_ref()?.nodes.get(&name)?.workloads == next.workloads;
                is_new.then_some(seen.changed?)
            };
            times.push(until("a change", has).await.duration_since(begun));
        }
        times.sort();
        println!(
            "one change: heard after {:?} (median; the slowest {:?}), {} bytes received",
            times[times.len() / 2],
            times[times.len() - 1],
            (proxy.received() - received) / u64::from(CHANGES)
        );
        if let Some(seconds) = env::var("WIRELOOM_REST_SECONDS").ok().and_then(|text| text.parse().ok()) {
            let received = proxy.received();
            sleep(Duration::from_secs(seconds)).await;
            println!("at rest: {} bytes received in {seconds} s", proxy.received() - received);
        }
    });
}

/// The memory of this process, in KiB: only what one test uses when it runs alone.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
