//! What an agent costs with 5,000 nodes in Kubernetes: `scripts/bench membership`, which prints figures: the first
//! snapshot, memory, and how soon one change arrives. The server is the twin of the tests, in another process; with
//! `WIRELOOM_KUBECONFIG` in the environment it is the one that this names, which must have our kinds.
//!
//! Targets: a first plan below 2 s, memory below 64 MiB, a change below 100 ms.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Client, Config,
    api::{GetParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Request,
};
use serde_json::{Value, json};
use wireloom_membership::{
    Event, Source, Start,
    kubernetes::{Settings, Workloads},
};

use self::twin::{NODES, RECORDS, Twin, node};

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../src/kubernetes/twin/mod.rs"]
mod twin;

/// The argument of the process that serves.
const SERVER: &str = "serve";

const COUNT: u32 = 5000;
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    if env::args().any(|argument| argument == SERVER) { serve() } else { measure() }
}

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
fn serve() {
    let lines = std::io::stdin().lines().map(|line| line.unwrap().parse().unwrap());
    match env::var_os("WIRELOOM_KUBECONFIG") {
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
    runtime.block_on(async {
        let config = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let write = async |number: u32, port: u32| {
            let (name, mut object) = (format!("node-{number}"), record(number, port));
            let api = Request::new(RECORDS);
            let body = |object: &Value| object.to_string().into_bytes();
            let found = client.request(api.get(&name, &GetParams::default()).unwrap()).await;
            let found: Value = match found {
                Ok(found) => found,
                Err(_) => {
                    let create = api.create(&PostParams::default(), body(&object)).unwrap();
                    client.request(create).await.unwrap()
                }
            };
            object["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
            // As agents write it.
            object["metadata"]["managedFields"] = json!([{}]);
            let replace = api.replace(&name, &PostParams::default(), body(&object)).unwrap();
            client.request::<Value>(replace).await.unwrap().to_string().len()
        };
        let writes = futures::stream::iter(1..=COUNT).map(|number| write(number, 51820)).buffer_unordered(50);
        let bytes: usize = writes.collect::<Vec<_>>().await.iter().sum();
        println!("a record has {} bytes", bytes / COUNT as usize);
        println!("kubeconfig {}", kubeconfig.display());
        for number in changes {
            write(number, 51821).await;
        }
    });
}

fn measure() {
    let mut server = Command::new(env::current_exe().unwrap())
        .arg(SERVER)
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
    let source = Source::Kubernetes(Box::new(settings));
    let following = source.follow(start, move |event| {
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
    println!("requests that failed: {}", following.health().errors());
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
