//! What every store must do for the agent: one test for all of them. A store's tests make a fixture and call the
//! functions here, each with a fresh store:
//!
//! ```ignore
//! #[tokio::test]
//! async fn the_first_snapshot_is_whole() {
//!     contract::the_first_snapshot_is_whole(&Fixture::start().await).await;
//! }
//! ```
//!
//! Or all of them, one after the other on one store that [`Fixture::clear`] empties in between: [`all`].

use std::{collections::BTreeMap, time::Duration};

use futures::future::BoxFuture;
use tokio::time::sleep;
use wireloom_plan::cluster::Node;

use self::agent::Agent;
use crate::{record, source::Connect};

pub(crate) mod agent;
mod churn;
mod memory;

/// The longest wait for anything. A store's follower tries again after 30 s at the latest.
pub(crate) const LIMIT: Duration = Duration::from_secs(45);

/// A store under test. Waits end when the store has done it.
pub(crate) trait Fixture {
    /// Connects to the store as the agent of this node would.
    fn connect(&self) -> Box<dyn Connect + Send>;

    /// Removes all records.
    fn clear(&self) -> BoxFuture<'_, ()>;

    /// Writes the record of a node, as somebody else would.
    fn put<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, ()>;

    /// Deletes the record of a node.
    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;

    /// The record of a node as the store has it.
    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<String>>;

    /// From now on nobody reaches the store, or reaches it again.
    fn set_down(&self, down: bool) -> BoxFuture<'_, ()>;

    /// Cuts all watches.
    fn cut(&self) -> BoxFuture<'_, ()>;

    /// Cuts all watches, and forgets all changes so far.
    fn compact(&self) -> BoxFuture<'_, ()>;

    /// Takes the store back to what it was when [`Fixture::remember`] was called; false if this one cannot.
    fn go_back(&self) -> BoxFuture<'_, bool>;

    /// Remembers what the store has.
    fn remember(&self) -> BoxFuture<'_, ()>;
}

/// All of the contract.
pub(crate) async fn all(store: &impl Fixture) {
    store.clear().await;
    the_first_snapshot_is_whole(store).await;
    store.clear().await;
    a_bad_record_is_left_out_alone(store).await;
    store.clear().await;
    cut_watches_and_compaction_lose_nothing(store).await;
    store.clear().await;
    the_last_good_state_outlives_an_outage_and_a_restart(store).await;
    store.clear().await;
    the_own_record_is_published_restored_and_removed(store).await;
    store.clear().await;
    a_store_that_goes_back_in_time_is_noticed(store).await;
}

/// The record of a node that is unlike those with other numbers.
pub(crate) fn record_of(number: u8) -> String {
    record::write(&node_of(number), record::Spelling::Snake)
}

/// The node that [`record_of`] describes.
pub(crate) fn node_of(number: u8) -> Node {
    Node {
        public_key: Some(wireloom_types::PublicKey::from_bytes([number; 32])),
        endpoint: Some(([192, 0, 2, number], 51820).into()),
        addresses: [[192, 0, 2, number].into()].into(),
        workloads: [format!("10.1.{number}.0/24").parse().unwrap()].into(),
        ..Node::default()
    }
}

fn mesh_of(nodes: &[(&str, u8)]) -> BTreeMap<String, Node> {
    nodes.iter().map(|(name, number)| ((*name).to_owned(), node_of(*number))).collect()
}

pub(crate) async fn the_first_snapshot_is_whole(store: &impl Fixture) {
    for (name, number) in [("n1", 1), ("n2", 2), ("n3", 3)] {
        store.put(name, &record_of(number)).await;
    }
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n2", 2), ("n3", 3)]), "the first snapshot is whole");
    store.put("n2", &record_of(20)).await;
    store.put("n4", &record_of(4)).await;
    let expected = mesh_of(&[("n1", 1), ("n2", 20), ("n3", 3), ("n4", 4)]);
    agent.until("the changes", |agent| agent.nodes() == expected).await;
    // Who leaves says so first. Who merely vanishes stays.
    let leaving = Node { encrypt: false, ..node_of(3) };
    store.put("n3", &record::write(&leaving, record::Spelling::Snake)).await;
    agent.until("that n3 leaves", |agent| !agent.nodes()["n3"].encrypt).await;
    store.delete("n4").await;
    store.delete("n3").await;
    let expected = mesh_of(&[("n1", 1), ("n2", 20), ("n4", 4)]);
    agent.until("that n3 has left", |agent| agent.nodes() == expected).await;
    assert_eq!(agent.problems, Vec::<String>::new());
    assert_eq!(agent.complaints, Vec::<String>::new());
}

pub(crate) async fn a_bad_record_is_left_out_alone(store: &impl Fixture) {
    store.put("n1", &record_of(1)).await;
    store.put("n2", &record_of(2)).await;
    store.put("bad", r#"{"workloads": ["10.1.0.1/16"]}"#).await;
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some() && !agent.complaints.is_empty()).await;
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n2", 2)]));
    assert!(agent.complaints[0].starts_with("\"bad\": workloads: "), "{:?}", agent.complaints);
    store.put("n2", r#"{"public_key": "c2hvcnQ="}"#).await;
    agent.until("that n2 is bad", |agent| agent.complaints.len() == 2).await;
    assert_eq!(agent.nodes(), mesh_of(&[("n1", 1), ("n2", 2)]), "the last good version stays");
    store.put("n2", &record_of(22)).await;
    store.put("bad", &record_of(3)).await;
    let expected = mesh_of(&[("n1", 1), ("n2", 22), ("bad", 3)]);
    agent.until("that both are good", |agent| agent.nodes() == expected && agent.complaints.is_empty()).await;
}

pub(crate) async fn cut_watches_and_compaction_lose_nothing(store: &impl Fixture) {
    store.put("n1", &record_of(1)).await;
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    for round in 0..2 {
        store.cut().await;
        store.put("n2", &record_of(20 + round)).await;
        agent.until("n2 after a cut", |agent| agent.nodes().get("n2") == Some(&node_of(20 + round))).await;
    }
    store.put("n3", &record_of(3)).await;
    store.compact().await;
    store.put("n4", &record_of(4)).await;
    let expected = mesh_of(&[("n1", 1), ("n2", 21), ("n3", 3), ("n4", 4)]);
    agent.until("n3 and n4 after a compaction", |agent| agent.nodes() == expected).await;
}

pub(crate) async fn the_last_good_state_outlives_an_outage_and_a_restart(store: &impl Fixture) {
    let before = mesh_of(&[("n1", 1), ("n2", 2)]);
    store.put("n1", &record_of(1)).await;
    store.put("n2", &record_of(2)).await;
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    store.set_down(true).await;
    agent.until("that the store is away", |agent| !agent.problems.is_empty()).await;
    assert_eq!(agent.nodes(), before);
    assert!(agent.health.errors() > 0);
    // A restart while it is away.
    let recorded = agent.mesh.take();
    drop(agent);
    let mut agent = Agent::start("n1", store.connect(), recorded);
    agent.until("the recorded mesh", |agent| agent.mesh.is_some()).await;
    assert_eq!(agent.nodes(), before);
    // Without a record there is nothing to deliver.
    let mut fresh = Agent::start("n3", store.connect(), None);
    fresh.until("that the store is away", |agent| !agent.problems.is_empty()).await;
    assert_eq!(fresh.mesh, None);
    store.set_down(false).await;
    store.put("n2", &record_of(20)).await;
    let after = mesh_of(&[("n1", 1), ("n2", 20)]);
    agent.until("the change after the outage", |agent| agent.nodes() == after).await;
    fresh.until("the first snapshot after the outage", |agent| agent.nodes() == after).await;
    assert!(agent.health.heard().is_some());
}

pub(crate) async fn the_own_record_is_published_restored_and_removed(store: &impl Fixture) {
    store.put("n2", &record_of(2)).await;
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.publish(Some(node_of(1)));
    agent.until("the own record", |agent| agent.nodes() == mesh_of(&[("n1", 1), ("n2", 2)])).await;
    agent.until("that it is published", |agent| agent.health.is_published()).await;
    assert_eq!(read(store, "n1").await, Some(node_of(1)));
    // Somebody else changes and deletes it.
    store.put("n1", &record_of(9)).await;
    wait(store, "n1", Some(node_of(1))).await;
    store.delete("n1").await;
    wait(store, "n1", Some(node_of(1))).await;
    // It changes.
    agent.publish(Some(node_of(11)));
    wait(store, "n1", Some(node_of(11))).await;
    // It leaves.
    agent.publish(Some(Node { encrypt: false, ..node_of(11) }));
    wait(store, "n1", Some(Node { encrypt: false, ..node_of(11) })).await;
    agent.publish(None);
    wait(store, "n1", None).await;
    agent.until("that n1 has left", |agent| agent.nodes() == mesh_of(&[("n2", 2)])).await;
}

pub(crate) async fn a_store_that_goes_back_in_time_is_noticed(store: &impl Fixture) {
    store.put("n1", &record_of(1)).await;
    store.put("n2", &record_of(2)).await;
    store.remember().await;
    let mut agent = Agent::start("n1", store.connect(), None);
    store.put("n2", &record_of(20)).await;
    store.put("n3", &record_of(3)).await;
    let expected = mesh_of(&[("n1", 1), ("n2", 20), ("n3", 3)]);
    agent.until("three nodes", |agent| agent.nodes() == expected).await;
    if !store.go_back().await {
        return;
    }
    // n3 has vanished, which is no leave.
    let expected = mesh_of(&[("n1", 1), ("n2", 2), ("n3", 3)]);
    agent.until("what the store had before", |agent| agent.nodes() == expected).await;
    let is_named =
        |problem: &String| problem.contains("went back in time") || problem.contains("another one");
    assert!(agent.problems.iter().any(is_named), "{:?}", agent.problems);
    store.put("n4", &record_of(4)).await;
    agent.until("a change after that", |agent| agent.nodes().contains_key("n4")).await;
}

async fn read(store: &impl Fixture, name: &str) -> Option<Node> {
    store.get(name).await.map(|value| record::read(&value).unwrap())
}

async fn wait(store: &impl Fixture, name: &str, expected: Option<Node>) {
    let limit = tokio::time::Instant::now() + LIMIT;
    loop {
        let now = read(store, name).await;
        if now == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < limit, "the record of {name} is {now:?}, not {expected:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
