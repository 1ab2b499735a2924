//! Two hundred nodes that come, change and go at random, and agents whose watches are cut meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use wireloom_plan::cluster::Node;

use super::fixtures::{
    agent::Agent,
    cluster::{Edition, Etcd},
    inside::inside_for,
    nodes::{node, record},
    proxy::Proxy,
    random::Random,
};
use crate::{
    etcd::{Settings, client::Client, own_record::OwnEntry},
    record::read,
    store::OwnRecord as _,
};

/// How many nodes there are.
const NODES: usize = 200;

/// How many agents follow them.
const AGENTS: u64 = 4;

/// How long nodes change before the agents are looked at.
const ROUND: Duration = Duration::from_secs(5);

/// How soon after the last change every agent must have all of them: the promise, which is kept to when the test runs
/// by hand, and what must never be while other tests run at the same time.
const SOON: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(20));

/// How long a watch that delivers lives before it is cut: a follower waits longer and longer after watches that do not live
/// (`follow::LIVED`), since 5,000 agents must not call all the time at a store that sends them away.
const LIFE: Duration = Duration::from_secs(12);

/// The watch of an agent.
struct Watch {
    /// When it was last cut.
    cut: Instant,
    /// When it is cut next, once it delivers again.
    due: Option<Instant>,
}

/// A node that changes at random.
struct Simulated {
    name: String,
    entry: OwnEntry,
    /// Its record, while it has one.
    node: Option<Node>,
}

/// What all agents must have: the nodes that have records, and those whose records vanished less than ten minutes ago.
type Expected = BTreeMap<String, Node>;

/// Takes `WIRELOOM_CHURN_SECONDS` from the environment (default 20, with the wider limit), `WIRELOOM_CHURN_SEED` too.
#[test]
fn every_agent_has_every_node_soon_after_the_last_change() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let (seconds, soon) = match number("WIRELOOM_CHURN_SECONDS") {
        Some(seconds) => (seconds, SOON.0),
        None => (20, SOON.1),
    };
    let time = Duration::from_secs(seconds);
    let seed = number("WIRELOOM_CHURN_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("WIRELOOM_CHURN_SEED={seed}");
    let etcd = Etcd::start(Edition::Modern, 1);
    inside_for(time, &etcd.space, async || {
        let mut random = Random::new(seed);
        let client = Client::new(etcd.settings());
        let mut nodes: Vec<Simulated> = (0..NODES)
            .map(|index| {
                let name = format!("n{index:03}");
                Simulated { entry: OwnEntry::new(client.clone(), &name), name, node: None }
            })
            .collect();
        let member = "127.0.0.1:2379".parse().unwrap();
        let followed: Vec<(Proxy, Agent)> = (0..AGENTS)
            .map(|index| {
                let proxy = Proxy::start(member, Duration::from_millis(100), seed + index);
                let endpoints = vec![format!("http://{}", proxy.address)];
                let agent =
                    Agent::start(&Settings { endpoints, ..etcd.settings() }, &format!("watcher{index}"));
                (proxy, agent)
            })
            .collect();
        let mut watches: Vec<Watch> = (0..AGENTS).map(|_| Watch { cut: Instant::now(), due: None }).collect();
        let mut expected = Expected::new();
        let (mut changes, mut cut, mut slowest) = (0, 0, Duration::ZERO);
        let mut used = 0;
        let begun = Instant::now();
        while begun.elapsed() < time {
            let round = Instant::now();
            while round.elapsed() < ROUND {
                let chosen = &mut nodes[usize::try_from(random.below(NODES as u64)).unwrap()];
                chosen.change(&mut random, &mut used, &mut expected).await;
                changes += 1;
                for (watch, (proxy, agent)) in watches.iter_mut().zip(&followed) {
                    let now = Instant::now();
                    match watch.due {
                        None if agent.seen().changed.is_some_and(|changed| changed > watch.cut) => {
                            watch.due = Some(now + LIFE + Duration::from_millis(random.below(5000)));
                        }
                        Some(due) if now >= due => {
                            proxy.cut();
                            cut += 1;
                            *watch = Watch { cut: now, due: None };
                        }
                        _ => {}
                    }
                }
                sleep(Duration::from_millis(random.below(20))).await;
            }
            let last = Instant::now();
            for (_, agent) in &followed {
                while agent.nodes() != expected {
                    let late = difference(&agent.nodes(), &expected);
                    assert!(last.elapsed() < soon, "after {soon:?} these differ, with seed {seed}: {late:?}");
                    sleep(Duration::from_millis(5)).await;
                }
                slowest = slowest.max(last.elapsed());
            }
        }
        println!(
            "{changes} changes of {NODES} nodes in {:?}, {cut} connections cut; every agent had everything {slowest:?} \
             after the last change of a round at the latest; {} nodes in force",
            begun.elapsed(),
            expected.len()
        );
    });
}

impl Simulated {
    /// Joins, leaves, vanishes, or changes its key, address and CIDR.
    async fn change(&mut self, random: &mut Random, used: &mut u16, expected: &mut Expected) {
        // What nobody else has or had.
        let mut fresh = || {
            *used = used.checked_add(1).expect("the numbers suffice for the longest run");
            node(*used)
        };
        let next = match (self.node.take(), random.below(8)) {
            (None, _) => fresh(),
            (Some(old), 0) => Node { public_key: fresh().public_key, ..old },
            (Some(old), 1) => Node { endpoint: fresh().endpoint, ..old },
            (Some(old), 2 | 3) => Node { workloads: fresh().workloads, ..old },
            (Some(_), 4 | 5) => fresh(),
            (Some(old), 6) => {
                // It leaves.
                self.write(&Node { encrypt: false, ..old }).await;
                self.entry.delete().await.unwrap();
                expected.remove(&self.name);
                return;
            }
            (Some(_), _) => {
                // Its record vanishes, and stays in force.
                self.entry.delete().await.unwrap();
                return;
            }
        };
        self.write(&next).await;
        expected.insert(self.name.clone(), read(&record(&next)).unwrap());
        self.node = Some(next);
    }

    async fn write(&mut self, node: &Node) {
        self.entry.put(record(node)).await.unwrap();
    }
}

/// The names of the nodes that are not the same.
fn difference(left: &Expected, right: &Expected) -> BTreeSet<String> {
    let names = left.keys().chain(right.keys());
    names.filter(|name| left.get(*name) != right.get(*name)).cloned().collect()
}
