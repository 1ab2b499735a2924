//! What an arriving instance does before it asks for the lock: it reads everything and makes its plan, as the start
//! and the first pass will, and changes nothing.

use std::{path::Path, sync::mpsc::channel, thread, time::Duration};

use anyhow::{Context as _, bail};
use wireloom_kernel::{Kernel as _, Linux, state::StateDir};
use wireloom_membership::{Source, config_file::TomlFile};
use wireloom_plan::{
    cluster::{Cluster, Node},
    planner::Planner,
    proofs::Proofs,
    refusal::Refusal,
};
use wireloom_types::PresharedKeyHash;

use super::super::start::{check_recorded, settle_table};
use crate::{
    config::{Config, DEFAULT_PATH, file_or_defaults},
    key_file,
    run_file::{RunFile, unix_time},
};

/// How long a store may take to answer. After that, the mesh in force does. Only the arriving instance waits: the one
/// that serves goes on, and so this is longer than the 5 s after which a starting agent uses that mesh.
const STORE_PATIENCE: Duration = Duration::from_secs(15);

/// Reads everything that serving needs, and makes the plan.
///
/// # Errors
/// What is missing or wrong. Nothing has changed.
pub(in crate::agent) fn rehearse(
    config_path: Option<&Path>,
    named: Option<&str>,
    state: &StateDir,
) -> anyhow::Result<()> {
    let read = TomlFile::read(config_path.unwrap_or(Path::new(DEFAULT_PATH)));
    let mut config = Config::from_file(&file_or_defaults(read, config_path)?, named)?;
    settle_table(state, &mut config)?;
    check_recorded(state, &config)?;
    let Some(key) = key_file::read(&config.private_key_file)? else {
        bail!("there is no private key in {}", config.private_key_file.display());
    };
    let public_key = key.public_key();
    let recorded = state.mesh()?;
    let mut mesh = read_mesh(&config.membership, recorded.as_ref())?;
    mesh.resolve(&recorded.map(|recorded| recorded.known_addresses()).unwrap_or_default());
    let preshared_key = match &mesh.preshared_key_file {
        Some(path) => Some(PresharedKeyHash::of(&key_file::read_preshared(path)?)),
        None => None,
    };
    let settings = config.settings;
    let mut proofs = Proofs::new(settings.node.clone(), public_key, state.proofs()?);
    let mesh = proofs.set_cluster(mesh, Duration::from_secs(unix_time()));

    let mut kernel = Linux::open(&settings.interface, settings.table, state.clone())?;
    kernel.set_host_mode(settings.encrypt_host_traffic);
    kernel.refuse_foreign_interface()?;
    kernel.expect_backend(config.backend, &settings);
    let before = RunFile::read(&settings.interface).unwrap_or_default();
    kernel.remember_endpoints(&before.configured_endpoints);
    kernel.set_probed(before.probed());
    let own = mesh.nodes.get(&settings.node).map(Node::underlay_addresses);
    let observed = kernel.observe(&own.unwrap_or_default())?;
    let mut planner = Planner::new(settings, public_key, mesh);
    planner.set_standings(proofs.standings());
    planner.set_preshared_key(preshared_key);
    match planner.plan(&observed) {
        // An agent that publishes itself waits for its record to appear.
        Err(Refusal::NodeMissing { .. }) if !matches!(config.membership, Source::File(_)) => Ok(()),
        Err(refusal) => Err(refusal).context("there is no plan"),
        Ok(_) => Ok(()),
    }
}

/// The mesh as its source has it now; the one last in force when a store does not say.
fn read_mesh(source: &Source, recorded: Option<&Cluster>) -> anyhow::Result<Cluster> {
    if let Source::File(_) = source {
        return Ok(source.read()?);
    }
    let (sender, answer) = channel();
    let asked = source.clone();
    thread::Builder::new().name("rehearsal".into()).spawn(move || sender.send(asked.read()))?;
    let why = match answer.recv_timeout(STORE_PATIENCE) {
        Ok(Ok(mesh)) => return Ok(mesh),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the store does not answer within {} s", STORE_PATIENCE.as_secs()),
    };
    match recorded {
        Some(recorded) => {
            tracing::info!("{why}; the mesh that is in force does for now");
            Ok(recorded.clone())
        }
        None => bail!("{why}"),
    }
}
