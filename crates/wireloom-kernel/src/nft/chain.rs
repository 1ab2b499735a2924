//! Chains: where the rules meet packets.

use serde_json::{Value, json};

/// A chain.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    /// Absent for a chain that other chains jump to.
    pub(super) hook: Option<Hook>,
}

/// The place of a base chain, whose policy is accept.
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
        self.hook.as_ref().map_or_else(String::new, |Hook { kind, point, priority }| {
            format!(" {{ type {kind} hook {point} priority {priority}; policy accept; }}")
        })
    }

    /// What `nft --json` lists of its place; null for what it leaves out.
    pub(super) fn listed(&self) -> [(&'static str, Value); 4] {
        let of = |value: fn(&Hook) -> Value| self.hook.as_ref().map_or(Value::Null, value);
        [
            ("type", of(|hook| json!(hook.kind))),
            ("hook", of(|hook| json!(hook.point))),
            ("prio", of(|hook| json!(hook.priority))),
            ("policy", of(|_| json!("accept"))),
        ]
    }
}
