//! Named sets.

use serde_json::{Value, json};

/// A named set, without its elements.
#[derive(Clone, Copy)]
pub(super) struct Set {
    pub(super) name: &'static str,
    /// The types of what its elements hold, one after the other.
    pub(super) kind: &'static [&'static str],
    /// Whether elements may be ranges.
    pub(super) intervals: bool,
    /// Whether each element counts the packets that it matches.
    pub(super) counts: bool,
}

impl Set {
    /// What follows its name where it is added.
    pub(super) fn declaration(&self) -> String {
        let flags = if self.intervals { " flags interval;" } else { "" };
        let counter = if self.counts { " counter;" } else { "" };
        format!("{{ type {};{flags}{counter} }}", self.kind.join(" . "))
    }

    /// What `nft --json` lists of its properties; null for what it leaves out. That it counts shows in its elements.
    pub(super) fn listed(&self) -> [(&'static str, Value); 2] {
        let kind = if let [only] = self.kind { json!(only) } else { json!(self.kind) };
        [("type", kind), ("flags", if self.intervals { json!(["interval"]) } else { Value::Null })]
    }
}
