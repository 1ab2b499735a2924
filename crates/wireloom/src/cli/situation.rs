//! This node as it is now, for `plan` and `status`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use wireloom_kernel::{
    Backend, DeviceState, Error, GuardCounters, Kernel, Linux, Refusals, Silence, state::StateDir,
};
use wireloom_membership::{Source, config_file::TomlFile};
use wireloom_plan::{
    cluster::{Cluster, Node},
    health::Machine,
    observed::Observed,
    op::Op,
    planner::{Plan, Planner},
    proofs::{Account, Proofs},
    refusal::Refusal,
    standing::Standings,
};
use wireloom_types::{PresharedKeyHash, PublicKey};

use super::SettingsFile;
use crate::{
    config::{Config, DEFAULT_PATH},
    key_file,
    run_file::{Held, RunFile, unix_time},
};

/// Stands for a key that is still to be made.
pub(super) const NO_KEY: PublicKey = PublicKey::from_bytes([0; 32]);

/// How late a device may answer: one with thousands of peers on a loaded machine takes a second.
const LATE: Duration = Duration::from_secs(3);

/// How often a late device is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is configured and what is in the kernel, as far as it can be read.
pub(super) struct Situation {
    /// What could not be read. `plan` needs all of it, `status` goes on without.
    pub(super) problems: Vec<Problem>,
    pub(super) config: Config,
    /// The mesh, or the one that was in force last, with what proven nodes gave up lately; `None` when neither can be
    /// read.
    pub(super) cluster: Option<Cluster>,
    /// What the running agent reports; `None` when none runs.
    pub(super) agent: Option<RunFile>,
    /// Whether each other node is proven, and why not.
    pub(super) standing: BTreeMap<String, Account>,
    pub(super) kernel: Option<InKernel>,
    public_key: Option<PublicKey>,
    preshared_key: Option<PresharedKeyHash>,
    standings: Standings,
}

/// What is in the kernel.
pub(super) struct InKernel {
    pub(super) observed: Observed,
    pub(super) device: Option<DeviceState>,
    /// The silence of a device that does not answer: then there is no [`Self::device`].
    pub(super) silence: Option<Silence>,
    /// Packets that the device dropped, by the reason's name; `None` when it does not say.
    pub(super) drops: Option<BTreeMap<String, u64>>,
    pub(super) machine: Machine,
    pub(super) backend: Option<Backend>,
    /// What the firewall refused; `None` when it does not check sources.
    pub(super) refusals: Option<Refusals>,
    /// What the guard refused; `None` without a guard.
    pub(super) guard: Option<GuardCounters>,
}

/// Something that could not be read.
#[derive(Debug)]
pub(super) struct Problem {
    /// Why not.
    pub(super) what: String,
    /// What was taken instead.
    instead: Option<&'static str>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.instead.map_or(Ok(()), |instead| write!(f, "; {instead}"))
    }
}

impl Situation {
    /// Reads the configuration and the kernel, and changes nothing.
    pub(super) fn observe(settings: &SettingsFile) -> anyhow::Result<Self> {
        let state = StateDir::locate();
        let mut problems = Vec::new();
        let mut config = settings_in_force(settings, &state, &mut problems)?;
        if let Some(programmed) = state.programmed().ok().flatten().filter(|_| config.table_is_auto) {
            config.settings.table = programmed.table();
        }
        let report = RunFile::read(&config.settings.interface);
        let is_locked = attempt(&mut problems, state.is_locked(), None).unwrap_or_default();
        let agent = report.clone().filter(|_| is_locked);

        let read = match &config.membership {
            Source::File(_) => {
                let recorded = state.mesh().ok().flatten();
                let instead = recorded.map(|_| "the mesh is the one last in force");
                attempt(&mut problems, config.membership.read(), instead)
            }
            // The agent alone asks a store, with its credentials, and records what it says.
            Source::Etcd(_) | Source::Kubernetes(_) => None,
        };
        let cluster = match (read, agent.as_ref().and_then(|agent| agent.held.as_ref())) {
            (Some(mut cluster), Some(held)) => {
                add_held(&mut cluster, held, recorded_mesh(&state, &mut problems));
                Some(cluster)
            }
            (Some(cluster), None) => Some(cluster),
            (None, _) => recorded_mesh(&state, &mut problems),
        };
        let cluster = cluster.map(|mut cluster| {
            // As the agent resolved them last.
            let recorded = state.mesh().ok().flatten().unwrap_or_default();
            cluster.resolve(&recorded.known_addresses());
            cluster
        });
        let preshared_file = cluster.as_ref().and_then(|cluster| cluster.preshared_key_file.as_deref());
        let in_file = preshared_file.and_then(|path| key_file::read_preshared(path).ok());
        // The agent knows the one in force if the file is broken now.
        let in_force =
            report.as_ref().and_then(|report| report.preshared_key).filter(|_| preshared_file.is_some());
        let preshared_key = in_file.as_ref().map(PresharedKeyHash::of).or(in_force);

        let opened = Linux::open(&config.settings.interface, config.settings.table, state.clone());
        let mut opened = attempt(&mut problems, opened, None);
        if let Some(kernel) = &mut opened {
            kernel.set_host_mode(config.settings.encrypt_host_traffic);
            kernel.expect_backend(config.backend, &config.settings);
            if let Some(before) = &report {
                kernel.remember_endpoints(&before.configured_endpoints);
                kernel.set_probed(before.probed());
            }
        }
        let own = cluster.as_ref().and_then(|cluster| cluster.nodes.get(&config.settings.node));
        let own = own.map(Node::underlay_addresses).unwrap_or_default();
        let settings = &config.settings;
        let endpoints = cluster.iter().flat_map(|cluster| cluster.nodes.values());
        let endpoints = endpoints.filter_map(|node| Some(node.endpoint?.ip()));
        let in_kernel = opened.as_mut().and_then(|kernel| {
            // The agent knows better whether the device is only late.
            let is_silent = agent.as_ref().is_some_and(|agent| agent.device_silent_since.is_some());
            let until = Instant::now() + if is_silent { Duration::ZERO } else { LATE };
            let (observed, device) = attempt(&mut problems, observe_until(kernel, &own, until), None)?;
            let device = match device {
                Err(error) if error.silence().is_some() => None,
                device => attempt(&mut problems, device, None).flatten(),
            };
            let silence = kernel.silence();
            let drops = match silence {
                None => attempt(&mut problems, kernel.drops(), None).flatten(),
                Some(_) => None,
            };
            let workloads = cluster.as_ref().map(Cluster::workloads).unwrap_or_default();
            let (machine, errors) = kernel.machine(settings, workloads, endpoints);
            let errors = errors.into_iter().map(|error| error.to_string());
            problems.extend(errors.map(|what| Problem { what, instead: None }));
            Some(InKernel {
                observed,
                refusals: kernel.refusals().cloned(),
                guard: kernel.guard_counters().cloned(),
                device,
                silence,
                drops,
                machine,
                backend: attempt(&mut problems, kernel.present_backend(), None).flatten(),
            })
        });

        // While an agent runs, the key that it took stays in force, and the device shows its public half.
        let key = attempt(&mut problems, key_file::read(&config.private_key_file), None);
        let of_device = in_kernel.as_ref().and_then(|found| found.device.as_ref()?.public_key);
        let public_key = match key {
            Some(Some(key)) => Some(key.public_key()),
            Some(None) => of_device.filter(|_| agent.is_some()),
            None => of_device,
        };
        let memory = attempt(&mut problems, state.proofs(), None).unwrap_or_default();
        let mut proofs = Proofs::new(config.settings.node.clone(), public_key.unwrap_or(NO_KEY), memory);
        let now = Duration::from_secs(unix_time());
        let cluster = cluster.map(|cluster| proofs.set_cluster(cluster, now));
        // Who is proven is recorded. An agent that runs also knows what it waits for, once it has a mesh.
        let met = opened.as_mut().map(|kernel| kernel.preconditions(false));
        let met = met.and_then(|met| attempt(&mut problems, met, None)).unwrap_or_default();
        let mut standing = proofs.accounts(&met);
        for (name, account) in agent.iter().flat_map(|agent| &agent.standing) {
            standing.entry(name.clone()).and_modify(|recorded| recorded.clone_from(account));
        }
        Ok(Self {
            problems,
            cluster,
            standings: proofs.standings(),
            preshared_key,
            agent,
            standing,
            kernel: in_kernel,
            public_key,
            config,
        })
    }

    /// What an agent would do now to these things in the kernel, so that this mesh is in force. It would make a private
    /// key where there is none. Of a device that does not answer, nobody knows what it would be told.
    pub(super) fn plan(&self, cluster: &Cluster, kernel: &InKernel) -> Result<Plan, Refusal> {
        let public_key = self.public_key.unwrap_or(NO_KEY);
        let mut planner = Planner::new(self.config.settings.clone(), public_key, cluster.clone());
        planner.set_standings(self.standings.clone());
        planner.set_preshared_key(self.preshared_key);
        let mut plan = planner.plan(&kernel.observed)?;
        plan.ops.retain(|op| kernel.silence.is_none() || !matches!(op, Op::Device(_)));
        Ok(plan)
    }
}

/// Observes the kernel and reads the device, again and again until it answers or this time has come.
fn observe_until(
    kernel: &mut Linux,
    own: &BTreeSet<IpAddr>,
    until: Instant,
) -> Result<(Observed, Result<Option<DeviceState>, Error>), Error> {
    loop {
        let observed = kernel.observe(own)?;
        let device = kernel.device();
        let is_silent = device.as_ref().is_err_and(|error| error.silence().is_some());
        if !is_silent || Instant::now() >= until {
            return Ok((observed, device));
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// What was read, or notes the problem.
fn attempt<T, E: fmt::Display>(
    problems: &mut Vec<Problem>,
    read: Result<T, E>,
    instead: Option<&'static str>,
) -> Option<T> {
    read.map_err(|error| problems.push(Problem { what: format!("{error:#}"), instead })).ok()
}

/// The settings of `agent.toml`. If it has a mistake, or the running agent does not take it, those that the agent took
/// last, as its run file says; without that, the defaults with the interface and table that an agent recorded.
fn settings_in_force(
    settings: &SettingsFile,
    state: &StateDir,
    problems: &mut Vec<Problem>,
) -> anyhow::Result<Config> {
    let programmed = attempt(problems, state.programmed(), None).flatten();
    let report = programmed.as_ref().and_then(|programmed| RunFile::read(programmed.interface()));
    // The agent may have been given a name that only its own environment has.
    let of_agent = report.as_ref().and_then(|report| report.node.as_deref());
    let node = settings.node.as_deref().or(of_agent);
    let loaded = Config::load(settings.config.as_deref(), node);
    let path = settings.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
    let of_text = |text: &str| Config::from_file(&TomlFile::from_text(path, text), node);
    let is_refused = report.as_ref().is_some_and(|report| report.settings_error.is_some())
        && state.is_locked().unwrap_or_default();
    let taken = report.as_ref().and_then(|report| report.settings.as_deref());
    let taken = taken.and_then(|text| of_text(text).ok());
    match (loaded, taken) {
        (Ok(_), Some(taken)) if is_refused => Ok(taken),
        (Ok(config), _) => Ok(config),
        (Err(error), Some(taken)) => {
            let instead = Some("what is said here goes by the settings that the agent took last");
            problems.push(Problem { what: error.to_string(), instead });
            Ok(taken)
        }
        (Err(error), None) => {
            let instead = Some("what is said here goes by the default settings");
            problems.push(Problem { what: error.to_string(), instead });
            let mut config = of_text("")?;
            if let Some(programmed) = &programmed {
                programmed.interface().clone_into(&mut config.settings.interface);
                config.settings.table = programmed.table();
            }
            Ok(config)
        }
    }
}

/// The mesh that an agent put in force last.
fn recorded_mesh(state: &StateDir, problems: &mut Vec<Problem>) -> Option<Cluster> {
    attempt(problems, state.mesh(), None).flatten()
}

/// Adds the nodes that the running agent keeps in force although the mesh lacks them, as it recorded them.
fn add_held(cluster: &mut Cluster, held: &Held, recorded: Option<Cluster>) {
    let mut recorded = recorded.unwrap_or_default();
    for name in &held.nodes {
        if let Some(node) = recorded.nodes.remove(name) {
            cluster.nodes.entry(name.clone()).or_insert(node);
        }
    }
}
