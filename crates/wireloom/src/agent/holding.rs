//! Joins the hold-back of removals, the record of the mesh in force, and `wireloom reload` into the agent's loop.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wireloom_membership::Source;
use wireloom_plan::{
    cluster::Cluster,
    holdback::{HOLD, Holdback, ONE_BY_ONE},
};

use super::{Agent, event::Reread};
use crate::run_file::{Held, monotonic_time, unix_time};

/// Milliseconds after which a signal that could not be obeyed is forgotten: as long as `wireloom reload` waits.
const PATIENCE: u64 = 10_000;

/// The least time between two records of a mesh that comes from a store, or in which only looked-up addresses changed:
/// at a start, thousands of them come one after the other.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

/// What the agent remembers about the mesh in force and what is held back in it.
pub(super) struct Holding {
    holdback: Holdback,
    /// The mesh that an earlier agent recorded, until the first snapshot.
    earlier: Option<Cluster>,
    /// When the mesh in force is to be recorded, if it has changed since it was.
    record_due: Option<Instant>,
    recorded: Option<Instant>,
    /// The source has told of a problem, and not that it is over.
    pub(super) is_in_trouble: bool,
    /// What a signal asked to be in force, until the watches have delivered it.
    pub(super) asked: Option<Reread>,
}

impl Holding {
    /// `earlier` is the mesh that an earlier agent recorded, `source` where the next one comes from.
    pub(super) fn new(earlier: Option<Cluster>, source: &Source) -> Self {
        let counts = match source {
            Source::File(_) => HOLD,
            Source::Etcd(_) | Source::Kubernetes(_) => ONE_BY_ONE,
        };
        Self {
            holdback: Holdback::counting(counts),
            earlier,
            record_due: None,
            recorded: None,
            is_in_trouble: false,
            asked: None,
        }
    }

    pub(super) fn is_to_record(&self) -> bool {
        self.record_due.is_some_and(|due| Instant::now() >= due)
    }
}

impl Agent {
    /// Puts a snapshot of the mesh in force, but for removals that are held back.
    pub(super) fn obey(&mut self, snapshot: Cluster) {
        // The recorded mesh comes while the store is away, and others when a record expires.
        if !self.publishing.following().health().is_in_trouble() {
            if self.publishing.is_on() && self.holding.is_in_trouble {
                tracing::info!("recovered: the store answers again, and its mesh is in force");
            }
            self.holding.is_in_trouble = false;
            self.report.membership_error = None;
        }
        let now = self.started.elapsed();
        let snapshot = self.with_own_record(snapshot);
        let in_force = self.proving.cluster().or(self.holding.earlier.as_ref());
        let mesh = self.holding.holdback.take(in_force, snapshot, &self.config.settings.node, now);
        self.put_in_force(mesh);
    }

    /// The mesh in force; before the first one, that of the earlier agent.
    pub(super) fn mesh_before(&self) -> Option<&Cluster> {
        self.proving.cluster().or(self.holding.earlier.as_ref())
    }

    /// Removes the nodes that have been held back long enough.
    pub(super) fn let_go(&mut self) {
        let now = self.started.elapsed();
        let Some(in_force) = self.proving.cluster() else { return };
        if let Some(rest) = self.holding.holdback.let_go(in_force, now) {
            tracing::warn!("the removals that were held back are carried out: nobody put the nodes back");
            self.put_in_force(rest);
        }
    }

    /// Does what a signal asked for, once the watches have delivered what was there then or why they cannot.
    pub(super) fn answer(&mut self) {
        let Some(asked) = self.holding.asked.take() else { return };
        if !self.has_taken(&asked) {
            let now = monotonic_time().unwrap_or_default();
            self.holding.asked = Some(asked).filter(|asked| now < asked.begun + PATIENCE);
            return;
        }
        self.report.reread = Some(asked.begun);
        self.reload();
        self.read_preshared_key();
        self.ask_for_names_again();
        tracing::info!("{}", self.reread_in_words(&asked));
        if asked.meant && self.report.membership_error.is_none() && self.reconciler.cluster().is_some() {
            let mesh = self.without_held();
            let in_force = self.reconciler.cluster();
            let mesh = self.holding.holdback.take_as_meant(in_force, mesh, self.started.elapsed());
            self.put_in_force(mesh);
        }
        self.due = Instant::now();
    }

    /// What a signal made the agent read again, and what it found.
    fn reread_in_words(&self, asked: &Reread) -> String {
        let signal = if asked.meant { "SIGUSR1" } else { "SIGHUP" };
        let settings = match &self.report.settings_error {
            Some(_) => "agent.toml or the private key has a mistake (above)".to_owned(),
            None if self.has_file => "agent.toml and the private key are in force".to_owned(),
            None => "there is no agent.toml, and the private key is in force".to_owned(),
        };
        let mesh = match (&self.report.membership_error, self.proving.cluster()) {
            (Some(_), _) if self.publishing.is_on() => {
                "the store cannot be used (above), and the mesh stays as it is".to_owned()
            }
            (Some(_), _) => "the mesh has a mistake (above)".to_owned(),
            (None, Some(mesh)) => format!("the mesh has {}", size(mesh)),
            (None, None) => "there is no mesh yet".to_owned(),
        };
        format!("read everything again ({signal}): {settings}; {mesh}")
    }

    /// Whether the watches have delivered these files, or why they cannot; and whether the store has been heard of.
    fn has_taken(&self, asked: &Reread) -> bool {
        let settings = match &asked.settings {
            Some(file) => self.unread.is_some() || file.text() == self.file.text(),
            None => self.unread.is_some() || !self.has_file,
        };
        let mesh = match &asked.membership {
            _ if self.publishing.is_on() => {
                let health = self.publishing.following().health();
                // That only this node's record cannot be written keeps nothing from being read.
                let is_in_trouble = self.holding.is_in_trouble && health.is_unreadable();
                has_tried(health.heard(), health.failed(), is_in_trouble, asked.arrived)
            }
            Some(mesh) => {
                let mut in_force = self.without_held();
                in_force.resolve(&BTreeMap::new());
                self.report.membership_error.is_some() || *mesh == in_force
            }
            None => self.report.membership_error.is_some(),
        };
        settings && mesh
    }

    /// The last snapshot: the mesh in force without what is held back in it.
    fn without_held(&self) -> Cluster {
        let mut mesh = self.proving.cluster().cloned().unwrap_or_default();
        let held = self.holding.holdback.held();
        held.iter().flat_map(|held| &held.nodes).for_each(|name| drop(mesh.nodes.remove(name)));
        mesh
    }

    /// When the next pass or poll is due, something is to be let go or recorded, or the device to be looked at.
    pub(super) fn wakes_at(&self) -> Instant {
        let mut due = self.due;
        // Before the first pass there is no device to be read.
        if self.last_pass.is_some() {
            due = due.min(self.proving.next_look()).min(self.polling.due());
        }
        let due = self.resolves_at().map_or(due, |resolves| due.min(resolves)).min(self.probing.next());
        let due = self.holding.record_due.map_or(due, |record| due.min(record));
        let due = self.publishing.due().map_or(due, |publish| due.min(publish));
        let due = self.adopting.due().map_or(due, |adopt| due.min(adopt));
        let due = self.borrowing.due(Instant::now()).map_or(due, |borrow| due.min(borrow));
        self.holding.holdback.due().map_or(due, |let_go| due.min(self.started + let_go))
    }

    /// Records the mesh in force if it has changed, even if that is not due.
    pub(super) fn record_mesh(&mut self) {
        let (Some(_), Some(mesh)) = (self.holding.record_due, self.proving.cluster()) else { return };
        if let Err(error) = self.state.set_mesh(mesh) {
            tracing::warn!(
                "cannot record the mesh in {}, so the next agent will not notice if most of it is missing: {error}",
                self.state.path().display()
            );
        }
        self.holding.record_due = None;
        self.holding.recorded = Some(Instant::now());
    }

    /// Puts a mesh in force, with the addresses that are known, and has it recorded: that of a file at once, that of a
    /// store, which may change all the time, a little later.
    fn put_in_force(&mut self, mesh: Cluster) {
        let due = if self.publishing.is_on() { self.rested() } else { Instant::now() };
        self.put_in_force_recorded_by(mesh, due);
    }

    /// When a mesh may be recorded next.
    fn rested(&self) -> Instant {
        self.holding.recorded.map_or_else(Instant::now, |recorded| recorded + RECORD_INTERVAL)
    }

    /// Puts the mesh that is in force already in force with the endpoints that are to be tried now. They are recorded
    /// with the next change: which one was tried last is no news for the next agent.
    pub(super) fn put_endpoints_in_force(&mut self, mesh: Cluster) {
        let due = self.holding.record_due;
        self.put_in_force_recorded_by(mesh, Instant::now());
        self.holding.record_due = due;
    }

    /// Puts the mesh that is in force already in force with the addresses that are known now.
    pub(super) fn put_addresses_in_force(&mut self, mesh: Cluster) {
        self.put_in_force_recorded_by(mesh, self.rested());
    }

    fn put_in_force_recorded_by(&mut self, mut mesh: Cluster, due: Instant) {
        self.resolve_endpoints(&mut mesh);
        self.set_preshared_key_file(mesh.preshared_key_file.as_deref());
        if self.proving.cluster() != Some(&mesh) {
            self.holding.record_due = Some(self.holding.record_due.map_or(due, |before| before.min(due)));
        }
        self.holding.earlier = None;
        self.set_cluster(mesh);
        self.due = Instant::now();
        self.report_held();
    }

    /// Reports what is held back, in the log only when that changes.
    fn report_held(&mut self) {
        let held = self.holding.holdback.held();
        let left = |until: Duration| until.saturating_sub(self.started.elapsed()).as_millis().div_ceil(1000);
        let held = held.map(|held| {
            let left = u64::try_from(left(held.until)).unwrap_or_default();
            Held { nodes: held.nodes, until: unix_time() + left }
        });
        let nodes = |held: &Option<Held>| held.as_ref().map(|held| held.nodes.clone());
        if nodes(&held) == nodes(&self.report.held) {
            return;
        }
        match &held {
            Some(held) => tracing::warn!("{}", held.warning(unix_time())),
            None => tracing::info!("no removals are held back any more"),
        }
        self.report.held = held;
    }
}

/// Whether the store has answered a question of that time, or could not: what was heard and failed before is none. One
/// that is in trouble may have answered in part only, and one that has failed is in trouble a moment later.
fn has_tried(heard: Option<Instant>, failed: Option<Instant>, is_in_trouble: bool, asked: Instant) -> bool {
    if is_in_trouble { failed } else { heard }.is_some_and(|last| last >= asked)
}

/// How large a mesh is, in words.
pub(super) fn size(mesh: &Cluster) -> String {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!("{} and {}", count(mesh.nodes.len(), "node"), count(mesh.pools.len(), "pool"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_is_answered_by_what_came_after_it_alone() {
        let asked = Instant::now();
        let after = asked + Duration::from_secs(1);
        let before = asked.checked_sub(Duration::from_secs(1));
        assert!(!has_tried(before, before, true, asked), "the error is an old one");
        assert!(!has_tried(Some(after), before, true, asked), "it has answered in part");
        assert!(has_tried(before, Some(after), true, asked));
        assert!(!has_tried(before, Some(after), false, asked), "what is wrong is about to be told");
        assert!(!has_tried(before, before, false, asked), "it has not been asked yet");
        assert!(has_tried(Some(after), None, false, asked));
    }

    #[test]
    fn one_is_not_several() {
        let mut mesh = Cluster::default();
        mesh.pools.extend("10.0.0.0/8".parse::<ipnet::IpNet>());
        assert_eq!(size(&mesh), "0 nodes and 1 pool");
        mesh.nodes.insert("a".into(), wireloom_plan::cluster::Node::default());
        assert_eq!(size(&mesh), "1 node and 1 pool");
    }
}
