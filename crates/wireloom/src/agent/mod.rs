//! The agent: one thread that receives events and brings the kernel to the desired state.
//!
//! ```text
//!  signals, agent.toml, membership, kernel ──Event──▶ Agent ──▶ Reconciler ──▶ kernel
//!  resolver, preshared key ──────────────────Event────┘ ├─────▶ log, run file (for `wireloom status`)
//!                                                       └─────▶ this node's own record, in the membership source
//! ```

mod adopting;
mod borrowing;
mod event;
mod holding;
mod instance;
mod key_watch;
mod metering;
mod orphans;
mod polling;
mod preshared;
mod probing;
mod proving;
mod publishing;
mod resolver;
mod resolving;
mod start;
mod telling;
mod watching;

use std::{
    iter,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::bail;
use wireloom_kernel::{
    Interest, Linux, Monitor,
    state::{AgentLock, StateDir},
};
use wireloom_membership::{
    Source,
    config_file::{ReadError, TomlFile},
};
use wireloom_plan::{cluster::Cluster, refusal::Refusal, removals::Removals, warning::Warning};
use wireloom_types::PublicKey;

use self::{
    adopting::Adopting,
    borrowing::Borrowing,
    event::Event,
    holding::Holding,
    instance::Listener,
    key_watch::KeyWatch,
    metering::Metering,
    orphans::Orphans,
    polling::{Polling, is_remarkable},
    preshared::Preshared,
    probing::Probing,
    proving::Proving,
    publishing::Publishing,
    resolving::Resolving,
    watching::Watching,
};
pub(crate) use self::{
    instance::remove_socket,
    start::{Asked, run},
};
use crate::{
    config::Config,
    instance_file::{Instance, InstanceFile},
    key_file,
    reconcile::{Reconciler, Trouble},
    run_file::{RunFile, unix_time},
};

/// How often the kernel is observed even without a notification.
const RESYNC: Duration = Duration::from_secs(30);

/// The least time between two passes that the kernel's notifications cause, however many there are; on the average of
/// two, because one repair may make the kernel announce what we did.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The least time between two warnings in the log that our rules are deleted again and again.
const REMOVALS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How long after a failed pass the next one runs. It doubles with every further failure, up to [`RESYNC`].
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// What an error in `agent.toml` means.
const SETTINGS_STAY: &str = "the previous settings stay in force";

/// Why there is no plan before the store has this node's record.
const AWAITS_RECORD: &str =
    "the store does not show this node's record yet; nothing is programmed until it does";

/// The state of the agent's one thread.
struct Agent {
    /// The last `agent.toml` that could be read.
    file: TomlFile,
    /// There has been an `agent.toml` since the start. Until then, its absence is no mistake.
    has_file: bool,
    /// Why `agent.toml` cannot be read now.
    unread: Option<String>,
    config: Config,
    /// The name of this node where `agent.toml` says none, if the one who started the agent did.
    named: Option<String>,
    reconciler: Reconciler<Linux>,
    monitor: Monitor,
    interest: Interest,
    /// When the next pass is due.
    due: Instant,
    last_pass: Option<Instant>,
    /// When the pass before the last one ended.
    pass_before: Option<Instant>,
    /// How long to wait after the next failed pass.
    retry: Duration,
    /// When the agent started: what happens is dated from it.
    started: Instant,
    removals: Removals,
    holding: Holding,
    proving: Proving,
    probing: Probing,
    publishing: Publishing,
    borrowing: Borrowing,
    polling: Polling,
    orphans: Orphans,
    key_watch: KeyWatch,
    resolving: Resolving,
    preshared: Preshared,
    watching: Watching,
    metering: Metering,
    /// When the log last said that our rules are deleted again and again.
    removals_logged: Option<Instant>,
    /// What `wireloom status` should know.
    report: RunFile,
    /// What the run file says now.
    written: Option<RunFile>,
    adopting: Adopting,
    instance: Instance,
    /// What the instance's file says now.
    instance_written: Option<InstanceFile>,
    /// This instance has let another one serve before.
    gave_way: bool,
    state: StateDir,
    _listener: Option<Listener>,
    _lock: AgentLock,
}

impl Agent {
    /// Receives events until one says to stop. All events that are waiting are taken before the next pass.
    fn run(mut self, events: &Receiver<Event>) -> anyhow::Result<()> {
        loop {
            match events.recv_timeout(self.wakes_at().saturating_duration_since(Instant::now())) {
                Ok(first) => {
                    for event in iter::once(first).chain(events.try_iter()) {
                        if let Event::Stop = event {
                            // Rules, routes and the device stay as they are, so packets flow on.
                            self.record_mesh();
                            tracing::info!("stopping; the data path stays up (`wireloom down` removes it)");
                            return Ok(());
                        }
                        if let Event::Asked(asker) = event {
                            self.give_way(asker)?;
                            continue;
                        }
                        self.handle(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= self.due => {
                    self.reconciler.distrust_kernel();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("every source of events has ended"),
            }
            self.resolve();
            self.answer();
            self.let_go();
            self.poll();
            if std::process::id() == 1 {
                self.orphans.look(Instant::now());
            }
            if self.adopting.due().is_some_and(|due| Instant::now() >= due) {
                self.adopt_device();
            }
            if Instant::now() >= self.due {
                self.pass();
            }
            self.prove();
            self.watch();
            self.probe();
            self.publish();
            if self.holding.is_to_record() {
                self.record_mesh();
            }
            self.meter();
            self.write_report();
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Membership(wireloom_membership::Event::Snapshot(cluster)) => {
                let size = |mesh: &Cluster| (mesh.nodes.len(), mesh.pools.len());
                let (nodes, pools) = size(&cluster);
                // A store tells every change of every node.
                if !self.publishing.is_on() || self.proving.cluster().map(size) != Some((nodes, pools)) {
                    tracing::info!("the mesh has {}", holding::size(&cluster));
                }
                self.obey(cluster);
                if self.report.settings_error.is_some() {
                    // The settings may name a node that is in this mesh.
                    self.reload();
                }
            }
            Event::Membership(wireloom_membership::Event::Problem(error)) => self.keep_mesh(error),
            Event::Membership(wireloom_membership::Event::LeftOut(complaints)) => {
                self.take_complaints(complaints);
            }
            Event::Membership(wireloom_membership::Event::Local(local)) => self.take_local(local),
            Event::Membership(wireloom_membership::Event::OwnRecord { is_as_published }) => {
                self.publishing.is_as_published = is_as_published;
            }
            Event::Kernel => {
                self.publishing.note_change();
                self.borrowing.note_change();
                self.reconciler.distrust_kernel();
                let earliest = self.pass_before.map_or(now, |before| now.max(before + 2 * MIN_INTERVAL));
                self.due = self.due.min(earliest);
            }
            Event::Settings(Ok(file)) => {
                (self.file, self.has_file, self.unread) = (file, true, None);
                self.reload();
            }
            // Whoever writes a new file may remove the old one first, so that is no reason to take the defaults.
            Event::Settings(Err(error)) if self.has_file || !error.is_absent() => {
                self.unread = Some(log_unread(&error, SETTINGS_STAY));
                self.report.settings_error.clone_from(&self.unread);
            }
            Event::Settings(Err(_)) => {
                self.unread = None;
                self.reload();
            }
            Event::Key => self.take_key(),
            Event::PresharedKey => self.read_preshared_key(),
            Event::Resolved(found) => self.take_answer(found),
            Event::Reread(read) => {
                self.publishing.following().reread();
                self.holding.asked = Some(read);
            }
            Event::Asked(_) | Event::Stop => {}
        }
    }

    /// Goes on with the last mesh, because there is no other, and reports why.
    fn keep_mesh(&mut self, error: wireloom_membership::Error) {
        let consequence = match self.reconciler.cluster() {
            Some(_) => "the previous mesh stays in force",
            None => "nothing is programmed until this is fixed",
        };
        self.holding.is_in_trouble = true;
        self.report.membership_error = Some(match error {
            wireloom_membership::Error::Read(error) => log_unread(&error, consequence),
            error => log_error(&error.to_string(), consequence),
        });
    }

    /// Takes the settings of the last `agent.toml`, and reports why that is impossible.
    fn reload(&mut self) {
        let outcome = self.try_reload();
        let error = outcome.err().map(|error| log_error(&format!("{error:#}"), SETTINGS_STAY));
        self.report.settings_error = error.or_else(|| self.unread.clone());
    }

    /// Takes the settings of the last `agent.toml`, and reads the private key again. On an error, nothing changes.
    fn try_reload(&mut self) -> anyhow::Result<()> {
        let mut config = Config::from_file(&self.file, self.named.as_deref())?;
        start::settle_table(&self.state, &mut config)?;
        let (old, new) = (&self.config.settings, &config.settings);
        if new.node != old.node && self.publishing.is_on() {
            bail!(
                "the name of a node that publishes its own record cannot change while the agent runs; run `wireloom \
                 leave` under the old name first, and then restart the agent"
            );
        }
        if new.interface == old.interface && is_same_store(&config.membership, &self.config.membership) {
            bail!(
                "how the store of [membership] is reached changes only when the agent is restarted, for instance with \
                 `systemctl restart wireloom`; what is programmed stays up meanwhile"
            );
        }
        if new.interface != old.interface || config.membership != self.config.membership {
            bail!(
                "[wireguard] interface and [membership] cannot change while the agent runs; stop it, run `wireloom \
                 down`, and start it again"
            );
        }
        let is_there = |name| self.reconciler.cluster().is_none_or(|mesh| mesh.nodes.contains_key(name));
        if new.node != old.node && !is_there(&new.node) {
            bail!(
                "agent.toml calls this node `{}`, and the mesh has no node of that name; write its name in the mesh",
                new.node
            );
        }
        let Some(key) = key_file::read(&config.private_key_file)? else {
            bail!(
                "the private key {} is gone; put it back, or restart the agent to make a new one",
                config.private_key_file.display()
            );
        };
        let public_key = key.public_key();
        if config != self.config {
            self.report.backend = Some(choose_backend(self.reconciler.kernel_mut(), &config)?);
        }
        // Last of what can fail: from then on the kernel and the record are about the new table.
        if config.settings.table != self.config.settings.table {
            self.move_to_table(&config)?;
        }
        self.key_watch.set_path(config.private_key_file.clone());
        self.report.key_error = None;
        let kernel = self.reconciler.kernel_mut();
        kernel.set_private_key(key);
        kernel.set_host_mode(config.settings.encrypt_host_traffic);
        if config != self.config || public_key != self.reconciler.public_key() {
            tracing::info!("the settings changed");
            config.warnings.difference(&self.config.warnings).for_each(|warning| tracing::warn!("{warning}"));
            self.proving.set_identity(&config.settings.node, public_key);
            self.reconciler.set_settings(config.settings.clone(), public_key);
            self.config = config;
            self.serve_metrics();
        }
        self.report.node = Some(self.config.settings.node.clone());
        self.report.settings = Some(self.file.text().to_owned());
        // This also finds changes that the kernel does not announce, such as a peer that somebody removed.
        self.reconciler.distrust_kernel();
        self.due = Instant::now();
        Ok(())
    }

    /// Takes the private key that is in its file now, and reports why that is impossible.
    fn take_key(&mut self) {
        let path = &self.config.private_key_file;
        let error = match key_file::read(path) {
            Ok(Some(key)) => {
                let public_key = key.public_key();
                if public_key != self.reconciler.public_key() {
                    tracing::info!(
                        "the private key in {} is a new one; its public key is {public_key}",
                        path.display()
                    );
                    self.reconciler.kernel_mut().set_private_key(key);
                    let settings = self.config.settings.clone();
                    self.proving.set_identity(&settings.node, public_key);
                    self.reconciler.set_settings(settings, public_key);
                    self.due = Instant::now();
                }
                None
            }
            Ok(None) => Some(format!("the private key {} is gone; put it back", path.display())),
            Err(error) => Some(error.to_string()),
        };
        let error = error.map(|error| format!("{error}; the previous key stays in force"));
        if let Some(text) = error.as_ref().filter(|_| error != self.report.key_error) {
            tracing::error!("{text}");
        }
        self.report.key_error = error;
    }

    /// Changes our table, as an operator does whose first choice belonged to another program.
    fn move_to_table(&mut self, config: &Config) -> anyhow::Result<()> {
        let kernel = self.reconciler.kernel_mut();
        if !start::holds_nothing(kernel)? {
            bail!(
                "[routing] table cannot change once something is programmed; stop the agent, run `wireloom down`, and \
                 start it again"
            );
        }
        start::record(&self.state, config)?;
        kernel.set_table(config.settings.table);
        self.interest.table = config.settings.table;
        self.monitor.set_interest(self.interest.clone());
        Ok(())
    }

    /// Brings the kernel to the desired state once, logs how that went, and decides when the next pass is due.
    fn pass(&mut self) {
        let warned = self.reconciler.warnings().clone();
        let begun = Instant::now();
        if let Err(error) = self.reconciler.kernel_mut().finish_creation() {
            tracing::warn!("{error}");
        }
        self.end_silent_device();
        self.adopt_device();
        let outcome = self.reconciler.pass();
        self.count_pass(&outcome, begun);
        let now = Instant::now();
        self.pass_before = self.last_pass.replace(now);
        self.report.last_pass = Some(unix_time());
        self.report.configured_endpoints = self.reconciler.kernel_mut().configured_endpoints();
        for warning in self.reconciler.warnings().difference(&warned) {
            tracing::warn!("{warning}");
        }
        self.count_removals(now);
        match outcome {
            Ok(changes) => {
                if changes > 0 {
                    tracing::info!("done: {changes} changes in {} ms", (now - begun).as_millis());
                }
                // To wait for the first record is no failure.
                if self.report.trouble.take().is_some_and(|trouble| trouble != AWAITS_RECORD) {
                    tracing::info!("recovered: the kernel is as desired again");
                }
                self.retry = FIRST_RETRY;
                self.due = now + RESYNC;
            }
            // It answers in a moment, or a poll finds that it does not.
            Err(Trouble::Silent(silence)) if !is_remarkable(silence) => {
                self.await_answer(silence);
                self.due = now + RESYNC;
            }
            Err(Trouble::Refused(Refusal::NodeMissing { .. })) if self.publishing.is_on() => {
                if self.report.trouble.as_deref() != Some(AWAITS_RECORD) {
                    tracing::info!("{AWAITS_RECORD}");
                }
                self.report.trouble = Some(AWAITS_RECORD.to_owned());
                self.due = now + RESYNC;
            }
            Err(trouble) => {
                if let Trouble::Silent(silence) = trouble {
                    self.await_answer(silence);
                }
                let text = trouble.to_string();
                if self.report.trouble.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                self.report.trouble = Some(text);
                self.due = now + if trouble.retry_can_help() { self.retry } else { RESYNC };
                self.retry = (self.retry * 2).min(RESYNC);
            }
        }
        self.update_interest();
    }

    /// Counts how often other programs delete our rules, and reports it.
    fn count_removals(&mut self, now: Instant) {
        let since_start = now - self.started;
        let deleted = self.reconciler.rules_were_deleted();
        if deleted {
            tracing::info!("another program deleted rules of ours");
            self.removals.note(since_start);
        }
        self.report.rules_deleted = self.removals.recurrence(since_start);
        let quiet = self.removals_logged.is_none_or(|logged| now - logged >= REMOVALS_LOG_INTERVAL);
        if let Some(recurrence) = self.report.rules_deleted.filter(|_| deleted && quiet) {
            let table = self.config.settings.table;
            tracing::warn!("{}", Warning::RulesDeleted { table, recurrence });
            self.removals_logged = Some(now);
        }
    }

    /// Tells the monitor which interfaces matter now.
    fn update_interest(&mut self) {
        let Some(observed) = self.reconciler.mirror() else { return };
        if !(observed.outward.keys().eq(&self.interest.outward)
            && observed.underlays.keys().eq(&self.interest.underlays))
        {
            self.interest.outward = observed.outward.keys().cloned().collect();
            self.interest.underlays = observed.underlays.keys().cloned().collect();
            self.monitor.set_interest(self.interest.clone());
        }
    }

    /// Writes the run file and the instance's own when they are out of date.
    fn write_report(&mut self) {
        self.write_instance();
        if self.written.as_ref() == Some(&self.report) {
            return;
        }
        match self.report.write(&self.config.settings.interface) {
            Ok(()) => self.written = Some(self.report.clone()),
            Err(error) => {
                tracing::warn!(
                    "cannot write the run file, so `wireloom status` does not show this agent: {error}"
                );
            }
        }
    }
}

/// Whether two sources are the same mesh in the same kind of store, reached in different ways.
fn is_same_store(new: &Source, old: &Source) -> bool {
    match (new, old) {
        (Source::Etcd(new), Source::Etcd(old)) => new != old && new.mesh == old.mesh,
        (Source::Kubernetes(new), Source::Kubernetes(old)) => new != old,
        _ => false,
    }
}

/// What this node's times are shifted by, so that not all nodes do the same thing at once: every node has another key.
fn seed(own_key: PublicKey) -> u64 {
    own_key.as_bytes().iter().fold(0, |seed, byte| seed.rotate_left(8) ^ u64::from(*byte))
}

/// Logs that a file cannot be read and what follows, and returns it.
fn log_unread(error: &ReadError, consequence: &str) -> String {
    if !error.is_unfinished() {
        return log_error(&error.to_string(), consequence);
    }
    let text = format!("{error}; {consequence}");
    tracing::warn!("{text}");
    text
}

/// Logs an error and what follows, and returns it.
fn log_error(error: &str, consequence: &str) -> String {
    let text = format!("{error}; {consequence}");
    tracing::error!("{text}");
    text
}

/// Chooses which WireGuard carries the packets, and returns which and why, in words.
fn choose_backend(kernel: &mut Linux, config: &Config) -> Result<String, wireloom_kernel::Error> {
    let choice = kernel.choose_backend(config.backend, &config.settings)?.to_string();
    tracing::info!("the back end is {choice}");
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use wireloom_membership::etcd;

    use super::*;

    #[test]
    fn another_endpoint_of_a_store_is_not_another_store() {
        let etcd = |endpoint: &str, mesh: &str| {
            Source::Etcd(Box::new(etcd::Settings {
                endpoints: vec![endpoint.to_owned()],
                mesh: mesh.to_owned(),
                ca_file: None,
                cert_file: None,
                key_file: None,
                username: None,
                password_file: None,
            }))
        };
        let file = |path: &str| Source::File(path.into());
        assert!(is_same_store(&etcd("https://b:2379", "prod"), &etcd("https://a:2379", "prod")));
        assert!(
            !is_same_store(&etcd("https://a:2379", "prod"), &etcd("https://a:2379", "prod")),
            "no change"
        );
        assert!(!is_same_store(&etcd("https://a:2379", "test"), &etcd("https://a:2379", "prod")));
        assert!(!is_same_store(&file("/b"), &file("/a")));
        assert!(!is_same_store(&file("/b"), &etcd("https://a:2379", "prod")));
    }
}
