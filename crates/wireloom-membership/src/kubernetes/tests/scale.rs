//! 5,000 nodes: figures, and no test that passes or fails by the machine's speed.
//!
//! ```text
//! cargo test --release -p wireloom-membership --lib -- --ignored --nocapture scale::figures
//! ```
//!
//! With `WIRELOOM_KUBECONFIG` in the environment the server is the one that it names, instead of the twin.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use serde_json::{Value, json};

use super::super::{
    self as kubernetes, Settings, Workloads,
    credentials::Credentials,
    server::{ApiServer, Call},
    twin::{NODES, RECORDS, Twin, node},
};
use crate::{Event, Start};

const COUNT: u32 = 5000;
const LIMIT: Duration = Duration::from_secs(60);

/// A record of the usual size: a key, an endpoint and two addresses, a CIDR of each family, a tunnel address of each.
fn record(number: u32, port: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    let mut key = [0; 32];
    key[..4].copy_from_slice(&number.to_be_bytes());
    let spec = json!({
        "publicKey": wireloom_types::PublicKey::from_bytes(key).to_string(),
        "endpoints": [format!("172.16.{high}.{low}:{port}"), format!("[2001:db8::{number:x}]:{port}")],
        "addresses": [format!("172.16.{high}.{low}"), format!("2001:db8::{number:x}")],
        "workloads": [format!("10.{high}.{low}.0/24"), format!("fd61:0:0:{number:x}::/64")],
        "tunnelAddresses": [format!("10.{high}.{low}.1"), format!("fd61:0:0:{number:x}::1")],
        "encrypt": true,
    });
    let owner = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "name": format!("node-{number}"),
        "uid": "0f5a32b4-3c4e-4d6a-9d38-1a2b3c4d5e6f",
        "blockOwnerDeletion": false,
    });
    json!({"apiVersion": "wireloom.io/v1alpha1", "kind": "WireloomNode",
        "metadata": {"name": format!("node-{number}"), "ownerReferences": [owner]}, "spec": spec})
}

/// Serves the twin as a process of its own, so that the other one has an agent's memory alone. Each line that it reads
/// changes the record of that number.
#[test]
#[ignore = "is the other process of `figures`"]
fn server() {
    let lines = std::io::stdin().lines().map(|line| line.unwrap().parse().unwrap());
    match std::env::var_os("WIRELOOM_KUBECONFIG") {
        Some(kubeconfig) => real(kubeconfig.as_ref(), lines),
        None => twin(lines),
    }
}

fn twin(changes: impl Iterator<Item = u32>) {
    let twin = Twin::on_a_thread();
    twin.put(NODES, node("node-1", &["10.0.1.0/24"], &["172.16.0.1"]));
    for number in 1..=COUNT {
        twin.put(RECORDS, record(number, 51820));
    }
    let bytes: usize = twin.all(RECORDS).values().map(|object| object.to_string().len()).sum();
    println!("a record has {} bytes", bytes / COUNT as usize);
    println!("kubeconfig {}", twin.kubeconfig().display());
    changes.for_each(|number| twin.put(RECORDS, record(number, 51821)));
}

fn real(kubeconfig: &Path, changes: impl Iterator<Item = u32>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = ApiServer::new(Credentials::Kubeconfig(kubeconfig.to_owned()));
    let write = async |number: u32, port: u32| {
        let name = format!("node-{number}");
        let mut object = record(number, port);
        let found = server.get(RECORDS, &name, "read a record").await.unwrap();
        let found = match found {
            Some(found) => found,
            None => server.ask(RECORDS, Call::Create(&object), "make a record").await.unwrap(),
        };
        object["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
        object["metadata"]["managedFields"] = json!([{}]);
        server.ask(RECORDS, Call::Replace(&name, &object), "write a record").await.unwrap().to_string().len()
    };
    runtime.block_on(async {
        let writes = futures::stream::iter(1..=COUNT).map(|number| write(number, 51820)).buffer_unordered(50);
        let bytes: usize = writes.collect::<Vec<_>>().await.iter().sum();
        println!("a record has {} bytes", bytes / COUNT as usize);
    });
    println!("kubeconfig {}", kubeconfig.display());
    for number in changes {
        runtime.block_on(write(number, 51821));
    }
}

#[test]
#[ignore = "prints figures"]
fn figures() {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "kubernetes::tests::scale::server"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut change = server.stdin.take().unwrap();
    let mut kubeconfig = None;
    for line in BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap) {
        println!("{line}");
        kubeconfig = line.strip_prefix("kubeconfig ").map(Into::into);
        if kubeconfig.is_some() {
            break;
        }
    }
    let settings =
        Settings { kubeconfig, workloads: Workloads::Auto, pools: Default::default(), felix_peers: false };
    println!("memory before: {}", memory());
    let (tell, told) = mpsc::channel();
    let begun = Instant::now();
    let start = Start { node: "node-1".into(), recorded: None };
    let following = kubernetes::follow(&settings, start, move |event| {
        if let Event::Snapshot(mesh) = event {
            let _ = tell.send((Instant::now(), mesh));
        }
    });
    let following = following.unwrap();
    let (at, mesh) = told.recv_timeout(LIMIT).unwrap();
    assert_eq!(mesh.nodes.len(), COUNT as usize);
    println!("first snapshot after {:?} and {} ms of a core; memory: {}", at - begun, cpu(), memory());
    let before = cpu();
    let mut took: Vec<Duration> = (0..50)
        .map(|turn| {
            let begun = Instant::now();
            writeln!(change, "{}", 100 + turn).unwrap();
            let (at, mesh) = told.recv_timeout(LIMIT).unwrap();
            assert_eq!(mesh.nodes[&format!("node-{}", 100 + turn)].endpoint.unwrap().port(), 51821);
            at - begun
        })
        .collect();
    took.sort_unstable();
    println!("a change arrives after {:?} (median), {:?} (worst of 50)", took[25], took[49]);
    println!("50 changes take {} ms of a core; memory: {}", cpu() - before, memory());
    assert_eq!(following.health().errors(), 0);
    drop(change);
    server.wait().unwrap();
}

/// The time that this process has had a core, in milliseconds.
fn cpu() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
    // `utime` and `stime`, in ticks of 10 ms (proc(5)).
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
}

/// The memory that this process has now, and the most that it had.
fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    format!("{} MiB (at most {} MiB)", field("VmRSS:"), field("VmHWM:"))
}
