//! The contract, tried on the store in memory; and what only that store can be made to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::{Instant, sleep};
use wireloom_plan::cluster::Node;

use super::{Fixture, agent::Agent, mesh_of, node_of, record_of};
use crate::{
    follow::SILENCE,
    knowledge::{Handler, Knowledge},
    memory::{Content, Memory},
    mesh::GRACE,
    record::Spelling,
    source::{Connect, Followed, Stores},
    store::Object,
};

/// The handler of a collection in which each object is the record of the node whose name it has.
#[derive(Debug)]
struct Records;

impl Handler for Records {
    fn whole(&mut self, objects: BTreeMap<String, Object>, knowledge: &mut Knowledge) {
        knowledge.records(objects);
    }

    fn change(&mut self, name: &str, object: Option<&Object>, knowledge: &mut Knowledge) {
        knowledge.record(name, object);
    }
}

pub(super) struct InMemory {
    pub(super) memory: Memory,
    remembered: std::sync::Mutex<Option<Content>>,
}

impl InMemory {
    pub(super) fn new() -> Self {
        Self::of(Memory::new())
    }

    pub(super) fn of(memory: Memory) -> Self {
        Self { memory, remembered: std::sync::Mutex::default() }
    }
}

impl Fixture for InMemory {
    fn connect(&self) -> Box<dyn Connect + Send> {
        let memory = self.memory.clone();
        Box::new(move |node: &str| {
            let stores = Stores {
                spelling: Spelling::Snake,
                followed: vec![Followed::new(memory.collection(), Records)],
                own_record: Some(Box::new(memory.own_record(node))),
                addresses: BTreeSet::new(),
                reports: None,
            };
            async { Ok(stores) }.boxed()
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        for name in self.memory.content().objects.keys() {
            self.memory.delete(name);
        }
        async {}.boxed()
    }

    fn put<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, ()> {
        self.memory.put(name, value);
        async {}.boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.memory.delete(name);
        async {}.boxed()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<String>> {
        let value = self.memory.content().objects.get(name).map(|object| object.value.clone());
        async { value }.boxed()
    }

    fn set_down(&self, down: bool) -> BoxFuture<'_, ()> {
        self.memory.fail(|faults| faults.down = down);
        async {}.boxed()
    }

    fn cut(&self) -> BoxFuture<'_, ()> {
        self.memory.cut();
        async {}.boxed()
    }

    fn compact(&self) -> BoxFuture<'_, ()> {
        self.memory.compact();
        async {}.boxed()
    }

    fn go_back(&self) -> BoxFuture<'_, bool> {
        let content = self.remembered.lock().unwrap().take().unwrap();
        self.memory.restore(content);
        async { true }.boxed()
    }

    fn remember(&self) -> BoxFuture<'_, ()> {
        *self.remembered.lock().unwrap() = Some(self.memory.content());
        async {}.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_in_memory_keeps_the_contract() {
    super::all(&InMemory::new()).await;
}

/// A store in memory with two nodes, and the agent of the first.
async fn two_nodes() -> (Memory, Agent) {
    let store = InMemory::new();
    store.memory.put("n1", &record_of(1));
    store.memory.put("n2", &record_of(2));
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    (store.memory, agent)
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_changes_is_one_snapshot() {
    let (memory, mut agent) = two_nodes().await;
    for number in 3..200 {
        memory.put(&format!("n{number}"), &record_of(number));
    }
    sleep(Duration::from_millis(500)).await;
    agent.hear();
    assert_eq!((agent.nodes().len(), agent.snapshots), (199, 2));
}

#[tokio::test(start_paused = true)]
async fn what_vanished_stays_for_ten_minutes_and_what_left_goes_at_once() {
    let (memory, mut agent) = two_nodes().await;
    memory.delete("n2");
    sleep(GRACE - Duration::from_secs(1)).await;
    agent.hear();
    assert_eq!((agent.nodes(), agent.snapshots), (mesh_of(&[("n1", 1), ("n2", 2)]), 1));
    sleep(Duration::from_secs(2)).await;
    agent.hear();
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1)]));
}

#[tokio::test(start_paused = true)]
async fn what_vanished_while_no_agent_ran_stays_for_ten_minutes() {
    let (memory, mut agent) = two_nodes().await;
    let recorded = agent.mesh.take();
    drop(agent);
    memory.delete("n2");
    memory.put("n3", &record_of(3));
    sleep(2 * GRACE).await;
    let store = InMemory::of(memory);
    let mut agent = Agent::start("n1", store.connect(), recorded);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n2", 2), ("n3", 3)]));
    sleep(GRACE + Duration::from_secs(1)).await;
    agent.hear();
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n3", 3)]));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_once_costs_little_and_its_end_is_told() {
    let (memory, mut agent) = two_nodes().await;
    memory.fail(|faults| faults.down = true);
    sleep(Duration::from_secs(3600)).await;
    agent.hear();
    assert_eq!(agent.problems, ["cannot ask where the store stands: connection refused"]);
    assert_eq!((agent.snapshots, agent.nodes()), (1, mesh_of(&[("n1", 1), ("n2", 2)])));
    let counts = memory.counts();
    assert!((100..300).contains(&counts.positions), "{counts:?}");
    assert_eq!((counts.lists, counts.watches), (1, 1));
    memory.fail(|faults| faults.down = false);
    agent.until("that it is over", |agent| agent.snapshots == 2).await;
    assert_eq!(memory.counts().lists, 2, "after an hour, everything is read again");
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_is_no_problem_and_no_new_list() {
    let (memory, mut agent) = two_nodes().await;
    for _ in 0..3 {
        memory.cut();
        sleep(Duration::from_secs(60)).await;
    }
    agent.hear();
    assert_eq!((agent.problems.len(), agent.snapshots, memory.counts().lists), (0, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_nothing_is_replaced() {
    let (memory, mut agent) = two_nodes().await;
    memory.mute();
    memory.put("n3", &record_of(3));
    sleep(SILENCE + Duration::from_secs(1)).await;
    agent.hear();
    assert!(agent.nodes().contains_key("n3"));
    assert_eq!(memory.counts().lists, 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_store_is_not_asked_often() {
    let (memory, _agent) = two_nodes().await;
    let before = memory.counts();
    sleep(Duration::from_secs(3600)).await;
    let after = memory.counts();
    assert!(after.positions - before.positions <= 40, "{after:?}");
    assert_eq!((before.lists, before.watches), (after.lists, after.watches));
}

#[tokio::test(start_paused = true)]
async fn a_stale_replica_cannot_turn_time_back() {
    let (memory, mut agent) = two_nodes().await;
    let old = memory.content();
    memory.put("n2", &record_of(20));
    memory.put("n3", &record_of(3));
    agent.until("n3", |agent| agent.nodes().contains_key("n3")).await;
    memory.fail(|faults| faults.stale = Some(old));
    agent.reread();
    agent.until("that it is not believed", |agent| !agent.problems.is_empty()).await;
    assert!(agent.problems[0].contains("is a stale replica's, and is not believed"), "{:?}", agent.problems);
    sleep(Duration::from_secs(60)).await;
    agent.hear();
    let expected = mesh_of(&[("n1", 1), ("n2", 20), ("n3", 3)]);
    assert_eq!((agent.nodes(), agent.problems.len()), (expected, 1));
    memory.fail(|faults| faults.stale = None);
    memory.put("n4", &record_of(4));
    agent.until("n4", |agent| agent.nodes().contains_key("n4")).await;
}

#[tokio::test(start_paused = true)]
async fn another_store_of_a_later_version_is_noticed() {
    let (memory, mut agent) = two_nodes().await;
    let other = InMemory::new();
    other.memory.put("n1", &record_of(1));
    other.memory.put("n3", &record_of(3));
    let mut content = other.memory.content();
    content.id = "second".into();
    content.version += 1000;
    memory.restore(content);
    let expected = mesh_of(&[("n1", 1), ("n2", 2), ("n3", 3)]);
    agent.until("the other store's", |agent| agent.nodes() == expected).await;
    assert!(agent.problems[0].contains("the store is another one than before"), "{:?}", agent.problems);
}

#[tokio::test(start_paused = true)]
async fn an_empty_store_that_went_back_takes_nothing_away_for_ten_minutes() {
    let (memory, mut agent) = two_nodes().await;
    memory.restore(Memory::new().content());
    agent.until("that it went back", |agent| !agent.problems.is_empty()).await;
    sleep(Duration::from_secs(300)).await;
    agent.hear();
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n2", 2)]));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_ask_is_told_the_fix_once() {
    let (memory, mut agent) = two_nodes().await;
    memory.fail(|faults| faults.denied = true);
    memory.cut();
    sleep(Duration::from_secs(600)).await;
    agent.hear();
    assert_eq!(agent.problems, ["cannot ask where the store stands: not allowed; change the role"]);
    memory.fail(|faults| faults.denied = false);
    agent.until("that it is over", |agent| agent.snapshots == 2).await;
}

#[tokio::test(start_paused = true)]
async fn own_writes_grow_rare_while_somebody_else_changes_the_record_again_and_again() {
    let (memory, mut agent) = two_nodes().await;
    agent.publish(Some(node_of(7)));
    let begun = Instant::now();
    let other = record_of(9);
    while begun.elapsed() < Duration::from_secs(1800) {
        memory.put("n1", &other);
        sleep(Duration::from_millis(500)).await;
    }
    let writes = memory.writes();
    assert!((8..=24).contains(&writes.len()), "{} writes in 30 minutes", writes.len());
    let longest = writes.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest > Duration::from_secs(140) && longest < Duration::from_secs(310), "{longest:?}");
    assert!(writes.windows(2).all(|pair| pair[1] - pair[0] >= Duration::from_millis(999)));
    // He stops: it is restored once more, and that is it.
    sleep(Duration::from_secs(310)).await;
    agent.hear();
    assert_eq!(agent.nodes()["n1"], node_of(7));
    let count = memory.writes().len();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(memory.writes().len(), count);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_changes_often_is_written_at_most_once_a_second() {
    let (memory, mut agent) = two_nodes().await;
    for number in 0..100 {
        agent.publish(Some(node_of(100 + number)));
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(3)).await;
    agent.hear();
    assert_eq!(agent.nodes()["n1"], node_of(199));
    let writes = memory.writes();
    assert!((8..=12).contains(&writes.len()), "{} writes", writes.len());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_published_during_an_outage_is_written_after_it() {
    let store = InMemory::new();
    store.memory.fail(|faults| faults.down = true);
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.publish(Some(node_of(1)));
    sleep(Duration::from_secs(120)).await;
    store.memory.fail(|faults| faults.down = false);
    agent.until("the own record", |agent| agent.nodes() == mesh_of(&[("n1", 1)])).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_name_no_record_may_have_leaves_without_an_announcement() {
    let store = InMemory::new();
    store.put("n2", &record_of(2)).await;
    let mut agent = Agent::start("n/1", store.connect(), None);
    agent.publish(Some(node_of(1)));
    agent.until("the refusal", |agent| !agent.problems.is_empty()).await;
    assert!(!agent.health.is_published());
    agent.publish(Some(Node { encrypt: false, ..node_of(1) }));
    let limit = Instant::now() + super::LIMIT;
    while !agent.health.is_published() {
        assert!(Instant::now() < limit, "it never counts as announced");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(store.get("n/1").await, None);
}
