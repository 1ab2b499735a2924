//! The source as a whole: the contract of all stores, and what Kubernetes adds to it.

use std::{sync::Mutex, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::super::{
    Settings, Workloads, connector,
    credentials::Credentials,
    twin::{Fault, NODES, Objects, RECORDS, Twin, node},
};
use crate::{
    contract::{self, Fixture, agent::Agent, node_of},
    source::Connect,
};

struct Kubernetes {
    twin: Twin,
    remembered: Mutex<Option<Objects>>,
}

impl Kubernetes {
    fn start() -> Self {
        let twin = Twin::start();
        twin.put(NODES, node("n1", &["10.1.1.0/24"], &["192.0.2.1"]));
        Self { twin, remembered: Mutex::default() }
    }
}

fn settings() -> Settings {
    Settings {
        kubeconfig: None,
        workloads: Workloads::Auto,
        pools: ["10.1.0.0/16".parse().unwrap()].into(),
        felix_peers: false,
    }
}

fn object(name: &str, spec: &str) -> Value {
    let spec: Value = serde_json::from_str(spec).unwrap();
    json!({"kind": "WireloomNode", "metadata": {"name": name}, "spec": spec})
}

impl Fixture for Kubernetes {
    fn connect(&self) -> Box<dyn Connect + Send> {
        Box::new(connector(Credentials::Twin(self.twin.door()), &settings()))
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        for name in self.twin.all(RECORDS).keys() {
            self.twin.remove(RECORDS, name);
        }
        async {}.boxed()
    }

    fn put<'a>(&'a self, name: &'a str, value: &'a str) -> BoxFuture<'a, ()> {
        self.twin.put(RECORDS, object(name, value));
        async {}.boxed()
    }

    fn delete<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        self.twin.remove(RECORDS, name);
        async {}.boxed()
    }

    fn get<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<String>> {
        let value = self.twin.get(RECORDS, name).map(|object| object["spec"].to_string());
        async { value }.boxed()
    }

    fn set_down(&self, down: bool) -> BoxFuture<'_, ()> {
        self.twin.set_fault(if down { Fault::Refuses { code: 503, retry_after: None } } else { Fault::None });
        self.twin.cut_watches();
        async {}.boxed()
    }

    fn cut(&self) -> BoxFuture<'_, ()> {
        self.twin.cut_watches();
        async {}.boxed()
    }

    fn compact(&self) -> BoxFuture<'_, ()> {
        self.twin.compact();
        self.twin.cut_watches();
        async {}.boxed()
    }

    fn go_back(&self) -> BoxFuture<'_, bool> {
        async {
            // Watches are open by then. One from the future is silent, which is noticed after SILENCE.
            sleep(Duration::from_secs(1)).await;
            self.twin.restore(self.remembered.lock().unwrap().clone().unwrap());
            true
        }
        .boxed()
    }

    fn remember(&self) -> BoxFuture<'_, ()> {
        *self.remembered.lock().unwrap() = Some(self.twin.backup());
        async {}.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_contract_of_all_stores() {
    contract::all(&Kubernetes::start()).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_gives_workloads_and_addresses_and_the_settings_give_pools() {
    let store = Kubernetes::start();
    store.twin.put(NODES, node("n1", &[], &["192.0.2.1"]));
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("the address", |agent| agent.local.is_some()).await;
    assert_eq!(agent.local.as_ref().unwrap().workloads, None, "an empty list is waited for");
    store.twin.put(NODES, node("n1", &["10.1.1.0/24", "fd61::/64"], &["192.0.2.1"]));
    let expected = ["10.1.1.0/24".parse().unwrap(), "fd61::/64".parse().unwrap()].into();
    agent
        .until("the CIDRs", |agent| agent.local.as_ref().unwrap().workloads.as_ref() == Some(&expected))
        .await;
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    assert_eq!(agent.mesh.as_ref().unwrap().pools, ["10.1.0.0/16".parse().unwrap()].into());
}

#[tokio::test(start_paused = true)]
async fn a_collected_record_is_made_again_and_its_owner_is_renewed() {
    let store = Kubernetes::start();
    let agent = Agent::start("n1", store.connect(), None);
    agent.publish(Some(node_of(1)));
    let owner = async |uid: Value| {
        for _ in 0..600 {
            let record = store.twin.get(RECORDS, "n1");
            if record.is_some_and(|record| record["metadata"]["ownerReferences"][0]["uid"] == uid) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{:?} is not owned by {uid}", store.twin.get(RECORDS, "n1"));
    };
    owner("uid-1".into()).await;

    // The Node is added again before anything was collected.
    store.twin.remove(NODES, "n1");
    store.twin.put(NODES, node("n1", &["10.1.1.0/24"], &["192.0.2.1"]));
    let uid = store.twin.get(NODES, "n1").unwrap()["metadata"]["uid"].clone();
    assert_ne!(uid, "uid-1");
    owner(uid.clone()).await;

    // The collector was late.
    store.twin.remove(RECORDS, "n1");
    owner(uid).await;
}

#[tokio::test(start_paused = true)]
async fn no_record_is_made_for_a_node_that_is_gone() {
    let store = Kubernetes::start();
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.publish(Some(node_of(1)));
    agent.until("that it is published", |agent| agent.health.is_published()).await;
    store.twin.remove(NODES, "n1");
    store.twin.remove(RECORDS, "n1");
    agent.until("the problem", |agent| !agent.problems.is_empty()).await;
    assert!(agent.problems[0].contains("there is no Node \"n1\""), "{:?}", agent.problems);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(store.twin.get(RECORDS, "n1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_rotated_token_and_a_server_that_asks_for_peace_cost_no_more_than_time() {
    let store = Kubernetes::start();
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    store.twin.rotate_token("second");
    store.twin.cut_watches();
    store.twin.put(RECORDS, object("n2", &contract::record_of(2)));
    agent.until("n2", |agent| agent.nodes().contains_key("n2")).await;

    store.twin.set_fault(Fault::Refuses { code: 429, retry_after: Some(20) });
    store.twin.cut_watches();
    sleep(Duration::from_secs(1)).await;
    store.twin.take_requests();
    sleep(Duration::from_secs(15)).await;
    let meanwhile = store.twin.take_requests();
    assert!(meanwhile.len() <= 2, "left alone for 20 s: {meanwhile:?}");
    store.twin.set_fault(Fault::None);
    store.twin.put(RECORDS, object("n3", &contract::record_of(3)));
    agent.until("n3", |agent| agent.nodes().contains_key("n3")).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_nothing_any_more_is_replaced() {
    let store = Kubernetes::start();
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    sleep(Duration::from_secs(1)).await;
    store.twin.mute_watches();
    store.put("n2", &contract::record_of(2)).await;
    sleep(Duration::from_secs(60)).await;
    agent.until("n2", |agent| agent.nodes().contains_key("n2")).await;
}

/// An hour without the API server, and then back as it was.
#[tokio::test(start_paused = true)]
async fn an_hours_outage_changes_nothing_and_costs_few_requests() {
    let store = Kubernetes::start();
    store.put("n2", &contract::record_of(2)).await;
    let mut agent = Agent::start("n1", store.connect(), None);
    agent.until("a snapshot", |agent| agent.mesh.is_some()).await;
    let (before, snapshots) = (agent.nodes(), agent.snapshots);
    store.set_down(true).await;
    store.twin.take_requests();
    sleep(Duration::from_secs(3600)).await;
    let requests = store.twin.take_requests().len();
    agent.hear();
    assert_eq!((agent.nodes(), agent.snapshots), (before, snapshots));
    // Three collections, each every 15 to 30 s.
    assert!((120..=600).contains(&requests), "{requests} requests in an hour");
    store.set_down(false).await;
    store.put("n2", &contract::record_of(20)).await;
    agent.until("the change", |agent| agent.nodes()["n2"] == node_of(20)).await;
}
