//! The core of the agent's level-triggered loop: observe, plan, apply, observe again.
//!
//! Whatever happened (the membership or the settings changed, somebody deleted a rule, the agent restarted), a pass
//! brings the kernel to the desired state. This module knows no clock, no thread and no file.

use std::{collections::BTreeSet, mem, net::IpAddr};

use wireloom_kernel::{Error, Kernel, SILENCE_MAX, Silence, wording};
use wireloom_plan::{
    cluster::{Cluster, Node},
    observed::Observed,
    op::Op,
    planner::Planner,
    refusal::Refusal,
    routing::Rule,
    settings::Settings,
    standing::Standings,
    warning::Warning,
};
use wireloom_types::{PresharedKeyHash, PublicKey};

#[cfg(test)]
mod tests;

/// How many rounds of plan and apply a pass may take. If the kernel is not as desired then, another program undoes our
/// changes, or the kernel reads back something other than what we wrote.
const ROUNDS: usize = 4;

/// How many operations of one pass are logged one by one.
const LOGGED: usize = 20;

/// Brings a kernel to the state that follows from the membership and the settings.
pub(crate) struct Reconciler<K> {
    kernel: K,
    settings: Settings,
    public_key: PublicKey,
    standings: Standings,
    preshared_key: Option<PresharedKeyHash>,
    /// Absent until the first snapshot: before it nothing is changed, let alone removed.
    planner: Option<Planner>,
    /// The kernel as the last pass left it; absent when it must be observed again.
    mirror: Option<Observed>,
    warnings: BTreeSet<Warning>,
    /// The rules that are there unless another program deleted them; empty when nobody knows.
    expected_rules: BTreeSet<Rule>,
    /// Whether the last pass found that another program had deleted rules of ours.
    rules_deleted: bool,
    /// Mesh, settings or proofs have changed since a pass last reached the desired state.
    asked: bool,
    /// How many operations of the last pass undid what something else had changed.
    repairs: usize,
}

/// Why a pass did not reach the desired state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// There is no plan. The kernel stays as it is until the operator fixes the cause.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The kernel could not be read.
    #[error(transparent)]
    Observe(Error),
    /// Operations failed.
    #[error("{}", first_of(.0))]
    Apply(Vec<Error>),
    /// The device does not answer. Everything else is as desired.
    #[error(
        "{silence}; everything else is repaired, and the device is restarted after {limit} s without an answer",
        silence = .0, limit = SILENCE_MAX.as_secs()
    )]
    Silent(Silence),
    /// The operations succeed, and yet more are needed after each round; this is one of them.
    #[error(
        "the kernel does not stay as programmed: after {ROUNDS} rounds it is still necessary to {0}; find out which \
         other program changes it"
    )]
    Unsettled(String),
}

fn first_of(errors: &[Error]) -> String {
    match errors {
        [] => String::new(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more errors)", rest.len()),
    }
}

impl Trouble {
    /// Whether the next pass may succeed although nobody changed anything.
    pub(crate) fn retry_can_help(&self) -> bool {
        match self {
            Self::Refused(_) => false,
            Self::Observe(error) => error.retry_can_help(),
            Self::Apply(errors) => errors.iter().any(Error::retry_can_help),
            Self::Silent(_) | Self::Unsettled(_) => true,
        }
    }
}

impl<K: Kernel> Reconciler<K> {
    /// A reconciler that waits for the first snapshot.
    pub(crate) fn new(kernel: K, settings: Settings, public_key: PublicKey) -> Self {
        Self {
            kernel,
            settings,
            public_key,
            standings: Standings::new(),
            preshared_key: None,
            planner: None,
            mirror: None,
            warnings: BTreeSet::new(),
            expected_rules: BTreeSet::new(),
            rules_deleted: false,
            asked: true,
            repairs: 0,
        }
    }

    /// Takes a snapshot of the membership.
    pub(crate) fn set_cluster(&mut self, cluster: Cluster) {
        self.asked = true;
        match &mut self.planner {
            Some(planner) => {
                let own = own_addresses(planner.cluster(), &self.settings);
                planner.set_cluster(cluster);
                if own_addresses(planner.cluster(), &self.settings) != own {
                    // The underlay interfaces are found by these addresses.
                    self.mirror = None;
                }
            }
            None => self.planner = Some(self.new_planner(cluster)),
        }
    }

    /// Takes new settings, and the public half of the device's private key.
    pub(crate) fn set_settings(&mut self, settings: Settings, public_key: PublicKey) {
        self.asked = true;
        match &mut self.planner {
            Some(planner) if public_key == self.public_key => {
                planner.set_settings(settings.clone());
                self.settings = settings;
            }
            planner => {
                let cluster = planner.take().map(|planner| planner.cluster().clone());
                (self.settings, self.public_key) = (settings, public_key);
                self.planner = cluster.map(|cluster| self.new_planner(cluster));
            }
        }
        self.mirror = None;
    }

    /// Takes where this node stands with the others.
    pub(crate) fn set_standings(&mut self, standings: Standings) {
        self.asked = true;
        if let Some(planner) = &mut self.planner {
            planner.set_standings(standings.clone());
        }
        self.standings = standings;
    }

    /// Takes the hash of the mesh's preshared key; `None` when there is none that can be used.
    pub(crate) fn set_preshared_key(&mut self, key: Option<PresharedKeyHash>) {
        self.asked = true;
        if let Some(planner) = &mut self.planner {
            planner.set_preshared_key(key);
        }
        self.preshared_key = key;
    }

    fn new_planner(&self, cluster: Cluster) -> Planner {
        let mut planner = Planner::new(self.settings.clone(), self.public_key, cluster);
        planner.set_standings(self.standings.clone());
        planner.set_preshared_key(self.preshared_key);
        planner
    }

    /// Makes the next pass observe the kernel: somebody else may have changed it.
    pub(crate) fn distrust_kernel(&mut self) {
        self.mirror = None;
    }

    /// The kernel that is reconciled.
    pub(crate) fn kernel_mut(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// The kernel that is reconciled, and [`Self::mirror`].
    pub(crate) fn kernel_and_mirror(&mut self) -> (&mut K, Option<&Observed>) {
        (&mut self.kernel, self.mirror.as_ref())
    }

    /// The public half of the device's private key.
    pub(crate) fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The mesh in force; `None` until a snapshot of the membership has arrived.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.planner.as_ref().map(Planner::cluster)
    }

    /// The kernel as the last pass left it, if that pass succeeded.
    pub(crate) fn mirror(&self) -> Option<&Observed> {
        self.mirror.as_ref()
    }

    /// The warnings of the last pass.
    pub(crate) fn warnings(&self) -> &BTreeSet<Warning> {
        &self.warnings
    }

    /// Whether the last pass found that another program had deleted rules of ours.
    pub(crate) fn rules_were_deleted(&self) -> bool {
        self.rules_deleted
    }

    /// How many operations of the last pass nobody had asked for: something else had changed the kernel since the pass
    /// before.
    pub(crate) fn repairs(&self) -> usize {
        self.repairs
    }

    /// Brings the kernel to the desired state, and returns how many operations that took. Without a snapshot of the
    /// membership it does nothing. After an error the next pass observes the kernel first.
    pub(crate) fn pass(&mut self) -> Result<usize, Trouble> {
        (self.rules_deleted, self.repairs) = (false, 0);
        let Some(mut planner) = self.planner.take() else { return Ok(0) };
        let outcome = match self.mirror.take().filter(|_| self.kernel.silence().is_none()) {
            Some(mirror) => self.follow_changes(&mut planner, mirror),
            None => self.settle(&mut planner),
        };
        self.planner = Some(planner);
        if let (Ok(done), false) = (&outcome, self.asked) {
            self.repairs = *done;
        }
        self.asked = outcome.is_err();
        outcome
    }

    /// The pass when only the membership changed: it plans only what the change touches and does not observe the
    /// kernel, so that the cost of one changed node does not depend on how many nodes there are.
    fn follow_changes(&mut self, planner: &mut Planner, mut mirror: Observed) -> Result<usize, Trouble> {
        let ops = planner.changes(&mirror)?;
        self.apply(&ops, planner.desired(&mirror)?.rules.clone())?;
        if mirror.apply_all(&ops).is_err() {
            return Ok(ops.len() + self.settle(planner)?);
        }
        // What others made in the kernel is as it was observed last.
        self.warnings.retain(Warning::is_about_others);
        self.warnings.extend(planner.desired(&mirror)?.warnings.iter().cloned());
        self.mirror = Some(mirror);
        Ok(ops.len())
    }

    /// The pass when the kernel must be observed: plan and apply until nothing is left to do.
    fn settle(&mut self, planner: &mut Planner) -> Result<usize, Trouble> {
        let own = own_addresses(planner.cluster(), &self.settings);
        let mut done = 0;
        let mut rounds = 0..ROUNDS;
        loop {
            let observed = self.kernel.observe(&own).map_err(Trouble::Observe)?;
            self.rules_deleted |= self.expected_rules.iter().any(|rule| !observed.rules.contains(rule));
            let plan = match planner.plan(&observed) {
                Ok(plan) => plan,
                Err(refusal) => {
                    self.guard(planner, &observed)?;
                    return Err(refusal.into());
                }
            };
            self.warnings = plan.warnings;
            let rules = planner.desired(&observed)?.rules.clone();
            if let Some(silence) = self.kernel.silence() {
                // What the device is to be told must wait. It is not known well enough to tell what else remains.
                let (waiting, ops): (Vec<Op>, Vec<Op>) =
                    plan.ops.into_iter().partition(|op| matches!(op, Op::Device(_)));
                tracing::debug!("{} changes of the device must wait", waiting.len());
                self.apply(&ops, rules)?;
                return Err(Trouble::Silent(silence));
            }
            if plan.ops.is_empty() {
                self.expected_rules = rules;
                self.mirror = Some(observed);
                return Ok(done);
            }
            if rounds.next().is_none() {
                return Err(Trouble::Unsettled(wording::op(&plan.ops[0], &self.settings.interface)));
            }
            self.apply(&plan.ops, rules)?;
            done += plan.ops.len();
        }
    }

    /// While nothing else may be changed: brings the guard to its desired state, as far as that is known.
    fn guard(&mut self, planner: &mut Planner, observed: &Observed) -> Result<(), Trouble> {
        let ops = planner.plan_guard(observed).unwrap_or_default();
        let rules = mem::take(&mut self.expected_rules);
        self.apply(&ops, rules)
    }

    /// Carries out operations after which these rules are there. What the log says has happened.
    fn apply(&mut self, ops: &[Op], rules: BTreeSet<Rule>) -> Result<(), Trouble> {
        self.expected_rules.clear();
        self.kernel.apply(ops).map_err(Trouble::Apply)?;
        self.expected_rules = rules;
        for op in ops.iter().take(LOGGED) {
            tracing::info!("{}", wording::op(op, &self.settings.interface));
        }
        if let Some(more @ 1..) = ops.len().checked_sub(LOGGED) {
            tracing::info!("and {more} more changes");
        }
        Ok(())
    }
}

fn own_addresses(cluster: &Cluster, settings: &Settings) -> BTreeSet<IpAddr> {
    cluster.nodes.get(&settings.node).map(Node::underlay_addresses).unwrap_or_default()
}
