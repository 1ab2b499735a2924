//! Whose routing table it is.
//!
//! A rule that looks up our table is ours if it carries our protocol number, or is the rule of Calico issue #9751,
//! which an upgrade replaces. Any other rule or route there is somebody else's, and the table with it: GKE, mwan3 and
//! Calico's Felix all use table 1. We never delete what is not ours, and two programs cannot share a table. So the
//! agent refuses to start there. Once it runs, a stray rule or route is a warning: to stop encrypting would be worse.

use std::{fmt, ops::RangeInclusive};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    desired::Desired,
    diff::is_blocked,
    observed::Observed,
    refusal::Refusal,
    routing::{Protocol, Route, Rule},
    settings::Settings,
    warning::Warning,
};

/// The tables that Felix takes for its own (`RouteTableRanges` of its configuration, by default). It deletes rules that
/// look up the first of them, and `throw` routes in it, even while its WireGuard is off.
const FELIX_TABLES: RangeInclusive<u32> = 1..=250;

/// The tables to propose instead of one that is taken. Those that people and programs choose are small, or well known.
pub const PROPOSALS: RangeInclusive<u32> = 15_700..=15_799;

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

/// Whether something of ours is in our table, or leads there.
pub(crate) fn holds_table(observed: &Observed) -> bool {
    observed.rules.iter().any(Rule::is_ours) || observed.routes.iter().any(Route::is_ours)
}

/// Refuses a table that somebody else uses.
///
/// # Errors
/// [`Refusal::ForeignTable`]
pub(crate) fn refuse_foreign_table(observed: &Observed, settings: &Settings) -> Result<(), Refusal> {
    let rules: Vec<_> = foreign_rules(observed, settings.fwmark).cloned().collect();
    let routes: Vec<_> = foreign_routes(observed).cloned().collect();
    if rules.is_empty() && routes.is_empty() {
        return Ok(());
    }
    let owner = likely_owner(observed, &rules, &routes);
    Err(Refusal::ForeignTable {
        table: settings.table,
        owner,
        rules,
        routes,
        free_table: observed.free_table,
    })
}

/// A warning for each rule and route that somebody else made, and one for a program that will.
pub(crate) fn warnings<'a>(
    observed: &'a Observed,
    desired: &'a Desired,
    settings: &'a Settings,
) -> impl Iterator<Item = Warning> + use<'a> {
    let table = settings.table;
    let rules = foreign_rules(observed, settings.fwmark);
    let rules = rules.map(|rule| Warning::ForeignRule { rule: rule.clone() });
    let routes = foreign_routes(observed).map(|route| Warning::ForeignRoute {
        route: route.clone(),
        blocks_ours: is_blocked_by(observed, desired, route.destination),
    });
    let felix = (observed.felix && FELIX_TABLES.contains(&table))
        .then_some(Warning::TableOfFelix { table, free_table: observed.free_table });
    rules.chain(routes).chain(felix)
}

/// Whether somebody else uses our table, so that another one must be proposed.
pub fn is_contested(observed: &Observed, table: u32) -> bool {
    let ours = observed.rules.iter().all(Rule::is_ours) && observed.routes.iter().all(Route::is_ours);
    !ours || (observed.felix && FELIX_TABLES.contains(&table))
}

fn foreign_rules(observed: &Observed, mark: u32) -> impl Iterator<Item = &Rule> {
    observed.rules.iter().filter(move |rule| !rule.is_ours() && !rule.is_unscoped(mark))
}

fn foreign_routes(observed: &Observed) -> impl Iterator<Item = &Route> {
    observed.routes.iter().filter(|route| !route.is_ours())
}

fn is_blocked_by(observed: &Observed, desired: &Desired, destination: IpNet) -> bool {
    let ours = desired.routes.get(&destination);
    ours.is_some_and(|kind| is_blocked(observed, &Route::ours(destination, kind.clone())))
}

/// Who made the rules and routes, as far as their shape tells.
fn likely_owner(observed: &Observed, rules: &[Rule], routes: &[Route]) -> Option<Owner> {
    if observed.felix {
        return Some(Owner::Felix);
    }
    if let Some(owner) = rules.iter().find_map(owner_of_rule) {
        return Some(owner);
    }
    let protocols = rules.iter().map(|rule| rule.protocol).chain(routes.iter().map(|route| route.protocol));
    // 0 to 3 are unspecified, redirect, kernel and boot: `ip` writes them, for whoever calls it.
    protocols.into_iter().find(|protocol| *protocol > 3).map(Owner::Protocol)
}

fn owner_of_rule(rule: &Rule) -> Option<Owner> {
    // netd's `policyRoutingRulePriority` and `customRouteTable` (pkg/config/policy_routing.go), new and old.
    if rule.table == 1 && matches!(rule.priority, 76 | 30_003) {
        return Some(Owner::Gke);
    }
    // mwan3 numbers its interfaces: interface N has table N, and rules at 1000 + N and 2000 + N, the latter with a mark
    // under `mmx_mask`.
    let mwan3 = match rule.priority.checked_sub(rule.table) {
        Some(1000) => rule.other.attributes.contains_key(&3), // FRA_IIFNAME
        Some(2000) => rule.mask == 0x3f00,
        _ => false,
    };
    mwan3.then_some(Owner::Mwan3)
}

/// What to do about a table that is not ours alone.
pub(crate) fn advice(free_table: Option<u32>) -> String {
    match free_table {
        Some(free) => format!("set [routing] table = {free} in agent.toml, which no rule and no route uses"),
        None => "set [routing] table in agent.toml to one that no rule and no route uses".to_owned(),
    }
}
