//! Writes what the agent wrote down as Prometheus reads it. docs/metrics.md lists what each metric means.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{self, DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use wireloom_kernel::Backend;

use super::{
    Board, Snapshot,
    snapshot::{Device, Judged, Membership, Peer, Traffic, Warnings},
};
use crate::run_file::monotonic_time;

/// The format of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own, version 0.0.4.
    Text,
    OpenMetrics,
}

impl Format {
    /// The best one that a scraper takes, by its `Accept` header.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => encoding::prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// How old what the device said may be. It is read every 4.5 s at least, while it answers.
const DEVICE_AGE_MAX: Duration = Duration::from_secs(15);

/// Everything that a scrape delivers.
pub(super) struct Scrape(Registry);

impl Scrape {
    pub(super) fn of(board: &Arc<Board>) -> Self {
        let mut registry = Registry::default();
        board.timing.register(&mut registry);
        registry.register_collector(Box::new(Written(Arc::clone(board))));
        Self(registry)
    }

    pub(super) fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        match format {
            Format::Text => encoding::prometheus_text::encode(&mut text, &self.0)?,
            Format::OpenMetrics => encoding::text::encode(&mut text, &self.0)?,
        }
        Ok(text)
    }
}

/// What the agent wrote down.
#[derive(Debug)]
struct Written(Arc<Board>);

impl Collector for Written {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.0.snapshot();
        let ready = self.0.pulse().ready(monotonic_time().unwrap_or_default());
        Writer(encoder).all(&snapshot, ready.is_ok(), Instant::now())
    }
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// One metric. Without samples, nothing.
    fn metric<'l, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, M)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        let Some((_, first)) = samples.peek() else { return Ok(()) };
        let mut encoder = self.0.encode_descriptor(name, help, None, first.metric_type())?;
        for (labels, value) in samples {
            value.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A counter; `_total` is appended to its name.
    fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.metric(name, help, samples)
    }

    fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.metric(name, help, samples)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Into<Option<u64>>) -> fmt::Result {
        self.gauges(name, help, value.into().map(|value| (Vec::new(), value)))
    }

    fn all(mut self, snapshot: &Snapshot, ready: bool, now: Instant) -> fmt::Result {
        let backend = match snapshot.backend {
            Some(Backend::Kernel) => "kernel",
            Some(Backend::Userspace) => "userspace",
            None => "none",
        };
        let build = vec![("version", env!("CARGO_PKG_VERSION")), ("backend", backend)];
        self.gauges("wireloom_build_info", "This version, and what carries the packets", [(build, 1)])?;
        self.gauge("wireloom_ready", "Whether the kernel is as planned", u64::from(ready))?;
        if let Some(judged) = &snapshot.judged {
            self.verdict(judged)?;
        }
        self.agent(snapshot)?;
        self.membership(&snapshot.membership, snapshot.mesh, now)?;
        self.device(&snapshot.device, &snapshot.interface, now)?;
        self.refused(snapshot)
    }

    fn verdict(&mut self, judged: &Judged) -> fmt::Result {
        let help = "Traffic between workloads is encrypted with every node (2), with some (1), with none (0)";
        self.gauge("wireloom_encrypting", help, u64::from(judged.encrypting))?;
        let states = judged.states.iter().map(|(state, count)| (vec![("state", *state)], *count));
        self.gauges("wireloom_peers", "Other nodes by state", states)?;
        let traffic = judged.traffic.iter().map(|(fate, count)| (vec![("traffic", *fate)], *count));
        self.gauges("wireloom_nodes", "Other nodes by what becomes of traffic with their workloads", traffic)
    }

    fn agent(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let found = snapshot.judged.iter().flat_map(|judged| &judged.findings);
        let mut warnings = Warnings::new();
        for ((severity, kind), count) in snapshot.warnings.iter().chain(found) {
            *warnings.entry((*severity, kind.clone())).or_default() += count;
        }
        let warnings = warnings.iter().map(|((severity, kind), count)| {
            (vec![("severity", severity.name()), ("kind", kind.as_str())], *count)
        });
        self.gauges("wireloom_warnings", "What `wireloom status` warns of, by kind", warnings)?;
        let troubles = snapshot.troubles.iter().map(|(what, is)| (vec![("what", *what)], u64::from(*is)));
        self.gauges("wireloom_errors", "Whether the agent fails at this now", troubles)?;

        let counts = &snapshot.counts;
        let passes = [("reached", counts.passes), ("failed", counts.failed_passes)];
        let passes = passes.map(|(outcome, passes)| (vec![("outcome", outcome)], passes));
        self.counters("wireloom_passes", "Passes over the kernel", passes)?;
        for (name, help, value) in [
            ("wireloom_changes", "Changes that the agent made in the kernel", counts.changes),
            ("wireloom_repairs", "Changes that undid somebody else's", counts.repairs),
            ("wireloom_rules_deleted", "Times that another program deleted our rules", counts.rules_deleted),
        ] {
            self.counters(name, help, [(Vec::new(), value)])?;
        }
        Ok(())
    }

    fn membership(
        &mut self,
        membership: &Membership,
        mesh: Option<(usize, usize)>,
        now: Instant,
    ) -> fmt::Result {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.gauge("wireloom_mesh_nodes", "Nodes of the mesh in force", mesh.map(|mesh| count(mesh.0)))?;
        self.gauge("wireloom_mesh_pools", "Pools of the mesh in force", mesh.map(|mesh| count(mesh.1)))?;
        let age = membership.heard.map(|heard| now.saturating_duration_since(heard).as_secs_f64());
        let help = "Time since the store of the membership last said something";
        let age = age.map(|age| (Vec::new(), ConstGauge::new(age)));
        self.metric("wireloom_membership_age_seconds", help, age)?;
        let help = "Records, or parts of them, that are left out of the mesh";
        self.gauge("wireloom_left_out_records", help, membership.left_out)?;
        self.gauge("wireloom_held_removals", "Nodes whose removal is held back", membership.held)?;
        let Some((errors, is_published)) = membership.store else { return Ok(()) };
        self.counters("wireloom_store_errors", "Requests to the store that failed", [(Vec::new(), errors)])?;
        self.gauge(
            "wireloom_record_published",
            "Whether the store has this node's record",
            is_published.map(u64::from),
        )
    }

    fn device(&mut self, device: &Device, interface: &str, now: Instant) -> fmt::Result {
        let answers = device.answers.map(u64::from);
        self.gauge("wireloom_device_answers", "Whether the WireGuard device answers", answers)?;
        if device.at.is_none_or(|at| now.saturating_duration_since(at) > DEVICE_AGE_MAX) {
            return Ok(());
        }
        let drops = device.drops.iter().flatten();
        let drops = drops.map(|(reason, packets)| (vec![("reason", reason.as_str())], *packets));
        self.counters("wireloom_device_drops", "Packets that the device dropped", drops)?;
        match &device.traffic {
            Traffic::Peers(peers) => self.peers(peers, interface),
            Traffic::Sums { sent, received } => {
                let sum = |bytes: &u64| [(vec![("interface", interface)], *bytes)];
                self.counters(SENT.0, SENT.1, sum(sent))?;
                self.counters(RECEIVED.0, RECEIVED.1, sum(received))
            }
        }
    }

    fn peers(&mut self, peers: &[Peer], interface: &str) -> fmt::Result {
        let keys: Vec<String> = peers.iter().map(|peer| peer.public_key.to_string()).collect();
        let samples = |value: fn(&Peer) -> u64| {
            peers.iter().zip(&keys).map(move |(peer, key)| {
                let mut labels = vec![("interface", interface), ("public_key", key.as_str())];
                labels.extend(peer.name.as_deref().map(|name| ("friendly_name", name)));
                (labels, value(peer))
            })
        };
        self.counters(SENT.0, SENT.1, samples(|peer| peer.sent))?;
        self.counters(RECEIVED.0, RECEIVED.1, samples(|peer| peer.received))?;
        let help = "When the last handshake with the peer completed, in seconds since 1970";
        self.gauges("wireguard_latest_handshake_seconds", help, samples(|peer| peer.handshake))
    }

    fn refused(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let refused = snapshot.refused.iter().map(|((direction, reason, node), packets)| {
            let mut labels = vec![("direction", *direction), ("reason", *reason)];
            labels.extend(node.as_deref().map(|node| ("peer", node)));
            (labels, *packets)
        });
        self.counters(
            "wireloom_refused_packets",
            "Packets that the guard or the source check refused",
            refused,
        )
    }
}

/// The names and meanings of prometheus_wireguard_exporter, which dashboards read.
const SENT: (&str, &str) = ("wireguard_sent_bytes", "Bytes sent to the peer");
const RECEIVED: (&str, &str) = ("wireguard_received_bytes", "Bytes received from the peer");
