//! Chains: where the rules meet packets.

use serde_json::{Value, json};

/// A base chain.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Hook,
}

/// Its place; its policy is accept.
#[derive(Clone, Copy)]
pub(super) struct Hook {
    /// `filter`, or `route`: the kernel chooses the route again when the packet's addresses or mark have changed.
    pub(super) kind: &'static str,
    pub(super) point: &'static str,
    pub(super) priority: i32,
}

impl Chain {
    /// What follows its name where it is added.
    pub(super) fn declaration(&self) -> String {
        let Hook { kind, point, priority } = self.hook;
        format!("{{ type {kind} hook {point} priority {priority}; policy accept; }}")
    }

    /// What `nft --json` lists of its place.
    pub(super) fn listed(&self) -> [(&'static str, Value); 4] {
        let Hook { kind, point, priority } = self.hook;
        [
            ("type", json!(kind)),
            ("hook", json!(point)),
            ("prio", json!(priority)),
            ("policy", json!("accept")),
        ]
    }
}
