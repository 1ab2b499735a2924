//! The level-triggered loop's heart: observe, plan, apply, observe.
//!
//! Whatever happened (membership, settings, a rule that somebody deleted, a restart), a pass
//! brings the kernel to the desired state. It knows no clock, no thread and no file.

use std::{collections::BTreeSet, net::IpAddr};

use wireloom_kernel::{Error, Kernel, wording};
use wireloom_plan::{
    cluster::Cluster, observed::Observed, op::Op, planner::Planner, refusal::Refusal, settings::Settings,
    warning::Warning,
};
use wireloom_types::PublicKey;

#[cfg(test)]
mod tests;

/// After so many rounds of plan and apply the kernel must be as desired; if it is not, somebody
/// works against us, or the kernel keeps what it is told in a form that we do not read back.
const ROUNDS: usize = 4;

/// How many operations of one pass are told one by one.
const TOLD: usize = 20;

/// Brings a kernel to the state that follows from the membership and the settings.
pub struct Reconciler<K> {
    kernel: K,
    settings: Settings,
    public_key: PublicKey,
    /// Absent until the first whole snapshot: before it nothing is changed, let alone removed.
    planner: Option<Planner>,
    /// The kernel as the last pass left it; absent when it must be observed.
    mirror: Option<Observed>,
    warnings: BTreeSet<Warning>,
}

/// Why a pass did not reach the desired state.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no plan; the kernel stays as it is until the operator mends the cause.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel could not be read.
    #[error(transparent)]
    Observe(Error),
    /// Operations failed.
    #[error("{}", told(.0))]
    Apply(Vec<Error>),
    /// The operations succeed, and yet more are needed each time.
    #[error("the kernel does not stay as it was told: after {ROUNDS} rounds it still takes to {0}")]
    Unsettled(String),
}

fn told(errors: &[Error]) -> String {
    match errors {
        [] => String::new(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more errors)", rest.len()),
    }
}

impl Trouble {
    /// True when the next pass may succeed without anybody's doing.
    #[must_use]
    pub fn retry_can_help(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Observe(error) => error.retry_can_help(),
            Self::Apply(errors) => errors.iter().any(Error::retry_can_help),
            Self::Unsettled(_) => true,
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Waits for the first snapshot.
    pub fn new(kernel: K, settings: Settings, public_key: PublicKey) -> Self {
        Self { kernel, settings, public_key, planner: None, mirror: None, warnings: BTreeSet::new() }
    }

    /// A whole snapshot of the membership.
    pub fn set_cluster(&mut self, cluster: Cluster) {
        match &mut self.planner {
            Some(planner) => {
                let own = own_addresses(planner.cluster(), &self.settings);
                planner.set_cluster(cluster);
                if own_addresses(planner.cluster(), &self.settings) != own {
                    // The underlay is known by them.
                    self.mirror = None;
                }
            }
            None => self.planner = Some(Planner::new(self.settings.clone(), self.public_key, cluster)),
        }
    }

    /// Other settings, or another private key, whose public half this is.
    pub fn set_settings(&mut self, settings: Settings, public_key: PublicKey) {
        match &mut self.planner {
            Some(planner) if public_key == self.public_key => planner.set_settings(settings.clone()),
            Some(planner) => *planner = Planner::new(settings.clone(), public_key, planner.cluster().clone()),
            None => {}
        }
        self.settings = settings;
        self.public_key = public_key;
        self.mirror = None;
    }

    /// The kernel may have been changed by somebody else.
    pub fn distrust_kernel(&mut self) {
        self.mirror = None;
    }

    /// The kernel that is reconciled.
    pub fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// The public half of the key that the device shall have.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// True once a whole snapshot has come.
    #[must_use]
    pub fn has_cluster(&self) -> bool {
        self.planner.is_some()
    }

    /// This node's own addresses, as the membership has them.
    #[must_use]
    pub fn own_addresses(&self) -> BTreeSet<IpAddr> {
        self.planner
            .as_ref()
            .map(|planner| own_addresses(planner.cluster(), &self.settings))
            .unwrap_or_default()
    }

    /// The kernel as the last pass left it, when that succeeded.
    #[must_use]
    pub fn mirror(&self) -> Option<&Observed> {
        self.mirror.as_ref()
    }

    /// What the operator should know, as of the last pass.
    #[must_use]
    pub fn warnings(&self) -> &BTreeSet<Warning> {
        &self.warnings
    }

    /// Brings the kernel to the desired state, and says how many operations that took. Without a
    /// snapshot it does nothing.
    ///
    /// # Errors
    /// What stands in the way; the next pass begins with a look at the kernel.
    pub fn pass(&mut self) -> Result<usize, Trouble> {
        let Some(mut planner) = self.planner.take() else { return Ok(0) };
        let outcome = match self.mirror.take() {
            Some(mirror) => self.follow_changes(&mut planner, mirror),
            None => self.settle(&mut planner),
        };
        self.planner = Some(planner);
        outcome
    }

    /// Only the membership changed, so only what it touched is looked at: one node of thousands
    /// costs what that node costs.
    fn follow_changes(&mut self, planner: &mut Planner, mut mirror: Observed) -> Result<usize, Trouble> {
        let ops = planner.changes(&mirror)?;
        self.apply(&ops)?;
        if mirror.apply_all(&ops).is_err() {
            return Ok(ops.len() + self.settle(planner)?);
        }
        self.warnings = planner.desired(&mirror)?.warnings.clone();
        self.mirror = Some(mirror);
        Ok(ops.len())
    }

    fn settle(&mut self, planner: &mut Planner) -> Result<usize, Trouble> {
        let own = own_addresses(planner.cluster(), &self.settings);
        let mut done = 0;
        let mut rounds = 0..ROUNDS;
        loop {
            let observed = self.kernel.observe(&own).map_err(Trouble::Observe)?;
            let plan = planner.plan(&observed)?;
            self.warnings = plan.warnings;
            if plan.ops.is_empty() {
                self.mirror = Some(observed);
                return Ok(done);
            }
            if rounds.next().is_none() {
                return Err(Trouble::Unsettled(wording::op(&plan.ops[0], &self.settings.interface)));
            }
            self.apply(&plan.ops)?;
            done += plan.ops.len();
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Result<(), Trouble> {
        for op in ops.iter().take(TOLD) {
            tracing::info!("{}", wording::op(op, &self.settings.interface));
        }
        if let Some(more @ 1..) = ops.len().checked_sub(TOLD) {
            tracing::info!("and {more} more changes");
        }
        self.kernel.apply(ops).map_err(Trouble::Apply)
    }
}

fn own_addresses(cluster: &Cluster, settings: &Settings) -> BTreeSet<IpAddr> {
    cluster.nodes.get(&settings.node).map(|node| node.addresses.clone()).unwrap_or_default()
}
