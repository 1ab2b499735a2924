//! The `WireloomNodeStatus` and the Events.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    super::{
        Report, Workloads,
        collection::Objects,
        events::Events,
        own_node::{self, OwnNodeHandler, Owner},
        reporter::Reporter,
        twin::{EVENTS, Fault, STATUSES, Twin},
    },
    own_record::knowledge,
    server, twin_with_node,
};
use crate::{calico::Own, knowledge::Handler, store::Collection};

fn report(state: &str, warnings: &[&str]) -> Report {
    Report {
        state: state.into(),
        version: "0.1.0".into(),
        message: format!("This node is {state}."),
        peers: (1, 2),
        warnings: warnings.iter().map(|&warning| warning.into()).collect(),
    }
}

pub(super) async fn reporter(twin: &Twin) -> mpsc::UnboundedSender<Report> {
    let owner = Owner::default();
    let listed = Objects::new(server(twin), own_node::selection("n1")).list().await.unwrap();
    OwnNodeHandler::new("n1", owner.clone(), Own::new(Workloads::PodCidrs))
        .whole(listed.objects, &mut knowledge());
    let (reports, reported) = mpsc::unbounded_channel();
    tokio::spawn(Reporter::new(server(twin), "n1", owner).run(reported));
    reports
}

/// Waits until the status has this state, and returns how long that took.
async fn state(twin: &Twin, state: &str) -> Duration {
    let begun = Instant::now();
    while twin.get(STATUSES, "n1").is_none_or(|status| status["status"]["state"] != state) {
        sleep(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(600), "{:?}", twin.get(STATUSES, "n1"));
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_status_follows_at_most_once_a_minute() {
    let twin = twin_with_node();
    let reports = reporter(&twin).await;
    reports.send(report("NotEncrypted", &["n2 is silent for 30 s"])).unwrap();
    assert!(state(&twin, "NotEncrypted").await < Duration::from_secs(1));
    let first = twin.get(STATUSES, "n1").unwrap();
    assert_eq!(first["status"]["peers"].to_string(), r#"{"encrypted":1,"total":2}"#);
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], "uid-1");
    let conditions = first["status"]["conditions"].as_array().unwrap();
    let conditions =
        conditions.iter().map(|it| (it["type"].as_str().unwrap(), it["status"].as_str().unwrap()));
    assert_eq!(conditions.collect::<Vec<_>>(), [("Encrypted", "False"), ("Degraded", "True")]);

    for _ in 0..50 {
        reports.send(report("Starting", &[])).unwrap();
        reports.send(report("Encrypted", &[])).unwrap();
    }
    let took = state(&twin, "Encrypted").await;
    assert!((50..70).contains(&took.as_secs()), "{took:?}");
    twin.take_requests();
    reports.send(report("Encrypted", &[])).unwrap();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(twin.take_requests(), Vec::<String>::new(), "what does not change is not written");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_left_has_no_status() {
    let twin = twin_with_node();
    let reports = reporter(&twin).await;
    for _ in 0..2 {
        reports.send(report("Encrypted", &[])).unwrap();
        state(&twin, "Encrypted").await;
        // What waits for its minute does not come afterwards.
        reports.send(report("NotEncrypted", &[])).unwrap();
        reports.send(Report::default()).unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(twin.get(STATUSES, "n1").is_none());
        sleep(Duration::from_secs(100)).await;
        assert!(twin.get(STATUSES, "n1").is_none());
    }
    assert_eq!(twin.all(EVENTS).len(), 1, "that it was not encrypted: {:?}", twin.all(EVENTS));
}

#[tokio::test(start_paused = true)]
async fn an_outage_only_delays_the_status() {
    let twin = twin_with_node();
    let reports = reporter(&twin).await;
    twin.set_fault(Fault::Refuses { code: 503, retry_after: None });
    twin.take_requests();
    reports.send(report("Encrypted", &[])).unwrap();
    sleep(Duration::from_secs(200)).await;
    let attempts = twin.take_requests().len();
    assert!((3..=4).contains(&attempts), "{attempts} attempts in 200 s");
    twin.set_fault(Fault::None);
    assert!(state(&twin, "Encrypted").await < Duration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn warnings_that_begin_are_events_about_the_node() {
    let twin = twin_with_node();
    let reports = reporter(&twin).await;
    reports.send(report("Encrypted", &["n2 is silent for 30 s", "The guard is off"])).unwrap();
    reports.send(report("Encrypted", &["n2 is silent for 31 s"])).unwrap();
    reports.send(report("NotEncrypted", &["n2 is silent for 32 s"])).unwrap();
    state(&twin, "NotEncrypted").await;
    let events = twin.all(EVENTS);
    let mut notes: Vec<_> = events
        .values()
        .map(|event| (event["type"].as_str().unwrap(), event["note"].as_str().unwrap()))
        .collect();
    notes.sort_unstable();
    assert_eq!(
        notes,
        [
            ("Warning", "The guard is off"),
            ("Warning", "This node is NotEncrypted."),
            ("Warning", "n2 is silent for 30 s"),
        ]
    );
    for (name, event) in &events {
        assert!(name.starts_with("n1.wireloom-"), "{name}");
        assert_eq!(event["regarding"]["uid"], "uid-1");
    }
}

#[tokio::test(start_paused = true)]
async fn events_have_bounds() {
    let mut events = Events::default();
    let flapping = [report("Encrypted", &["A"]), report("Encrypted", &[])];
    let mut said = 0;
    for turn in 0..100 {
        let (before, now) = (&flapping[(turn + 1) % 2], &flapping[turn % 2]);
        said += events.begun(Some(before), now, Instant::now()).len();
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    assert_eq!(said, 10, "once in ten minutes");

    let many: Vec<String> = ('a'..='z').map(|letter| format!("warning {letter}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    tokio::time::advance(Duration::from_secs(600)).await;
    let news = events.begun(None, &report("Encrypted", &many), Instant::now());
    assert_eq!(news.len(), 10);
    let now = Timestamp::from_second(1_767_225_600).unwrap();
    let event = news[0].event(&"n".repeat(253), "uid-1", now);
    assert!(event["metadata"]["name"].as_str().unwrap().len() <= 253);
    assert_eq!(event["eventTime"], "2026-01-01T00:00:00.000000Z");
    assert_eq!(
        event,
        news[0].event(&"n".repeat(253), "uid-1", now),
        "a name follows from what is said and when"
    );
}
