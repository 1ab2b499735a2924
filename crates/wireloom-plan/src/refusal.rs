//! Why there is no plan: the kernel stays as it is, and the operator must decide.

use std::path::PathBuf;

use wireloom_types::interface::AGENT_ALIAS;

use crate::{
    owner::{self, Owner},
    routing::{Route, Rule},
};

/// How many foreign rules and routes a message names.
const NAMED: usize = 8;

/// A situation in which any plan could do harm, so that there is none.
///
/// Nothing changes while it lasts: what was encrypted stays encrypted, and nothing foreign is touched. A retry
/// helps only after the operator has fixed the cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This node's own workloads are unknown, so every rule and route would be a guess.
    #[error(
        "node `{node}` is not in the cluster: nothing is changed; \
         add it to the membership, or set `node` in agent.toml to its name there"
    )]
    NodeMissing {
        /// This node's name.
        node: String,
    },
    /// The interface was not made by Wireloom.
    #[error(
        "interface `{interface}` exists and is not Wireloom's (its alias is not `{AGENT_ALIAS}`): nothing is changed; \
         write a name that is free into [wireguard] interface of agent.toml, or let the program that made it remove \
         it (such as `wg-quick down {interface}`)"
    )]
    ForeignInterface {
        /// Its name.
        interface: String,
    },
    /// Somebody else's rules or routes use our table, and nothing of ours is there yet.
    #[error(
        "table {table} belongs to {}: {}; no rule and no route is programmed, and theirs stay; {}",
        owner.map_or_else(|| "another program".to_owned(), |owner| owner.to_string()),
        uses(rules, routes, *table),
        owner::advice(*free_table)
    )]
    ForeignTable {
        /// The table.
        table: u32,
        /// Who that probably is.
        owner: Option<Owner>,
        /// Their rules that look it up.
        rules: Vec<Rule>,
        /// Their routes in it.
        routes: Vec<Route>,
        /// A table that nobody uses.
        free_table: Option<u32>,
    },
    /// The mesh has a preshared key, and this node does not know it. A peer without it would be less protected than the
    /// mesh asks for, and would get no handshake.
    #[error(
        "the mesh names the preshared key {}, and there is none that this node can use: nothing is changed; write \
         the key of the other nodes there, readable by root only",
        path.display()
    )]
    NoPresharedKey {
        /// The file that the mesh names.
        path: PathBuf,
    },
    /// Without a mark, WireGuard's own packets would be routed into the tunnel again.
    #[error(
        "`fwmark` is 0, which marks nothing: nothing is changed; set [routing] fwmark to bits that nothing else uses"
    )]
    NoMark,
}

/// The rules and routes by which somebody else uses a table, as iproute2 prints them.
fn uses(rules: &[Rule], routes: &[Route], table: u32) -> String {
    let rules = rules.iter().map(|rule| format!("the {} rule `{rule}`", rule.family));
    let routes = routes.iter().map(|route| format!("the route `{route}` in table {table}"));
    let mut uses: Vec<String> = rules.chain(routes).collect();
    if let Some(more @ 1..) = uses.len().checked_sub(NAMED) {
        uses.truncate(NAMED);
        uses.push(format!("and {more} more"));
    }
    uses.join(", ")
}
