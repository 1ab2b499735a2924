//! The nftables table `inet wireloom`: read with `nft --json`, changed with `nft -f -`, one transaction for
//! consecutive operations.
//!
//! Not every observation starts `nft`: the kernel itself tells whether the table exists (without guard, link mode and
//! host mode it does not, and `nft` need not be installed), and whether anything changed since the last
//! observation. It also tells whether Calico's Felix has chains in other tables.
//!
//! ```text
//! script, listing ─► contents ─► rules, segments, guard ─► errors, exempt ─► guard_sets ─► set, chain, expression
//! watch ─► saved ─► script
//! ```

mod chain;
mod contents;
mod counters;
mod elements;
mod errors;
mod exempt;
mod expression;
mod flow_tables;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod guard;
mod guard_sets;
mod listing;
mod netlink;
mod others;
mod process;
mod rules;
mod saved;
mod script;
mod segments;
mod set;
mod table;
mod watch;

use std::io;

use wireloom_plan::op::FirewallOp;

pub use self::counters::{GuardCounters, Refusals};
pub(super) use self::{flow_tables::FlowTables, others::Others};
use self::{netlink::Generation, process::Nft, saved::Saved, table::Table};
use crate::{
    error::{Attempt, Cause, Error},
    state::StateDir,
};

/// The table's name, in the family `inet`.
const TABLE: &str = "wireloom";

/// The table in this network namespace.
pub(super) struct Nftables {
    /// The name of our interface.
    interface: String,
    /// The last observation, and the generation of nftables in which it was made.
    seen: Option<(Generation, Table)>,
    /// The table as the last observation found it or the last change left it.
    known: Option<Table>,
    /// Whether Felix has chains here, and the generation in which it was asked.
    felix: Option<(Generation, bool)>,
    nft: Nft,
    saved: Saved,
    /// Whether the saved guard may differ from the one in force.
    unsaved: bool,
}

/// Puts the guard that an earlier agent saved back in force, if the nftables table does not exist: after a boot, or
/// after somebody flushed the ruleset. Returns whether it did. An agent calls it before anything else, holding its
/// lock.
///
/// # Errors
/// The saved guard cannot be read or loaded. The first pass makes the table all the same.
pub fn restore_guard(state: &StateDir) -> Result<bool, Error> {
    Saved::new(state.clone(), Nft::default()).restore().attempt(|| "restore the guard".into())
}

impl Nftables {
    pub(super) fn new(interface: &str, state: StateDir) -> Self {
        let nft = Nft::default();
        Self {
            interface: interface.to_owned(),
            seen: None,
            known: None,
            felix: None,
            saved: Saved::new(state, nft.clone()),
            nft,
            unsaved: false,
        }
    }

    /// Reads the table. The counters may be older than the call.
    pub(super) fn observe(&mut self) -> Result<Table, Cause> {
        // Read first: any later change leads to another generation.
        let generation = netlink::generation()?;
        let table = match &self.seen {
            Some((seen, table)) if generation.as_ref() == Some(seen) => table.clone(),
            _ if generation.is_some() && netlink::table_exists()? => self.list()?,
            _ => Table::default(),
        };
        self.seen = generation.map(|generation| (generation, table.clone()));
        self.known = Some(table.clone());
        if self.unsaved {
            self.save();
        }
        Ok(table)
    }

    /// Whether Calico's Felix programs this machine with nftables, or with iptables-nft.
    pub(super) fn has_felix(&mut self) -> Result<bool, Cause> {
        let Some(generation) = netlink::generation()? else { return Ok(false) };
        match &self.felix {
            Some((seen, felix)) if *seen == generation => Ok(*felix),
            _ => {
                let felix = match netlink::has_felix() {
                    // Somebody changes nftables all the time: the last answer does.
                    Err(Cause::Transient(_)) => self.felix.as_ref().is_some_and(|(_, felix)| *felix),
                    felix => felix?,
                };
                self.felix = Some((generation, felix));
                Ok(felix)
            }
        }
    }

    fn list(&self) -> Result<Table, Cause> {
        let listing = self.nft.run(&["--json", "list", "table", "inet", TABLE], "")?;
        Ok(listing::parse(&listing, &self.interface))
    }

    /// Carries out operations in one transaction, and saves the guard, or removes the saved one.
    pub(super) fn change(&mut self, ops: &[&FirewallOp]) -> Result<(), Cause> {
        if self.known.is_none() {
            self.observe()?;
        }
        let after = self.known.take().and_then(|before| before.after(ops));
        let saved = self.saved.clone();
        let _changing = saved.hold();
        if after.as_ref().is_some_and(|after| after.guarding().is_none()) {
            // Before the table goes: it must not come back. If the change fails, the guard is saved again.
            saved.remove()?;
        }
        self.unsaved = true;
        self.nft.load(&script::of(ops, &self.interface))?;
        self.known = after;
        self.save();
        Ok(())
    }

    /// Saves the guard that is in force. A failure is no reason to stop: the next observation tries again.
    fn save(&mut self) {
        let Some(table) = &self.known else { return };
        let outcome = match table.guarding() {
            Some(firewall) => self.saved.write(table, firewall, &self.interface),
            None => Ok(()),
        };
        match outcome {
            Ok(()) => self.unsaved = false,
            Err(error) => tracing::warn!("cannot save the guard for the next boot: {error}"),
        }
    }

    /// From now on the saved guard is kept up to date, also when nothing changes.
    pub(super) fn keep_guard_saved(&mut self) {
        self.unsaved = true;
    }

    /// The refused packets, as of the last reading; `None` when no sources are checked.
    pub(super) fn refusals(&self) -> Option<&Refusals> {
        let (_, table) = self.seen.as_ref()?;
        table.firewall.as_ref().filter(|firewall| firewall.judge_sources).map(|_| &table.refusals)
    }

    /// What the guard counted, as of the last reading; `None` without a guard.
    pub(super) fn guard_counters(&self) -> Option<&GuardCounters> {
        let (_, table) = self.seen.as_ref()?;
        table.guarding().map(|_| &table.guard_counters)
    }

    /// Reads what the guard has counted by now; `None` without a guard.
    pub(super) fn count(&mut self) -> Result<Option<GuardCounters>, Cause> {
        // Counting is no change that would lead to another generation.
        self.seen = None;
        self.observe()?;
        Ok(self.guard_counters().cloned())
    }

    /// Calls `changed`, from another thread, whenever somebody else changes the table, for as long as the
    /// process lives. That thread also restores the guard when the table is gone.
    pub(super) fn watch(&self, changed: impl Fn() + Send + 'static) -> io::Result<()> {
        watch::start(self.nft.clone(), self.saved.clone(), changed)
    }
}
