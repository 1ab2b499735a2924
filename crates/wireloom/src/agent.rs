//! The agent: one thread that is told of events and brings the kernel to the desired state.

use std::{
    io, iter,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use wireloom_kernel::{
    Interest, Linux, Monitor,
    state::{AgentLock, LOCK_PATIENCE, Programmed, StateDir},
};
use wireloom_membership::config_file::watch;
use wireloom_plan::kernel::Observed;

use crate::{
    config::{Config, DEFAULT_PATH},
    key_file,
    reconcile::Reconciler,
    run_file::RunFile,
};

/// The kernel is looked at so often even when nothing is heard.
const RESYNC: Duration = Duration::from_secs(30);

/// Passes for the kernel's notifications keep this distance, whatever storm there is.
const DISTANCE: Duration = Duration::from_millis(100);

/// After a failed pass the next one waits this long, then twice as long each time, up to [`RESYNC`].
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// What the agent is told.
enum Event {
    Membership(wireloom_membership::Event),
    /// Something of ours may have been changed by somebody else.
    Kernel,
    /// `agent.toml` changed, or SIGHUP asks to read it again.
    Settings,
    /// SIGTERM or SIGINT.
    Stop,
}

/// The agent's one thread and all that it knows.
struct Agent {
    config_path: Option<PathBuf>,
    config: Config,
    reconciler: Reconciler<Linux>,
    monitor: Monitor,
    interest: Interest,
    /// When the next pass is due.
    due: Instant,
    last_pass: Option<Instant>,
    retry: Duration,
    told: RunFile,
    /// What the run file says already.
    written: Option<RunFile>,
    _lock: AgentLock,
}

/// Runs until SIGTERM or SIGINT, and leaves the data path up.
///
/// # Errors
/// What keeps the agent from starting: a mistake in `agent.toml`, an unusable key, another agent,
/// a foreign interface. Later trouble is reported, and tried again.
pub fn run(config_path: Option<PathBuf>) -> anyhow::Result<()> {
    // It is watched through its directory, which a bare file name does not tell.
    let config_path = config_path.map(std::path::absolute).transpose().context("cannot find agent.toml")?;
    let config = Config::load(config_path.as_deref())?;
    let state = StateDir::locate();
    let lock = lock(&state)?;
    claim(&state, &config)?;
    let key = key_file::read_or_create(&config.private_key_file)?;
    let public_key = key.public_key();
    tracing::info!("node {}, public key {public_key}", config.settings.node);
    let mut kernel = Linux::open(&config.settings.interface, config.settings.table, state)?;
    kernel.set_private_key(key);
    kernel.finish_creation()?;
    kernel.refuse_foreign_link()?;
    let backend = choose_backend(&mut kernel, &config)?;
    if let Some(before) = RunFile::read(&config.settings.interface) {
        kernel.remember_endpoints(&before.configured_endpoints);
    }
    let own_port = kernel.netlink_port();

    let (sender, events) = channel();
    tell_signals(sender.clone())?;
    let to_agent = sender.clone();
    config.membership.follow(move |event| {
        let _ = to_agent.send(Event::Membership(event));
    })?;
    tell_settings(config_path.as_deref(), sender.clone())?;
    let interest = Interest {
        interface: config.settings.interface.clone(),
        table: config.settings.table,
        own_port,
        ..Interest::default()
    };
    let to_agent = sender.clone();
    kernel.watch_nftables(move || {
        let _ = to_agent.send(Event::Kernel);
    })?;
    let monitor = Monitor::start(interest.clone(), move || {
        let _ = sender.send(Event::Kernel);
    })?;

    let agent = Agent {
        reconciler: Reconciler::new(kernel, config.settings.clone(), public_key),
        config_path,
        config,
        monitor,
        interest,
        due: Instant::now() + RESYNC,
        last_pass: None,
        retry: FIRST_RETRY,
        written: None,
        told: RunFile { pid: std::process::id(), backend: Some(backend), ..RunFile::default() },
        _lock: lock,
    };
    agent.run(&events)
}

/// Gives who carries the packets, and why, in words.
fn choose_backend(kernel: &mut Linux, config: &Config) -> Result<String, wireloom_kernel::Error> {
    let choice = kernel.choose_backend(config.backend, &config.settings)?.to_string();
    tracing::info!("the back end is {choice}");
    Ok(choice)
}

fn lock(state: &StateDir) -> anyhow::Result<AgentLock> {
    let directory = state.path().display();
    match state.lock(LOCK_PATIENCE).with_context(|| format!("cannot lock {directory}"))? {
        Some(lock) => Ok(lock),
        None => bail!("another agent runs on this node (it holds the lock in {directory})"),
    }
}

/// Records what is about to be programmed; what an agent with other settings left must go first.
fn claim(state: &StateDir, config: &Config) -> anyhow::Result<()> {
    let wanted = Programmed { interface: config.settings.interface.clone(), table: config.settings.table };
    let failed = || format!("cannot use the state directory {}", state.path().display());
    match state.programmed().with_context(failed)? {
        Some(before) if before != wanted => bail!(
            "agent.toml asks for interface {} and table {}, but {} and table {} are still programmed; \
             run `wireloom down` first",
            wanted.interface,
            wanted.table,
            before.interface,
            before.table
        ),
        Some(_) => Ok(()),
        None => state.set_programmed(&wanted).with_context(failed),
    }
}

fn tell_signals(sender: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Settings } else { Event::Stop };
            if sender.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

fn tell_settings(path: Option<&Path>, sender: Sender<Event>) -> io::Result<()> {
    watch(path.unwrap_or(Path::new(DEFAULT_PATH)).to_owned(), move || {
        let _ = sender.send(Event::Settings);
    })
}

impl Agent {
    fn run(mut self, events: &Receiver<Event>) -> anyhow::Result<()> {
        loop {
            match events.recv_timeout(self.due.saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    for event in iter::once(first).chain(events.try_iter()) {
                        if let Event::Stop = event {
                            // Rules, routes and the device stay as they are: packets flow on.
                            tracing::info!("stops; the data path stays up (`wireloom down` takes it away)");
                            return Ok(());
                        }
                        self.take(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.reconciler.distrust_kernel(),
                Err(RecvTimeoutError::Disconnected) => bail!("every source of events has ended"),
            }
            if Instant::now() >= self.due {
                self.pass();
            }
            self.tell();
        }
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Membership(wireloom_membership::Event::Snapshot(cluster)) => {
                tracing::info!(
                    "the mesh has {} nodes and {} pools",
                    cluster.nodes.len(),
                    cluster.pools.len()
                );
                self.told.membership_error = None;
                self.reconciler.set_cluster(cluster);
                self.due = now;
            }
            Event::Membership(wireloom_membership::Event::Problem(error)) => {
                let before = match self.reconciler.has_cluster() {
                    true => "the mesh of before stays in force",
                    false => "nothing is programmed until it is mended",
                };
                let error = format!("{error}; {before}");
                tracing::error!("{error}");
                self.told.membership_error = Some(error);
            }
            Event::Kernel => {
                self.reconciler.distrust_kernel();
                let earliest = self.last_pass.map_or(now, |last| now.max(last + DISTANCE));
                self.due = self.due.min(earliest);
            }
            Event::Settings => {
                let outcome = self.reload();
                self.told.settings_error = outcome.err().map(|error| {
                    let error = format!("{error:#}; the settings of before stay in force");
                    tracing::error!("{error}");
                    error
                });
            }
            Event::Stop => {}
        }
    }

    /// Reads `agent.toml` and the key again; both must be right, or all stays as it was.
    fn reload(&mut self) -> anyhow::Result<()> {
        let config = Config::load(self.config_path.as_deref())?;
        let (old, new) = (&self.config.settings, &config.settings);
        if (&new.interface, new.table) != (&old.interface, old.table)
            || config.membership != self.config.membership
        {
            bail!(
                "[wireguard] interface, [routing] table and [membership] path cannot change while the agent runs; \
                 stop it, run `wireloom down` and start it again"
            );
        }
        let Some(key) = key_file::read(&config.private_key_file)? else {
            bail!("the private key {} is gone", config.private_key_file.display());
        };
        let public_key = key.public_key();
        if config != self.config {
            self.told.backend = Some(choose_backend(self.reconciler.kernel_mut(), &config)?);
        }
        self.reconciler.kernel_mut().set_private_key(key);
        if config != self.config || public_key != self.reconciler.public_key() {
            tracing::info!("the settings changed");
            self.reconciler.set_settings(config.settings.clone(), public_key);
            self.config = config;
        }
        // What leaves no notification, such as a peer that somebody removed, is found now too.
        self.reconciler.distrust_kernel();
        self.due = Instant::now();
        Ok(())
    }

    fn pass(&mut self) {
        let warned = self.reconciler.warnings().clone();
        let begun = Instant::now();
        if let Err(error) = self.reconciler.kernel_mut().finish_creation() {
            tracing::warn!("{error}");
        }
        let outcome = self.reconciler.pass();
        let now = Instant::now();
        self.last_pass = Some(now);
        self.told.last_pass = Some(unix_time());
        self.told.configured_endpoints = self.reconciler.kernel_mut().configured_endpoints();
        for warning in self.reconciler.warnings().difference(&warned) {
            tracing::warn!("{warning}");
        }
        match outcome {
            Ok(changes) => {
                if changes > 0 {
                    tracing::info!("done: {changes} changes in {} ms", (now - begun).as_millis());
                }
                if self.told.trouble.take().is_some() {
                    tracing::info!("the trouble is over");
                }
                self.retry = FIRST_RETRY;
                self.due = now + RESYNC;
            }
            Err(trouble) => {
                let text = trouble.to_string();
                if self.told.trouble.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                self.told.trouble = Some(text);
                self.due = now + if trouble.retry_can_help() { self.retry } else { RESYNC };
                self.retry = (self.retry * 2).min(RESYNC);
            }
        }
        self.watch_what_matters();
    }

    fn watch_what_matters(&mut self) {
        let own = self.reconciler.own_addresses();
        let underlays = |observed: &Observed| observed.underlays.keys().cloned().collect();
        let underlays = self.reconciler.mirror().map_or_else(|| self.interest.underlays.clone(), underlays);
        if own != self.interest.own || underlays != self.interest.underlays {
            self.interest.own = own;
            self.interest.underlays = underlays;
            self.monitor.set_interest(self.interest.clone());
        }
    }

    fn tell(&mut self) {
        if self.written.as_ref() == Some(&self.told) {
            return;
        }
        match self.told.write(&self.config.settings.interface) {
            Ok(()) => self.written = Some(self.told.clone()),
            Err(error) => tracing::warn!("`wireloom status` cannot be told of this agent: {error}"),
        }
    }
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}
