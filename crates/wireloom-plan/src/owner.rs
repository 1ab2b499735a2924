//! Programs that use routing tables, as far as they can be told apart, and what to do beside them.

use std::fmt;

use serde::Serialize;

use crate::routing::{Protocol, Rule};

/// The program that a table probably belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Calico's node agent.
    Felix,
    /// GKE's netd.
    Gke,
    /// OpenWrt's load balancer.
    Mwan3,
    /// A program known by its `rtm_protocol` or `FRA_PROTOCOL`.
    Protocol(u8),
}

impl Owner {
    /// The owner that the shape of a rule gives away.
    pub(crate) fn of_rule(rule: &Rule) -> Option<Self> {
        // netd's `policyRoutingRulePriority` and `customRouteTable` (pkg/config/policy_routing.go), new and old.
        if rule.table == 1 && matches!(rule.priority, 76 | 30_003) {
            return Some(Self::Gke);
        }
        // mwan3 numbers its interfaces: interface N has table N, and rules at 1000 + N and 2000 + N, the latter with a
        // mark under `mmx_mask`.
        let mwan3 = match rule.priority.checked_sub(rule.table) {
            Some(1000) => rule.other.attributes.contains_key(&3), // FRA_IIFNAME
            Some(2000) => rule.mask == 0x3f00,
            _ => false,
        };
        mwan3.then_some(Self::Mwan3)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Felix => f.write_str("Felix of Calico"),
            Self::Gke => f.write_str("netd of GKE"),
            Self::Mwan3 => f.write_str("mwan3"),
            // systemd-networkd and NetworkManager both write `static`.
            Self::Protocol(4) => f.write_str("systemd-networkd or NetworkManager (protocol static)"),
            Self::Protocol(number) => write!(f, "the program with protocol {}", Protocol(*number)),
        }
    }
}

/// What to do about a table that is not ours alone.
pub(crate) fn advice(free_table: Option<u32>) -> String {
    match free_table {
        Some(free) => format!("set [routing] table = {free} in agent.toml, which no rule and no route uses"),
        None => "set [routing] table in agent.toml to one that no rule and no route uses".to_owned(),
    }
}
