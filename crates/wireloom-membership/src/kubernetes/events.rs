//! Events about this node's Node, which `kubectl describe node` shows: a warning that begins, a state that changes.
//!
//! Their number has bounds, because 5,000 nodes may have the same trouble at once and etcd keeps each for an hour. An
//! Event's name follows from what it says and when, so a restarted agent does not repeat it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use data_encoding::HEXLOWER;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sha3::{Digest, Sha3_256};
use tokio::time::Instant;

use super::report::Report;

/// Where Events about objects without a namespace are.
pub(super) const PATH: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// The same is not said again for this long.
const AGAIN: Duration = Duration::from_secs(600);

/// How much is said within [`AGAIN`].
const MOST: usize = 10;

/// The longest note of an Event, in bytes: 1 kB in the API's validation.
const NOTE_MAX: usize = 1000;

/// The longest reason, in characters: 128 in the API's validation.
const REASON_MAX: usize = 128;

/// What was said, and when.
#[derive(Debug, Default)]
pub(super) struct Events {
    said: BTreeMap<String, Instant>,
}

/// What is to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    is_warning: bool,
    reason: String,
    note: String,
}

impl Events {
    /// What begins with this report, as far as there may be Events.
    pub(super) fn begun(&mut self, before: Option<&Report>, report: &Report, now: Instant) -> Vec<News> {
        self.said.retain(|_, said| now.saturating_duration_since(*said) < AGAIN);
        let mut news = Vec::new();
        if before.is_some_and(|before| before.state != report.state) {
            news.push(News {
                is_warning: report.state != "Encrypted",
                reason: reason(&report.state),
                note: report.message.clone(),
            });
        }
        let known: BTreeSet<String> =
            before.into_iter().flat_map(|before| &before.warnings).map(|text| gist(text)).collect();
        let begun = report.warnings.iter().filter(|warning| !known.contains(&gist(warning)));
        news.extend(begun.map(|warning| News {
            is_warning: true,
            reason: "WireloomWarning".into(),
            note: warning.clone(),
        }));
        news.retain(|news| {
            let key = format!("{} {}", news.reason, gist(&news.note));
            let may = self.said.len() < MOST && !self.said.contains_key(&key);
            if may {
                self.said.insert(key, now);
            }
            may
        });
        news
    }
}

impl News {
    /// The Event about the Node of this name and UID.
    pub(super) fn event(&self, node: &str, uid: &str, now: Timestamp) -> Value {
        let digest = Sha3_256::digest(format!("{} {}", self.reason, gist(&self.note)));
        let period = now.as_second() / AGAIN.as_secs().cast_signed();
        // The name of an object has at most 253 characters, and that of a Node may have as many.
        let prefix: String = node.chars().take(200).collect();
        let end = (0..=NOTE_MAX.min(self.note.len())).rev().find(|&end| self.note.is_char_boundary(end));
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": format!("{prefix}.wireloom-{}-{period:x}", HEXLOWER.encode(&digest[..8])),
                "namespace": "default",
            },
            "type": if self.is_warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "note": self.note[..end.unwrap_or_default()],
            "action": "Report",
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
            "reportingController": "wireloom.io/agent",
            "reportingInstance": node.chars().take(REASON_MAX).collect::<String>(),
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
        })
    }
}

/// A state as the reason of an Event or of a condition: letters and digits, a letter first.
pub(super) fn reason(state: &str) -> String {
    let word: String = state.chars().filter(char::is_ascii_alphanumeric).take(REASON_MAX).collect();
    if word.starts_with(|first: char| first.is_ascii_alphabetic()) { word } else { "Unknown".into() }
}

/// A sentence without its numbers: it is the same warning when only a count or an age in it has changed.
fn gist(text: &str) -> String {
    text.chars().filter(|character| !character.is_ascii_digit()).collect()
}
