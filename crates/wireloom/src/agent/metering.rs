//! Writes down what monitoring reads: the pulse with each turn of the loop, the rest about once a second.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use wireloom_kernel::DeviceState;
use wireloom_plan::{cluster::Cluster, desired::Owners};
use wireloom_types::PublicKey;

use super::{Agent, is_remarkable};
use crate::{
    metrics::{
        Board, Counts, Device, Growth, Listen, Membership, NODES_MAX, Peer, Pulse, Refused, Server, Snapshot,
        Traffic, Warnings, tally,
    },
    reconcile::Trouble,
    run_file::{monotonic_time, unix_time},
};

/// The least time between two snapshots, however often the loop turns.
const INTERVAL: Duration = Duration::from_secs(1);

/// How old an examination may be. There is one every 10 s, while the kernel can be judged.
const JUDGED_AGE_MAX: Duration = Duration::from_secs(30);

/// What the agent counts for monitoring.
#[derive(Default)]
pub(super) struct Metering {
    board: Arc<Board>,
    server: Option<Server>,
    /// Where the server listens.
    listen: Listen,
    written: Option<Instant>,
    /// The pass after which the run file's pulse was renewed.
    passed: Option<Instant>,
    counts: Counts,
    sent: Sum,
    received: Sum,
    /// When the sample was taken that the sums saw last.
    sampled: Option<Instant>,
    refused: Refused,
    /// When the counters of the firewall were read that [`Self::refused`] saw last.
    counted: Option<Instant>,
}

/// What the counters of all peers have grown by since the agent started.
#[derive(Default)]
struct Sum {
    growth: Growth<PublicKey>,
    bytes: u64,
}

impl Sum {
    fn take<'a>(&mut self, counters: impl Iterator<Item = (&'a PublicKey, u64)>) {
        let Self { growth, bytes } = self;
        growth.take(counters, |_, more| *bytes += more);
    }
}

impl Agent {
    /// Serves metrics where the settings say.
    pub(super) fn serve_metrics(&mut self) {
        let listen = match Listen::from_environment() {
            Ok(listen) => listen.unwrap_or(self.config.metrics),
            Err(error) => {
                tracing::error!("{error}; what agent.toml says is taken instead");
                self.config.metrics
            }
        };
        if listen == self.metering.listen {
            return;
        }
        self.metering.listen = listen;
        let start = |address| Server::start(address, Arc::clone(&self.metering.board));
        self.metering.server = match listen.0.map(start).transpose() {
            Ok(server) => server,
            Err(error) => {
                tracing::error!("cannot serve metrics: {error}");
                None
            }
        };
    }

    /// Counts a pass that began then.
    pub(super) fn count_pass(&mut self, outcome: &Result<usize, Trouble>, begun: Instant) {
        let took = self.reconciler.kernel_mut().take_took();
        self.metering.board.timing.note(begun.elapsed(), took.observe, took.apply);
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let counts = &mut self.metering.counts;
        counts.repairs += count(self.reconciler.repairs());
        counts.rules_deleted += u64::from(self.reconciler.rules_were_deleted());
        match outcome {
            Ok(changes) => {
                counts.passes += 1;
                counts.changes += count(*changes);
            }
            // It is only late.
            Err(Trouble::Silent(silence)) if !is_remarkable(*silence) => {}
            Err(_) => counts.failed_passes += 1,
        }
    }

    /// Writes down that the loop turned, and what there is to see if that is due.
    pub(super) fn meter(&mut self) {
        let turned = monotonic_time().unwrap_or_default();
        let unready = self.unready();
        // The run file is written with each pass. With each turn would be too often.
        if self.report.pulse.turned == 0
            || self.report.pulse.unready != unready
            || self.last_pass != self.metering.passed
        {
            self.metering.passed = self.last_pass;
            self.report.pulse = Pulse { turned, unready: unready.clone() };
        }
        let heard = self.publishing.following().health().heard();
        self.report.note_heard(heard.map(|heard| unix_time().saturating_sub(heard.elapsed().as_secs())));
        self.metering.board.beat(Pulse { turned, unready });
        let now = Instant::now();
        let is_due = self.metering.written.is_none_or(|written| now >= written + INTERVAL);
        if self.metering.server.is_some() && is_due {
            self.metering.written = Some(now);
            self.count_traffic();
            self.count_refused();
            let snapshot = self.snapshot(now);
            self.metering.board.publish(snapshot);
        }
    }

    /// Why the kernel is not as planned; `None` when it is.
    fn unready(&self) -> Option<String> {
        let node = &self.config.settings.node;
        match (&self.report.trouble, self.reconciler.cluster()) {
            (Some(trouble), _) => Some(trouble.clone()),
            (None, None) => {
                let error = self.report.membership_error.as_ref();
                Some(error.map_or_else(|| "there is no mesh yet".to_owned(), Clone::clone))
            }
            (None, Some(mesh)) if !mesh.nodes.contains_key(node) => {
                Some(format!("the mesh has no node {node}"))
            }
            (None, Some(_)) if self.adopting.error.is_some() => self.adopting.error.clone(),
            (None, Some(_)) if self.reconciler.mirror().is_none() && self.metering.counts.passes == 0 => {
                Some("nothing is programmed yet".to_owned())
            }
            (None, Some(_)) => None,
        }
    }

    fn count_traffic(&mut self) {
        let Some((taken, device)) = self.polling.sample() else { return };
        if self.metering.sampled != Some(*taken) {
            self.metering.sampled = Some(*taken);
            self.metering.sent.take(device.peers.iter().map(|(key, peer)| (key, peer.sent)));
            self.metering.received.take(device.peers.iter().map(|(key, peer)| (key, peer.received)));
        }
    }

    fn count_refused(&mut self) {
        let counted = self.count_plaintext();
        if self.metering.counted == Some(counted) {
            return;
        }
        let (kernel, _) = self.reconciler.kernel_and_mirror();
        let (guard, sources) = (kernel.guard_counters().cloned(), kernel.refusals().cloned());
        let Some(cluster) = self.reconciler.cluster() else { return };
        let owners = Owners::of(cluster, &self.config.settings);
        self.metering.refused.take(guard.as_ref(), sources.as_ref(), &owners, cluster);
        self.metering.counted = Some(counted);
    }

    fn snapshot(&mut self, now: Instant) -> Snapshot {
        let backend = self.reconciler.kernel_mut().present_backend().ok().flatten();
        let cluster = self.reconciler.cluster();
        let nodes = cluster.iter().flat_map(|cluster| cluster.nodes.keys().map(String::as_str)).collect();
        let judged = self.watching.judged.as_ref();
        let report = &self.report;
        Snapshot {
            interface: self.config.settings.interface.clone(),
            backend,
            mesh: cluster.map(|cluster| (cluster.nodes.len(), cluster.pools.len())),
            judged: judged.filter(|(at, _)| now - *at <= JUDGED_AGE_MAX).map(|(_, judged)| judged.clone()),
            warnings: self.warnings_by_kind(),
            troubles: vec![
                ("membership", report.membership_error.is_some()),
                ("settings", report.settings_error.is_some()),
                ("key", report.key_error.is_some()),
                ("preshared_key", report.preshared_error.is_some()),
                ("proofs", report.proofs_error.is_some()),
            ],
            counts: self.metering.counts,
            device: self.device(cluster),
            refused: self.metering.refused.exported(&nodes),
            membership: self.membership(),
        }
    }

    fn membership(&self) -> Membership {
        let health = self.publishing.following().health();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Membership {
            // A store that has never answered is as old as the agent.
            heard: health.heard().or_else(|| self.publishing.is_on().then_some(self.started)),
            store: self.publishing.is_on().then(|| {
                let is_published = self.publishing.has_begun().then(|| health.is_published());
                (health.errors(), is_published)
            }),
            left_out: count(self.report.left_out.len()),
            held: self.report.held.as_ref().map_or(0, |held| count(held.nodes.len())),
        }
    }

    fn warnings_by_kind(&self) -> Warnings {
        let of_agent: Vec<_> = self.report.warnings(self.config.settings.table).collect();
        let warnings = self.reconciler.warnings().iter().chain(&self.config.warnings).chain(&of_agent);
        tally(warnings.map(|warning| (warning.severity(), warning)))
    }

    fn device(&self, cluster: Option<&Cluster>) -> Device {
        let sample = self.polling.sample();
        let is_silent = self.polling.silence().is_some_and(is_remarkable);
        Device {
            at: sample.map(|(at, _)| *at),
            answers: self.polling.knows_device().then(|| sample.is_some() && !is_silent),
            traffic: sample.map(|(_, device)| self.traffic(device, cluster)).unwrap_or_default(),
            drops: self.watching.drops.clone(),
        }
    }

    fn traffic(&self, device: &DeviceState, cluster: Option<&Cluster>) -> Traffic {
        let nodes = cluster.iter().flat_map(|cluster| &cluster.nodes);
        if device.peers.len() > NODES_MAX || cluster.is_some_and(|cluster| cluster.nodes.len() > NODES_MAX) {
            let Metering { sent, received, .. } = &self.metering;
            return Traffic::Sums { sent: sent.bytes, received: received.bytes };
        }
        let names: BTreeMap<PublicKey, &String> =
            nodes.filter_map(|(name, node)| Some((node.public_key?, name))).collect();
        let peers = device.peers.iter().map(|(key, peer)| Peer {
            public_key: *key,
            name: names.get(key).map(|name| (*name).clone()),
            sent: peer.sent,
            received: peer.received,
            handshake: peer.last_handshake.map_or(0, since_1970),
        });
        Traffic::Peers(peers.collect())
    }
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs()).unwrap_or_default()
}
