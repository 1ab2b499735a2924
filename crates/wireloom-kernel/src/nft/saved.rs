//! The guard on disk: a script that makes the whole table, for the time before an agent runs and for the moment when
//! somebody deletes the table.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use wireloom_plan::{firewall::Firewall, op::FirewallOp};

use super::{TABLE, netlink, process::Nft, script, table::Table};
use crate::{
    error::Cause,
    state::{StateDir, read_file, remove_written, write_atomically},
};

/// Its first line.
const COMMENT: &str = "# Wireloom's guard. `nft -f` puts it in force, in one transaction; the agent keeps this file \
                       up to date, and removes it where nothing is guarded.\n";

/// The saved guard.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    state: StateDir,
    nft: Nft,
    /// Held while the table and the file change together.
    changing: Arc<Mutex<()>>,
}

impl Saved {
    pub(super) fn new(state: StateDir, nft: Nft) -> Self {
        Self { state, nft, changing: Arc::default() }
    }

    /// Keeps the table from being restored meanwhile.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves a table; it is on disk when it returns.
    pub(super) fn write(&self, table: &Table, firewall: &Firewall, interface: &str) -> io::Result<()> {
        self.state.create()?;
        write_atomically(&self.state.guard_path(), script_of(table, firewall, interface).as_bytes())
    }

    /// Removes the file, so that the table does not come back.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_written(&self.state.guard_path())
    }

    /// Makes the saved table if there is none. Returns whether it did.
    ///
    /// # Errors
    /// [`Cause::Permanent`] when the file is none that [`write`](Self::write) wrote; otherwise a retry may help.
    pub(super) fn restore(&self) -> Result<bool, Cause> {
        let _changing = self.hold();
        if netlink::table_exists()? {
            return Ok(false);
        }
        let Some(saved) = self.read()? else { return Ok(false) };
        match self.nft.load(&saved.if_absent) {
            // Somebody was faster.
            Err(_) if netlink::table_exists()? => Ok(false),
            loaded => loaded.map(|()| true),
        }
    }

    /// Makes the saved table anew, whatever there is. Returns whether one is saved.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub(super) fn renew(&self) -> Result<bool, Cause> {
        let _changing = self.hold();
        let Some(saved) = self.read()? else { return Ok(false) };
        self.nft.load(&saved.anew).map(|()| true)
    }

    fn read(&self) -> Result<Option<Scripts>, Cause> {
        let Some(saved) = read_file(&self.state.guard_path())? else { return Ok(None) };
        let scripts = String::from_utf8(saved).ok().and_then(Scripts::of);
        let damaged = || Cause::Permanent(format!("{} is damaged", self.state.guard_path().display()));
        scripts.map(Some).ok_or_else(damaged)
    }
}

/// What is saved of a table.
pub(super) fn script_of(table: &Table, firewall: &Firewall, interface: &str) -> String {
    let mut ops = vec![FirewallOp::Set { firewall: firewall.clone(), anew: true }];
    ops.extend(table.judged_peers.iter().map(|peer| FirewallOp::JudgePeer { peer: *peer }));
    ops.extend(table.sources.iter().copied().map(FirewallOp::AdmitSource));
    ops.extend(table.guarded.iter().copied().map(FirewallOp::Guard));
    format!("{COMMENT}{}", script::of(&ops.iter().collect::<Vec<_>>(), interface))
}

/// The saved script.
#[derive(Debug, PartialEq)]
pub(super) struct Scripts {
    /// As saved: it takes the place of what there is.
    anew: String,
    /// Changed to fail where there is a table already.
    if_absent: String,
}

impl Scripts {
    /// `None` unless [`Saved::write`] wrote it.
    pub(super) fn of(saved: String) -> Option<Self> {
        let anew = format!("add table inet {TABLE}\ndelete table inet {TABLE}\nadd table inet {TABLE}\n");
        let rest = saved.strip_prefix(COMMENT)?.strip_prefix(&anew)?;
        let if_absent = format!("create table inet {TABLE}\n{rest}");
        Some(Self { anew: saved, if_absent })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wireloom_plan::firewall::Guard;

    use super::*;

    #[test]
    fn a_saved_guard_is_loaded_only_where_there_is_no_table() {
        let directory = tempfile::tempdir().unwrap();
        let saved = Saved::new(StateDir::at(directory.path()), Nft::default());
        let firewall =
            Firewall { guard: Some(Guard { mark: 0xa, ..Guard::default() }), ..Firewall::default() };
        let table = Table { firewall: Some(firewall.clone()), ..Table::default() };
        saved.write(&table, &firewall, "wg0").unwrap();
        let text = fs::read_to_string(saved.state.guard_path()).unwrap();
        let Scripts { anew, if_absent: script } = Scripts::of(text.clone()).unwrap();
        assert_eq!(anew, text);
        assert!(script.starts_with("create table inet wireloom\nadd set "), "{script}");
        assert!(!script.contains("add table") && !script.contains("delete"), "{script}");
        saved.remove().unwrap();
        assert!(!saved.state.guard_path().exists());
    }

    #[test]
    fn a_file_that_no_agent_wrote_is_not_loaded() {
        for saved in [String::new(), "flush ruleset\n".into(), format!("{COMMENT}flush ruleset\n")] {
            assert_eq!(Scripts::of(saved), None);
        }
    }
}
