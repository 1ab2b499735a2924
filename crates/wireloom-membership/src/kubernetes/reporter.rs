//! Writes the state of this node for people: its `WireloomNodeStatus`, and Events for what begins.
//!
//! It is beside membership, and never disturbs it: what fails here is logged, and tried again with the next state.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{Instant, sleep_until},
};

use super::{
    events::{self, Events},
    own_node::{OwnNode, Owner},
    own_record::owner_reference,
    report::Report,
    server::{ApiServer, Call},
};
use crate::store::{StoreError, StoreProblem};

/// Where `WireloomNodeStatus`es are.
pub(super) const PATH: &str = "/apis/wireloom.io/v1alpha1/wireloomnodestatuses";

/// The shortest time between two attempts to write the status: 5,000 nodes may all have news at once, and again.
const PACE: Duration = Duration::from_secs(60);

/// The bounds of the schema: characters of a text, texts in a list.
const TEXT_MAX: usize = 1024;
const WORD_MAX: usize = 64;
const WARNINGS_MAX: usize = 32;

/// Writes what the agent reports.
pub(super) struct Reporter {
    server: Arc<ApiServer>,
    node: String,
    owner: Owner,
    events: Events,
    /// What was logged last, so that it is logged once.
    failure: Option<String>,
}

impl Reporter {
    pub(super) fn new(server: Arc<ApiServer>, node: &str, owner: Owner) -> Self {
        Self { server, node: node.to_owned(), owner, events: Events::default(), failure: None }
    }

    /// Takes reports until nobody sends any more.
    pub(super) async fn run(mut self, mut reports: UnboundedReceiver<Report>) {
        let mut wanted: Option<Report> = None;
        let mut written = None;
        let mut not_before = Instant::now();
        loop {
            let is_due = wanted.is_some() && wanted != written;
            tokio::select! {
                report = reports.recv() => {
                    let Some(report) = report else { return };
                    if wanted.as_ref() != Some(&report) {
                        if report.has_left() {
                            // The agent may end soon.
                            not_before = Instant::now();
                        } else {
                            self.tell(wanted.as_ref(), &report).await;
                        }
                        wanted = Some(report);
                    }
                }
                () = sleep_until(not_before), if is_due => {
                    not_before = Instant::now() + PACE;
                    if let Some(report) = &wanted {
                        let result = self.write(report).await;
                        if result.is_ok() {
                            written.clone_from(&wanted);
                        }
                        self.log(result);
                    }
                }
            }
        }
    }

    /// Makes Events of what begins with this report.
    async fn tell(&mut self, before: Option<&Report>, report: &Report) {
        let before = before.filter(|before| !before.has_left());
        let Some(owner) = self.owner.get() else { return };
        for news in self.events.begun(before, report, Instant::now()) {
            let event = news.event(&self.node, &owner.uid, Timestamp::now());
            let what = format!("make an Event about the Node {:?}", self.node);
            let result = self.server.ask(events::PATH, Call::Create(&event), &what).await;
            match result {
                // It is there from before a restart.
                Err(StoreError { problem: StoreProblem::Conflict { .. }, .. }) => {}
                result => self.log(result.map(drop)),
            }
        }
    }

    async fn write(&self, report: &Report) -> Result<(), StoreError> {
        if report.has_left() {
            let what = format!("delete the WireloomNodeStatus {:?}", self.node);
            return self.server.delete(PATH, &self.node, &what).await;
        }
        let operation = format!("write the WireloomNodeStatus {:?}", self.node);
        let Some(owner) = self.owner.get() else {
            let why = format!("there is no Node {:?} that would own it", self.node);
            return Err(StoreError {
                operation,
                problem: StoreProblem::Unavailable { why, retry_after: None },
            });
        };
        let what = format!("read the WireloomNodeStatus {:?}", self.node);
        let found = self.server.get(PATH, &self.node, &what).await?;
        let mut object = object(&self.node, &owner, report, found.as_ref(), Timestamp::now());
        let written = match &found {
            None => self.server.ask(PATH, Call::Create(&object), &operation).await,
            Some(found) => {
                object["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
                self.server.ask(PATH, Call::Replace(&self.node, &object), &operation).await
            }
        };
        written.map(drop)
    }

    fn log(&mut self, result: Result<(), StoreError>) {
        match result {
            Ok(()) => self.failure = None,
            Err(error) => {
                let text = error.to_string();
                if self.failure.as_ref() != Some(&text) {
                    tracing::warn!("{text}; membership goes on");
                    self.failure = Some(text);
                }
            }
        }
    }
}

fn object(node: &str, owner: &OwnNode, report: &Report, found: Option<&Value>, now: Timestamp) -> Value {
    let is_encrypted = report.state == "Encrypted";
    let message = cut(&report.message, TEXT_MAX);
    let first_warning = report.warnings.first().map_or("There are no warnings.", String::as_str);
    let degraded_reason = if report.warnings.is_empty() { "NoWarnings" } else { "Warnings" };
    let conditions = [
        ("Encrypted", is_encrypted, events::reason(&report.state), message.clone()),
        ("Degraded", !report.warnings.is_empty(), degraded_reason.into(), cut(first_warning, TEXT_MAX)),
    ];
    let conditions = conditions.map(|(kind, is_true, reason, message)| {
        let status = if is_true { "True" } else { "False" };
        json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since(found, kind, status).unwrap_or_else(|| Value::from(time(now))),
        })
    });
    let warnings = report.warnings.iter().take(WARNINGS_MAX).map(|warning| cut(warning, TEXT_MAX));
    json!({
        "apiVersion": "wireloom.io/v1alpha1",
        "kind": "WireloomNodeStatus",
        "metadata": {"name": node, "ownerReferences": [owner_reference(node, owner)]},
        "status": {
            "state": cut(&report.state, WORD_MAX),
            "version": cut(&report.version, WORD_MAX),
            "message": message,
            "peers": {"encrypted": report.peers.0, "total": report.peers.1},
            "warnings": warnings.collect::<Vec<_>>(),
            "conditions": conditions,
            "lastReported": time(now),
        },
    })
}

/// Since when a condition has had this status, if the object has it.
fn since(found: Option<&Value>, kind: &str, status: &str) -> Option<Value> {
    let conditions = found?.pointer("/status/conditions")?.as_array()?;
    let same =
        conditions.iter().find(|condition| condition["type"] == kind && condition["status"] == status)?;
    same.get("lastTransitionTime").cloned()
}

fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

/// A time as Kubernetes writes it: RFC 3339, in seconds.
fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
