//! Whose routing table it is.
//!
//! A rule that looks up our table is ours if it carries our protocol number, or is the rule of Calico issue #9751,
//! which an upgrade replaces. Any other rule or route there is somebody else's, and the table with it: GKE, mwan3 and
//! Calico's Felix all use table 1. We never delete what is not ours, and two programs cannot share a table. So the
//! agent refuses to start there. Once it runs, a stray rule or route is a warning: to stop encrypting would be worse.

use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::{
    desired::Desired,
    observed::Observed,
    owner::Owner,
    refusal::Refusal,
    routing::{Route, Rule},
    settings::Settings,
    warning::Warning,
};

/// The tables that Felix takes for its own (`RouteTableRanges` of its configuration, by default). It deletes rules that
/// look up the first of them, and `throw` routes in it, even while its WireGuard is off.
const FELIX_TABLES: RangeInclusive<u32> = 1..=250;

/// The tables to propose instead of one that is taken. Those that people and programs choose are small, or well known.
pub const PROPOSALS: RangeInclusive<u32> = 15_700..=15_799;

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
    ours.is_some_and(|kind| observed.is_blocked(&Route::ours(destination, kind.clone())))
}

/// Who made the rules and routes, as far as their shape tells.
fn likely_owner(observed: &Observed, rules: &[Rule], routes: &[Route]) -> Option<Owner> {
    if observed.felix {
        return Some(Owner::Felix);
    }
    if let Some(owner) = rules.iter().find_map(Owner::of_rule) {
        return Some(owner);
    }
    let protocols = rules.iter().map(|rule| rule.protocol).chain(routes.iter().map(|route| route.protocol));
    // 0 to 3 are unspecified, redirect, kernel and boot: `ip` writes them, for whoever calls it.
    protocols.into_iter().find(|protocol| *protocol > 3).map(Owner::Protocol)
}
