//! Nodes that join, leave, vanish and change at random, while the store fails in every way. At the end the mesh is what
//! the records say, plus what vanished less than ten minutes ago; and at no time is a node missing that has a record.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection::vec, prelude::*, test_runner::TestCaseError};
use tokio::{
    runtime,
    time::{Instant, sleep},
};
use wireloom_plan::cluster::Node;

use super::{Fixture as _, agent::Agent, memory::InMemory};
use crate::{
    follow::SILENCE,
    memory::{Content, Faults},
    mesh::GRACE,
    record::{self, Spelling},
};

/// The longest that a source needs after the last fault: until a silent watch is noticed, and the longest wait between
/// two attempts.
const SETTLED: Duration = SILENCE.saturating_add(Duration::from_secs(60));

#[derive(Debug, Clone)]
enum Act {
    /// The node of this number joins, or changes everything.
    Put(u8),
    /// It leaves: `encrypt = false`, and after this time its record is deleted.
    Leave(u8, Duration),
    /// Its record is deleted.
    Vanish(u8),
    /// Its record becomes no record.
    Garbage(u8),
    Pass(Duration),
    Down(bool),
    Delay(Duration),
    Cut,
    Mute,
    Compact,
    /// The store is as it was at this earlier point.
    GoBack(usize),
    /// Lists come from a replica that is as old as this.
    Stale(usize),
    Fresh,
    /// The agent starts again.
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let node = || 0..8_u8;
    let millis = |max: u64| (0..max).prop_map(Duration::from_millis);
    prop_oneof![
        8 => node().prop_map(Act::Put),
        3 => (node(), millis(100)).prop_map(|(node, time)| Act::Leave(node, time)),
        3 => node().prop_map(Act::Vanish),
        2 => node().prop_map(Act::Garbage),
        4 => millis(3000).prop_map(Act::Pass),
        1 => (0..700_u64).prop_map(|seconds| Act::Pass(Duration::from_secs(seconds))),
        2 => any::<bool>().prop_map(Act::Down),
        1 => millis(1500).prop_map(Act::Delay),
        2 => Just(Act::Cut),
        1 => Just(Act::Mute),
        1 => Just(Act::Compact),
        1 => (0..10_usize).prop_map(Act::GoBack),
        1 => (0..10_usize).prop_map(Act::Stale),
        1 => Just(Act::Fresh),
        1 => Just(Act::Restart),
    ]
}

/// The store, an agent, and what is known of both.
struct World {
    store: InMemory,
    agent: Agent,
    /// What the store had earlier, oldest first.
    earlier: Vec<Content>,
    /// Nodes that the agent has, and that have had records ever since.
    held: BTreeSet<String>,
    vanished: BTreeMap<String, Vanished>,
    /// Nodes that the agent knew to have left when their records were deleted.
    left: BTreeSet<String>,
    /// Every good record that each node ever had.
    versions: BTreeMap<String, Vec<Node>>,
    counter: u16,
    /// How many stores there have been.
    stores: u32,
}

/// A node whose record was deleted, and that had not left.
struct Vanished {
    since: Instant,
    /// What the agent had of it.
    had: Node,
    /// Whether the agent has had it since, until its time is up.
    is_sure: bool,
}

impl World {
    fn new() -> Self {
        let store = InMemory::new();
        let agent = Agent::start("n0", store.connect(), None);
        Self {
            store,
            agent,
            earlier: Vec::new(),
            held: BTreeSet::new(),
            vanished: BTreeMap::new(),
            left: BTreeSet::new(),
            versions: BTreeMap::new(),
            counter: 0,
            stores: 0,
        }
    }

    /// A node that claims what no other ever claims.
    fn node(&mut self) -> Node {
        self.counter += 1;
        let [high, low] = self.counter.to_be_bytes();
        let mut key = [9; 32];
        key[..2].copy_from_slice(&[high, low]);
        Node {
            public_key: Some(wireloom_types::PublicKey::from_bytes(key)),
            addresses: [[172, 16, high, low].into()].into(),
            workloads: [ipnet::IpNet::new([10, high, low, 0].into(), 24).unwrap()].into(),
            ..Node::default()
        }
    }

    fn put(&mut self, name: &str, node: Node) {
        self.store.memory.put(name, &record::write(&node, Spelling::Snake));
        self.versions.entry(name.to_owned()).or_default().push(node);
    }

    async fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        let before = self.store.memory.content();
        self.agent.hear();
        let mesh = self.agent.nodes();
        let memory = self.store.memory.clone();
        match act {
            Act::Put(number) => {
                let node = self.node();
                self.put(&format!("n{number}"), node);
            }
            Act::Leave(number, time) => {
                let name = format!("n{number}");
                if before.objects.contains_key(&name) {
                    let node = Node { encrypt: false, ..self.node() };
                    self.put(&name, node);
                    self.look(&before, &mesh)?;
                    sleep(time).await;
                    self.agent.hear();
                    let (before, mesh) = (memory.content(), self.agent.nodes());
                    memory.delete(&name);
                    return self.look(&before, &mesh);
                }
            }
            Act::Vanish(number) => memory.delete(&format!("n{number}")),
            Act::Garbage(number) => memory.put(&format!("n{number}"), "{\"workloads\": 5}"),
            Act::Pass(time) => sleep(time).await,
            Act::Down(down) => memory.fail(|faults| faults.down = down),
            Act::Delay(delay) => memory.fail(|faults| faults.delay = delay),
            Act::Cut => memory.cut(),
            Act::Mute => memory.mute(),
            Act::Compact => memory.compact(),
            Act::GoBack(place) => {
                if let Some(content) = self.earlier.get(place) {
                    // A store that has gone back and been written to until it is at the version that the agent saw last
                    // can only be told by its id.
                    self.stores += 1;
                    let mut content = content.clone();
                    content.id = format!("store {}", self.stores);
                    memory.restore(content);
                }
            }
            Act::Stale(place) => {
                // The first list of an agent has nothing to be compared with; stores see to it that it is not stale.
                let stale = self.earlier.get(place).filter(|_| self.agent.health.heard().is_some()).cloned();
                memory.fail(|faults| faults.stale = stale);
            }
            Act::Fresh => memory.fail(|faults| faults.stale = None),
            Act::Restart => {
                memory.fail(|faults| faults.stale = None);
                let recorded = self.agent.mesh.clone();
                self.agent = Agent::start("n0", self.store.connect(), recorded.clone());
                self.agent.mesh = recorded;
            }
        }
        self.look(&before, &mesh)
    }

    /// What the last act changed, and that nobody is missing.
    fn look(&mut self, before: &Content, mesh: &BTreeMap<String, Node>) -> Result<(), TestCaseError> {
        let content = self.store.memory.content();
        for (name, object) in before.objects.iter().filter(|(name, _)| !content.objects.contains_key(*name)) {
            self.held.remove(name);
            let (had, record) = (mesh.get(name), record::read(&object.value).ok());
            match (had, &record) {
                (Some(had), Some(record)) if had.encrypt && record.encrypt => {
                    // One that had vanished before, and that the agent has not heard of since, counts from then.
                    if had == record || !self.vanished.contains_key(name) {
                        let had = had.clone();
                        self.vanished
                            .insert(name.clone(), Vanished { since: Instant::now(), had, is_sure: true });
                    }
                }
                (Some(had), Some(record)) if !had.encrypt && !record.encrypt => {
                    self.vanished.remove(name);
                    self.left.insert(name.clone());
                }
                // The agent has yet to hear of what was the last record, if it ever does.
                _ => {
                    let had = had.cloned().or(record).unwrap_or_default();
                    self.vanished
                        .insert(name.clone(), Vanished { since: Instant::now(), had, is_sure: false });
                }
            }
        }
        self.left.retain(|name| !content.objects.contains_key(name));
        self.agent.hear();
        let mesh = self.agent.nodes();
        for (name, object) in &content.objects {
            let known = mesh.get(name).filter(|node| record::read(&object.value).as_ref() == Ok(*node));
            let Some(known) = known else { continue };
            if self.vanished.get(name).is_none_or(|vanished| vanished.had != *known) {
                self.vanished.remove(name);
                self.held.insert(name.clone());
            }
        }
        for name in &self.held {
            prop_assert!(mesh.contains_key(name), "{name} has a record and was there, but is missing");
        }
        if self.earlier.len() < 10 {
            self.earlier.push(content);
        }
        Ok(())
    }

    /// All faults end. After a while the mesh is what the records say.
    async fn end(&mut self) -> Result<(), TestCaseError> {
        self.store.memory.fail(|faults| *faults = Faults::default());
        sleep(SETTLED).await;
        self.agent.hear();
        let mesh = self.agent.nodes();
        let content = self.store.memory.content();
        for (name, object) in &content.objects {
            match record::read(&object.value) {
                Ok(node) => prop_assert_eq!(mesh.get(name), Some(&node), "{} as its record says", name),
                // Of a bad one, the last good version that the agent heard of, if any.
                Err(_) => prop_assert!(
                    mesh.get(name).is_none_or(|node| self.versions[name].contains(node)),
                    "{name} as a record of it said"
                ),
            }
        }
        let is_gone = |name: &String| !content.objects.contains_key(name);
        for (name, vanished) in self.vanished.iter().filter(|(name, _)| is_gone(name)) {
            let since = vanished.since.elapsed();
            let may_be_missing = !vanished.is_sure || since >= GRACE;
            prop_assert!(may_be_missing || mesh.contains_key(name), "{name} vanished {since:?} ago");
        }
        for name in mesh.keys().filter(|name| is_gone(name)) {
            prop_assert!(!self.left.contains(name), "{name} has left");
        }
        // After ten more minutes only those with records are there.
        sleep(GRACE).await;
        self.agent.hear();
        let rest: Vec<String> = self.agent.nodes().into_keys().collect();
        prop_assert!(!rest.iter().any(is_gone), "{rest:?} at the end");
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_mesh_is_what_the_records_say(acts in vec(act(), 1..60)) {
        let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            for act in acts {
                world.act(act).await?;
            }
            world.end().await
        })?;
    }
}
