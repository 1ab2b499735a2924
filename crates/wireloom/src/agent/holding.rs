//! Joins the hold-back of removals, the record of the mesh in force, and `wireloom reload` into the agent's loop.

use std::time::{Duration, Instant};

use wireloom_plan::{cluster::Cluster, holdback::Holdback};

use super::{
    Agent,
    event::{Event, Reread},
};
use crate::run_file::{Held, unix_time};

/// What the agent remembers about the mesh in force and what is held back in it.
pub(super) struct Holding {
    holdback: Holdback,
    /// The mesh that an earlier agent recorded, until the first snapshot.
    earlier: Option<Cluster>,
    /// The mesh in force changed since it was recorded.
    unrecorded: bool,
}

impl Holding {
    /// `earlier` is the mesh that an earlier agent recorded.
    pub(super) fn new(earlier: Option<Cluster>) -> Self {
        Self { holdback: Holdback::default(), earlier, unrecorded: false }
    }
}

impl Agent {
    /// Puts a snapshot of the mesh in force, but for removals that are held back. `meant` says that the operator means
    /// them.
    pub(super) fn obey(&mut self, snapshot: Cluster, meant: bool) {
        self.report.membership_error = None;
        let now = self.started.elapsed();
        let in_force = self.proving.cluster().or(self.holding.earlier.as_ref());
        let holdback = &mut self.holding.holdback;
        let mesh = match meant {
            true => holdback.take_as_meant(in_force, snapshot, now),
            false => holdback.take(in_force, snapshot, &self.config.settings.node, now),
        };
        self.put_in_force(mesh);
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

    /// Takes what was read because of a signal.
    pub(super) fn take_reread(&mut self, read: Reread) {
        self.report.reread = Some(read.begun);
        self.handle(Event::Settings(read.settings));
        match read.membership {
            Ok(cluster) => self.obey(cluster, read.meant),
            Err(error) => self.keep_mesh(error),
        }
        self.due = Instant::now();
    }

    /// When the next pass is due, something is to be let go, or the device to be looked at.
    pub(super) fn wakes_at(&self) -> Instant {
        let due = self.due.min(self.proving.next_look());
        self.holding.holdback.due().map_or(due, |let_go| due.min(self.started + let_go))
    }

    /// Records the mesh in force if it has changed.
    pub(super) fn record_mesh(&mut self) {
        if !self.holding.unrecorded {
            return;
        }
        let Some(mesh) = self.proving.cluster() else { return };
        if let Err(error) = self.state.set_mesh(mesh) {
            tracing::warn!(
                "cannot record the mesh in {}, so the next agent will not notice if most of it is missing: {error}",
                self.state.path().display()
            );
        }
        self.holding.unrecorded = false;
    }

    fn put_in_force(&mut self, mesh: Cluster) {
        self.holding.unrecorded |= self.proving.cluster() != Some(&mesh);
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
