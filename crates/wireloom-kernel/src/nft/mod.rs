//! The nftables table `inet wireloom`: read by `nft --json`, changed by `nft -f -`, one transaction for
//! operations that follow each other.
//!
//! `nft` is not started for every look: the kernel itself is asked whether the table is there (without
//! link mode and host mode there is none, and no `nft` is needed), and whether anything at all changed
//! since the last look.

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
    kernel::{Firewall, Source},
    op::FirewallOp,
};
use wireloom_types::LinkAddress;

use self::{netlink::Generation, watch::OwnProcesses};
use super::error::Cause;

/// Its name, in the family `inet`.
const TABLE: &str = "wireloom";

/// What is in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) firewall: Option<Firewall>,
    pub(super) judged_peers: BTreeSet<LinkAddress>,
    pub(super) sources: BTreeSet<Source>,
    pub(super) refusals: Refusals,
}

/// The table in this network namespace.
pub(super) struct Nftables {
    /// Whose packets are judged.
    interface: String,
    /// What was there when the whole of nftables was in this generation.
    seen: Option<(Generation, Table)>,
    own: OwnProcesses,
}

impl Nftables {
    pub(super) fn new(interface: &str) -> Self {
        Self { interface: interface.to_owned(), seen: None, own: OwnProcesses::default() }
    }

    /// What is in the table. The counts in it may be of an earlier look.
    pub(super) fn observe(&mut self) -> Result<Table, Cause> {
        // Asked first: what changes from here on makes it another one.
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

    fn list(&self) -> Result<Table, Cause> {
        let output = self.nft(&["--json", "list", "table", "inet", TABLE], "")?;
        if !output.status.success() {
            return Err(told(&output));
        }
        Ok(listing::parse(&output.stdout, &self.interface))
    }

    /// Operations on the table, in one transaction.
    pub(super) fn change(&self, ops: &[&FirewallOp]) -> Result<(), Cause> {
        let output = self.nft(&["-f", "-"], &script::of(ops, &self.interface))?;
        if output.status.success() { Ok(()) } else { Err(told(&output)) }
    }

    /// What was refused, as of the last look; `None` when nobody is judged.
    pub(super) fn refusals(&self) -> Option<&Refusals> {
        let (_, table) = self.seen.as_ref()?;
        table.firewall.as_ref().filter(|firewall| firewall.judge_sources).map(|_| &table.refusals)
    }

    /// Calls `changed` whenever somebody else changes the table, for as long as the process lives.
    ///
    /// # Errors
    /// The socket or the thread cannot be had.
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
                return Err(Cause::Told(
                    "`nft` is not installed; install the Debian package nftables".into(),
                ));
            }
            child => child?,
        };
        // Before it is told what to do, so that what it does is known as our doing.
        self.own.remember(child.id());
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        Ok(child.wait_with_output()?)
    }
}

/// Often somebody else was faster: the next look shows what is left to do.
fn told(output: &Output) -> Cause {
    let words = String::from_utf8_lossy(&output.stderr);
    // The first line says what is wrong, the next ones repeat what may be thousands of elements.
    let line = words.lines().next().unwrap_or("it failed without a word");
    Cause::Passing(format!("nft says: {}", line.trim()))
}
