//! Lists and watches.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    super::{
        collection::{Objects, Selection},
        own_node, own_record,
        twin::{Fault, NODES, RECORDS, Twin, node},
    },
    server,
};
use crate::store::{Change, Collection, StoreError, StoreProblem, Version};

fn record(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "wireloom.io/v1alpha1",
        "kind": "WireloomNode",
        "metadata": {"name": name, "labels": {"zone": name}},
        "spec": {"addresses": [address]},
    })
}

fn records(twin: &Twin) -> Objects {
    Objects::new(server(twin), own_record::selection())
}

async fn problem(objects: &mut Objects) -> StoreProblem {
    objects.list().await.unwrap_err().problem
}

#[tokio::test]
async fn a_list_is_of_one_version_however_many_pages_it_has() {
    let twin = Twin::start();
    for number in 0..1203 {
        twin.put(RECORDS, record(&format!("n{number}"), "192.0.2.1"));
    }
    let mut objects = records(&twin);
    let listed = objects.list().await.unwrap();
    assert_eq!((listed.position.version, listed.objects.len()), (Version(2203), 1203));
    assert_eq!(
        twin.take_requests(),
        [
            format!("GET {RECORDS}?&limit=500"),
            format!("GET {RECORDS}?&limit=500&continue=2203-500"),
            format!("GET {RECORDS}?&limit=500&continue=2203-1000"),
        ]
    );
    let first = &listed.objects["n0"];
    assert_eq!(first.value, r#"{"addresses":["192.0.2.1"]}"#);
    assert_eq!((first.uid.as_str(), first.born), ("uid-1", 1_767_225_660));
}

#[tokio::test]
async fn a_watch_tells_changes_and_that_there_were_none() {
    let twin = Twin::start();
    twin.put(RECORDS, record("a", "192.0.2.1"));
    let mut objects = records(&twin);
    let listed = objects.list().await.unwrap();
    let mut changes = objects.watch(listed.position.version).await.unwrap();
    twin.put(RECORDS, record("a", "192.0.2.2"));
    let Some(Ok(Change::Put(name, object, version))) = changes.next().await else { panic!() };
    assert_eq!((name.as_str(), version), ("a", Version(1002)));
    assert_eq!(object.value, r#"{"addresses":["192.0.2.2"]}"#);
    twin.remove(RECORDS, "a");
    assert_eq!(changes.next().await, Some(Ok(Change::Gone("a".into(), Version(1003)))));
    twin.put(NODES, node("elsewhere", &[], &[]));
    twin.bookmark();
    assert_eq!(changes.next().await, Some(Ok(Change::Progress(Version(1004)))));
    twin.cut_watches();
    assert_eq!(changes.next().await, None);
}

#[tokio::test]
async fn selectors_choose_and_metadata_may_do() {
    let twin = Twin::start();
    for name in ["n1", "n2"] {
        twin.put(NODES, node(name, &["10.1.1.0/24"], &["192.0.2.1"]));
        twin.put(RECORDS, record(name, "192.0.2.1"));
    }
    let mut own = Objects::new(server(&twin), own_node::selection("n2"));
    let listed = own.list().await.unwrap();
    assert_eq!(listed.objects.keys().collect::<Vec<_>>(), ["n2"]);
    assert!(!listed.objects["n2"].value.contains("images"), "{}", listed.objects["n2"].value);
    let mut changes = own.watch(listed.position.version).await.unwrap();
    twin.put(NODES, node("n1", &["10.1.1.0/24"], &["192.0.2.9"]));
    twin.put(NODES, node("n2", &["10.1.1.0/24"], &["192.0.2.9"]));
    let Some(Ok(Change::Put(name, ..))) = changes.next().await else { panic!() };
    assert_eq!(name, "n2");

    let labelled =
        Selection { labels: Some("zone=n1".into()), metadata_only: true, ..own_record::selection() };
    let listed = Objects::new(server(&twin), labelled).list().await.unwrap();
    assert_eq!(listed.objects.keys().collect::<Vec<_>>(), ["n1"]);
}

#[tokio::test]
async fn a_version_that_is_no_longer_kept_must_be_listed_again() {
    let twin = Twin::start();
    for number in 0..600 {
        twin.put(RECORDS, record(&format!("n{number}"), "192.0.2.1"));
    }
    let mut objects = records(&twin);
    twin.compact();
    let mut changes = objects.watch(Version(1001)).await.unwrap();
    let Some(Err(StoreError { operation, problem })) = changes.next().await else { panic!() };
    assert!(operation.starts_with("watch the WireloomNodes at http://[2001:db8::1]"), "{operation}");
    assert_eq!(problem, StoreProblem::Compacted);
    assert_eq!(changes.next().await, None);
}

#[tokio::test]
async fn a_store_that_went_back_says_so_and_a_watch_from_its_future_is_silent() {
    let twin = Twin::start();
    let backup = twin.backup();
    twin.put(RECORDS, record("a", "192.0.2.1"));
    let mut objects = records(&twin);
    let seen = objects.list().await.unwrap().position.version;
    twin.restore(backup);
    assert!(objects.position().await.unwrap().version < seen);
    let mut changes = objects.watch(seen).await.unwrap();
    twin.put(RECORDS, record("b", "192.0.2.2"));
    assert_eq!(futures::poll!(changes.next()), std::task::Poll::Pending);
}

#[tokio::test(start_paused = true)]
async fn each_failure_says_what_helps() {
    let twin = Twin::start();
    let mut objects = records(&twin);
    let busy = "Too many requests, please try again later.";

    twin.set_fault(Fault::Refuses { code: 429, retry_after: Some(7) });
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(problem(&mut objects).await, StoreProblem::Unavailable { why: busy.into(), retry_after });
    twin.set_fault(Fault::Refuses { code: 503, retry_after: None });
    assert_eq!(
        problem(&mut objects).await,
        StoreProblem::Unavailable { why: busy.into(), retry_after: None }
    );
    twin.set_fault(Fault::Hangs);
    let why = "no answer within 20 s".into();
    assert_eq!(problem(&mut objects).await, StoreProblem::Unavailable { why, retry_after: None });
    twin.set_fault(Fault::Babbles);
    assert!(
        matches!(problem(&mut objects).await, StoreProblem::Nonsense { why } if why.contains("not JSON"))
    );
    twin.set_fault(Fault::Refuses { code: 403, retry_after: None });
    assert!(matches!(problem(&mut objects).await, StoreProblem::Denied { why } if why.contains("role")));
    twin.set_fault(Fault::Slow(Duration::from_secs(5)));
    objects.list().await.unwrap();
    twin.set_fault(Fault::None);
    twin.remove_kind(RECORDS);
    let StoreError { operation, problem } = objects.list().await.unwrap_err();
    assert!(operation.starts_with("list the WireloomNodes at http://[2001:db8::1]"), "{operation}");
    assert!(matches!(problem, StoreProblem::Nonsense { why } if why.contains("kubectl apply -k")));
}
