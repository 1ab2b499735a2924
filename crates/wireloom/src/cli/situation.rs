//! This node as it is now, for `plan` and `status`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use wireloom_kernel::{
    Backend, DeviceState, GuardCounters, Kernel, Linux, Refusals, Silence, state::StateDir,
};
use wireloom_plan::{
    cluster::{Cluster, Node},
    observed::Observed,
    op::Op,
    planner::{Plan, Planner},
    proofs::{Account, Proofs},
    refusal::Refusal,
    standing::Standings,
};
use wireloom_types::{PresharedKeyHash, PublicKey};

use crate::{
    config::Config,
    key_file,
    run_file::{Held, RunFile, unix_time},
};

/// Stands for a key that is still to be made.
pub(super) const NO_KEY: PublicKey = PublicKey::from_bytes([0; 32]);

/// What is configured and what is in the kernel.
pub(super) struct Situation {
    pub(super) config: Config,
    pub(super) public_key: Option<PublicKey>,
    /// With what proven nodes gave up lately.
    pub(super) cluster: Result<Cluster, wireloom_membership::Error>,
    standings: Standings,
    preshared_key: Option<PresharedKeyHash>,
    /// Whether each other node is proven, and why not.
    pub(super) standing: BTreeMap<String, Account>,
    pub(super) observed: Observed,
    pub(super) device: Option<DeviceState>,
    /// The silence of a device that does not answer: then there is no [`Self::device`].
    pub(super) silence: Option<Silence>,
    pub(super) backend: Option<Backend>,
    /// What the firewall refused; `None` when it does not check sources.
    pub(super) refusals: Option<Refusals>,
    /// What the guard refused; `None` without a guard.
    pub(super) guard: Option<GuardCounters>,
}

impl Situation {
    /// Reads the configuration and the kernel, and changes nothing.
    pub(super) fn observe(config_path: Option<&Path>) -> anyhow::Result<Self> {
        let config = Config::load(config_path)?;
        let key = key_file::read(&config.private_key_file)?;
        let state = StateDir::locate();
        let agent = RunFile::read(&config.settings.interface);
        let mut cluster = config.membership.read();
        if let (Ok(cluster), Some(held)) =
            (&mut cluster, agent.as_ref().and_then(|agent| agent.held.as_ref()))
            && state.is_locked()?
        {
            add_held(cluster, held, &state)?;
        }
        if let Ok(cluster) = &mut cluster {
            // As the agent resolved them last. It also knows the preshared key in force if the file is broken now.
            let recorded = state.mesh().ok().flatten().unwrap_or_default();
            cluster.resolve(&recorded.known_addresses());
        }
        let file = cluster.as_ref().ok().and_then(|cluster| cluster.preshared_key_file.as_deref());
        let in_file = file.and_then(|path| key_file::read_preshared(path).ok());
        let in_force = agent.as_ref().and_then(|agent| agent.preshared_key).filter(|_| file.is_some());
        let preshared_key = in_file.as_ref().map(PresharedKeyHash::of).or(in_force);
        let public_key = key.map(|key| key.public_key());
        let node = config.settings.node.clone();
        let mut proofs = Proofs::new(node, public_key.unwrap_or(NO_KEY), state.proofs()?);
        let cluster = cluster.map(|cluster| proofs.set_cluster(cluster, Duration::from_secs(unix_time())));
        let own = cluster.as_ref().ok().and_then(|cluster| cluster.nodes.get(&config.settings.node));
        let own = own.map(Node::underlay_addresses).unwrap_or_default();
        let mut kernel = Linux::open(&config.settings.interface, config.settings.table, state)?;
        kernel.set_host_mode(config.settings.encrypt_host_traffic);
        kernel.expect_backend(config.backend, &config.settings);
        if let Some(agent) = &agent {
            kernel.remember_endpoints(&agent.configured_endpoints);
            kernel.set_probed(agent.probed());
        }
        let running = agent.filter(|_| StateDir::locate().is_locked().unwrap_or_default());
        let standing = match running {
            Some(agent) => agent.standing,
            // Nobody asks while no agent runs.
            None => proofs.accounts(&kernel.preconditions(false)?),
        };
        let observed = kernel.observe(&own)?;
        let device = match kernel.device() {
            Err(error) if error.silence().is_some() => None,
            device => device?,
        };
        Ok(Self {
            public_key,
            cluster,
            standings: proofs.standings(),
            preshared_key,
            standing,
            refusals: kernel.refusals().cloned(),
            guard: kernel.guard_counters().cloned(),
            observed,
            device,
            silence: kernel.silence(),
            backend: kernel.present_backend()?,
            config,
        })
    }

    /// What an agent would do now. It would make a private key where there is none. Of a device that does not answer,
    /// nobody knows what it would be told.
    pub(super) fn plan(&self, cluster: &Cluster) -> Result<Plan, Refusal> {
        let public_key = self.public_key.unwrap_or(NO_KEY);
        let mut planner = Planner::new(self.config.settings.clone(), public_key, cluster.clone());
        planner.set_standings(self.standings.clone());
        planner.set_preshared_key(self.preshared_key);
        let mut plan = planner.plan(&self.observed)?;
        plan.ops.retain(|op| self.silence.is_none() || !matches!(op, Op::Device(_)));
        Ok(plan)
    }
}

/// Adds the nodes that the running agent keeps in force although the mesh lacks them, as it recorded them.
fn add_held(cluster: &mut Cluster, held: &Held, state: &StateDir) -> anyhow::Result<()> {
    let mut recorded = state.mesh()?.unwrap_or_default();
    for name in &held.nodes {
        if let Some(node) = recorded.nodes.remove(name) {
            cluster.nodes.entry(name.clone()).or_insert(node);
        }
    }
    Ok(())
}
