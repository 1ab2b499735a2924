//! Starting the agent: everything that must hold before its loop runs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering, mpsc::channel},
    time::Instant,
};

use anyhow::{Context, bail};
use wireloom_kernel::{
    Interest, Linux,
    state::{AgentLock, LOCK_PATIENCE, Programmed, StateDir},
};
use wireloom_membership::{Source, Start, config_file::Watch};
use wireloom_plan::{diff::teardown, op::Op, ownership::PROPOSALS, removals::Removals};
use wireloom_types::PrivateKey;

use super::{
    Agent, FIRST_RETRY, RESYNC,
    adopting::Adopting,
    borrowing::Borrowing,
    choose_backend,
    event::{self, Event},
    holding::Holding,
    instance,
    key_watch::KeyWatch,
    metering::Metering,
    orphans::Orphans,
    polling::Polling,
    preshared::Preshared,
    probing::Probing,
    proving::Proving,
    publishing::Publishing,
    resolving::Resolving,
    watching::Watching,
};
use crate::{
    config::{Config, DEFAULT_PATH, file_or_defaults},
    instance_file::Instance,
    key_file,
    reconcile::Reconciler,
    run_file::RunFile,
};

/// What the agent is asked to do.
#[derive(Debug)]
pub(crate) struct Asked {
    /// An `agent.toml` other than the default one.
    pub(crate) config: Option<PathBuf>,
    /// This node's name unless that file says it.
    pub(crate) node: Option<String>,
    /// Take over from an agent that runs, or wait for its end.
    pub(crate) take_over: bool,
    /// This instance has let another one serve.
    pub(crate) passive: bool,
}

/// Runs the agent until SIGTERM or SIGINT, and leaves the data path up.
///
/// An error here keeps the agent from starting: a mistake in `agent.toml`, an unusable key, another agent, a foreign
/// interface. Whatever goes wrong later is logged and tried again.
pub(crate) fn run(asked: Asked) -> anyhow::Result<()> {
    let Asked { config, node: named, take_over, passive } = asked;
    // Absolute, because a file is watched through its directory.
    let config_path = config.map(std::path::absolute).transpose().context("cannot find agent.toml")?;
    let path = config_path.as_deref().unwrap_or(Path::new(DEFAULT_PATH)).to_owned();
    let state = StateDir::locate();
    let instance = Instance::from_environment();
    let (lock, stop) = if take_over || passive {
        let rehearse = || instance::rehearse(config_path.as_deref(), named.as_deref(), &state);
        match instance::wait_to_serve(&state, &instance, passive, rehearse)? {
            Some(serving) => serving,
            None => return Ok(()),
        }
    } else {
        (lock(&state)?, Arc::default())
    };
    // Before anything that can be mistaken or take time.
    match wireloom_kernel::restore_guard(&state) {
        Ok(true) => tracing::info!("restored the guard of the last agent"),
        Ok(false) => {}
        Err(error) => tracing::warn!("{error}"),
    }
    for aside in state.set_aside_damaged(&lock)? {
        tracing::warn!("{aside}");
    }
    let mut watch = Watch::new(path.clone());
    let read = watch.next_version();
    let has_file = read.is_ok();
    let file = file_or_defaults(read, config_path.as_deref())?;
    let mut config = Config::from_file(&file, named.as_deref())?;
    settle_table(&state, &mut config)?;
    record(&state, &config)?;
    let (sender, events) = channel();
    // Before the key is read: a change in between is then noticed.
    let key_watch = KeyWatch::start(config.private_key_file.clone(), sender.clone(), || Event::Key)?;
    let key = key_of_this_name(&state, &config)?;
    let public_key = key.public_key();
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    tracing::info!("node {}, public key {public_key}", config.settings.node);

    let mut kernel = Linux::open(&config.settings.interface, config.settings.table, state.clone())?;
    kernel.set_private_key(key);
    kernel.set_host_mode(config.settings.encrypt_host_traffic);
    kernel.keep_guard_saved();
    kernel.finish_creation()?;
    kernel.refuse_foreign_interface()?;
    let backend = choose_backend(&mut kernel, &config)?;
    let before = RunFile::read(&config.settings.interface).unwrap_or_default();
    kernel.remember_endpoints(&before.configured_endpoints);
    kernel.set_probed(before.probed());

    let interest = Interest {
        interface: config.settings.interface.clone(),
        table: config.settings.table,
        own_port: kernel.netlink_port(),
        ..Interest::default()
    };
    event::signals(path, config.membership.clone(), sender.clone())?;
    if stop.load(Ordering::Relaxed) {
        return Ok(());
    }
    let listener = event::instances(&state, sender.clone());
    event::settings(watch, sender.clone())?;
    let monitor = event::kernel(&kernel, interest.clone(), sender.clone())?;
    let recorded = state.mesh()?;
    let start = Start { node: config.settings.node.clone(), recorded: recorded.clone() };
    let following = event::membership(&config.membership, start, sender.clone())?;
    let publishing = Publishing::new(following, &state)?;
    let publishes = publishing.is_on();
    let store = match &config.membership {
        Source::File(_) => None,
        Source::Etcd(_) => Some("etcd".to_owned()),
        Source::Kubernetes(_) => Some("Kubernetes".to_owned()),
    };
    let resolving = Resolving::start(public_key, recorded.as_ref(), sender.clone())?;

    let holding = Holding::new(recorded, &config.membership);
    let probing = Probing::new(&config.settings.interface, public_key, before.probed());
    let proving = Proving::new(config.settings.node.clone(), public_key, &state)?;
    let gave_way = passive || instance.read().is_some_and(|before| before.gave_way);
    let settings = Some(file.text().to_owned());
    let node = config.settings.node.clone();
    let mut agent = Agent {
        reconciler: Reconciler::new(kernel, config.settings.clone(), public_key),
        file,
        has_file,
        unread: None,
        config,
        named,
        monitor,
        interest,
        due: Instant::now() + RESYNC,
        last_pass: None,
        pass_before: None,
        retry: FIRST_RETRY,
        started: Instant::now(),
        removals: Removals::default(),
        removals_logged: None,
        holding,
        publishing,
        borrowing: Borrowing::default(),
        probing,
        proving,
        polling: Polling::new(),
        orphans: Orphans::default(),
        key_watch,
        resolving,
        preshared: Preshared::new(sender),
        watching: Watching::default(),
        metering: Metering::default(),
        report: RunFile {
            pid: std::process::id(),
            node: Some(node),
            publishes,
            store,
            backend: Some(backend),
            settings,
            ..RunFile::default()
        },
        written: None,
        adopting: Adopting::new(gave_way),
        gave_way,
        instance,
        instance_written: None,
        state,
        _listener: listener,
        _lock: lock,
    };
    agent.serve_metrics();
    agent.run(&events)
}

/// The private key. Where this node publishes itself, a key belongs to the name that it was published under: a machine
/// that has another name now, such as a copy of another one, gets a key of its own.
fn key_of_this_name(state: &StateDir, config: &Config) -> anyhow::Result<PrivateKey> {
    let path = &config.private_key_file;
    let name = &config.settings.node;
    let publishes = !matches!(config.membership, Source::File(_));
    if let Some(before) = state.identity()?.filter(|before| publishes && before.node != *name)
        && let Some(key) = key_file::read(path)?
        && key.public_key() == before.public_key
    {
        let aside = key_file::set_aside(path)?;
        tracing::warn!(
            "this node is called {name} now, and its key was published under the name {}: it gets a new key, and the \
             old one is kept as {}",
            before.node,
            aside.display()
        );
    }
    Ok(key_file::read_or_create(path)?)
}

fn lock(state: &StateDir) -> anyhow::Result<AgentLock> {
    let directory = state.path().display();
    match state.lock(LOCK_PATIENCE).with_context(|| format!("cannot lock {directory}/agent.lock"))? {
        Some(lock) => Ok(lock),
        None => bail!(
            "another agent is running on this node (it holds the lock in {directory}); stop it first, for instance \
             with `systemctl stop wireloom`, or take over from it with `wireloom agent --take-over`"
        ),
    }
}

/// Settles which table is ours if `agent.toml` leaves that to the agent: the one that was recorded, and otherwise one
/// that nobody uses.
pub(super) fn settle_table(state: &StateDir, config: &mut Config) -> anyhow::Result<()> {
    if !config.table_is_auto {
        return Ok(());
    }
    let mut kernel = Linux::open(&config.settings.interface, config.settings.table, state.clone())?;
    if let Some(before) = state.programmed()? {
        // One that a number in agent.toml named, or that is somebody else's by now, is kept only while it is in use.
        let stays = !is_gone(state, &before)?
            || (PROPOSALS.contains(&before.table()) && kernel.is_free_table(before.table())?);
        if stays {
            config.settings.table = before.table();
            return Ok(());
        }
    }
    let free = kernel.free_table()?.with_context(|| {
        let (first, last) = PROPOSALS.into_inner();
        format!("every table from {first} to {last} is in use; set [routing] table to a number")
    })?;
    tracing::info!("nobody uses table {free}, so it is ours from now on");
    config.settings.table = free;
    Ok(())
}

/// Records what is about to be programmed. What an agent with other settings left behind must be removed first.
pub(super) fn record(state: &StateDir, config: &Config) -> anyhow::Result<()> {
    let Some(wanted) = check_recorded(state, config)? else { return Ok(()) };
    let path = state.path().display();
    state.set_programmed(&wanted).with_context(|| format!("cannot use the state directory {path}"))
}

/// What is to be recorded, unless it is recorded already.
pub(super) fn check_recorded(state: &StateDir, config: &Config) -> anyhow::Result<Option<Programmed>> {
    let settings = &config.settings;
    let wanted = Programmed::new(settings.interface.clone(), settings.table).map_err(anyhow::Error::msg)?;
    match state.programmed()? {
        Some(before) if before == wanted => Ok(None),
        Some(before) if !is_gone(state, &before)? => bail!(
            "agent.toml asks for interface {} and table {}, but interface {} and table {} are still programmed; \
             run `wireloom down` first",
            wanted.interface(),
            wanted.table(),
            before.interface(),
            before.table()
        ),
        _ => Ok(Some(wanted)),
    }
}

/// Whether nothing is left of what was recorded: it never came to be, or a reboot removed it.
fn is_gone(state: &StateDir, programmed: &Programmed) -> anyhow::Result<bool> {
    holds_nothing(&mut Linux::open(programmed.interface(), programmed.table(), state.clone())?)
}

/// Whether nothing is in the kernel that is tied to our interface or routing table. Recorded sysctls are not, and their
/// record outlives a reboot. Neither is the guard: it is there even while everything else is refused, and it becomes
/// the next agent's, whatever interface and table that has.
pub(super) fn holds_nothing(kernel: &mut Linux) -> anyhow::Result<bool> {
    let left = teardown(&kernel.observe_for_removal()?);
    Ok(left.iter().all(|op| matches!(op, Op::Sysctl(_) | Op::Firewall(_))))
}
