//! The nftables table `inet wireloom`: read with `nft --json`, changed with `nft -f -`, one transaction for
//! consecutive operations.
//!
//! Not every observation starts `nft`: the kernel itself tells whether the table exists (without link mode and
//! host mode it does not, and `nft` need not be installed), and whether anything changed since the last
//! observation. It also tells whether Calico's Felix has chains in other tables.

mod listing;
mod netlink;
mod rules;
mod script;
mod watch;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::{Command, Output, Stdio},
};

pub use listing::Refusals;
use wireloom_plan::{
    firewall::{Firewall, Source},
    op::FirewallOp,
};
use wireloom_types::LinkAddress;

use self::{netlink::Generation, watch::OwnProcesses};
use crate::error::Cause;

/// The table's name, in the family `inet`.
const TABLE: &str = "wireloom";

/// The contents of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) firewall: Option<Firewall>,
    pub(super) judged_peers: BTreeSet<LinkAddress>,
    pub(super) sources: BTreeSet<Source>,
    pub(super) refusals: Refusals,
}

/// The table in this network namespace.
pub(super) struct Nftables {
    /// The interface whose packets' sources are checked.
    interface: String,
    /// The last observation, and the generation of nftables in which it was made.
    seen: Option<(Generation, Table)>,
    /// Whether Felix has chains here, and the generation in which it was asked.
    felix: Option<(Generation, bool)>,
    own: OwnProcesses,
}

impl Nftables {
    pub(super) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), seen: None, felix: None, own: OwnProcesses::default() }
    }

    /// Reads the table. The counters may be older than the call.
    pub(super) fn observe(&mut self) -> Result<Table, Cause> {
        // Read first: any later change leads to another generation.
        let generation = netlink::generation()?;
        if let Some((seen, table)) = &self.seen
            && generation.as_ref() == Some(seen)
        {
            return Ok(table.clone());
        }
        let table =
            if generation.is_some() && netlink::table_exists()? { self.list()? } else { Table::default() };
        self.seen = generation.map(|generation| (generation, table.clone()));
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
        let output = self.nft(&["--json", "list", "table", "inet", TABLE], "")?;
        if !output.status.success() {
            return Err(failure(&output));
        }
        Ok(listing::parse(&output.stdout, &self.interface))
    }

    /// Carries out operations in one transaction.
    pub(super) fn change(&self, ops: &[&FirewallOp]) -> Result<(), Cause> {
        let output = self.nft(&["-f", "-"], &script::of(ops, &self.interface))?;
        if output.status.success() { Ok(()) } else { Err(failure(&output)) }
    }

    /// The refused packets, as of the last reading; `None` when no sources are checked.
    pub(super) fn refusals(&self) -> Option<&Refusals> {
        let (_, table) = self.seen.as_ref()?;
        table.firewall.as_ref().filter(|firewall| firewall.judge_sources).map(|_| &table.refusals)
    }

    /// Calls `changed`, from another thread, whenever somebody else changes the table, for as long as the
    /// process lives.
    pub(super) fn watch(&self, changed: impl Fn() + Send + 'static) -> io::Result<()> {
        watch::start(self.own.clone(), changed)
    }

    fn nft(&self, arguments: &[&str], script: &str) -> Result<Output, Cause> {
        let spawned = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Cause::Permanent(
                    "`nft` is not installed; install nftables (the Debian package nftables)".into(),
                ));
            }
            child => child?,
        };
        // Before it gets its script, so that its changes are recognized as ours.
        self.own.remember(child.id());
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }
}

/// Transient, because often somebody else was faster: the next observation shows what is left to do.
fn failure(output: &Output) -> Cause {
    let words = String::from_utf8_lossy(&output.stderr);
    // The first line says what is wrong; the next ones repeat the script, which may have thousands of elements.
    let line = words.lines().next().unwrap_or("it failed without a message");
    Cause::Transient(format!("nft says: {}", line.trim()))
}
