//! Watches what only time shows: samples the device, logs what is wrong when it begins and when it is over, and reports
//! what `wireloom status` cannot see by itself.

use std::{
    collections::{BTreeMap, HashMap},
    mem::Discriminant,
    net::IpAddr,
    time::{Duration, Instant},
};

use wireloom_plan::{
    cluster::Cluster,
    health::{AgentFacts, DeviceFacts, Facts, Finding, Sample, Trends, examine},
    planner::Plan,
    warning::Severity,
};

use super::{Agent, is_remarkable, telling};
use crate::{metrics::Judged, run_file::unix_time};

/// How often the whole machine is judged, which takes some milliseconds with thousands of nodes. It is judged at once
/// when a sample shows something new.
const EXAMINE: Duration = Duration::from_secs(10);

/// The least time between two writings of the run file because of samples.
const REPORT: Duration = Duration::from_secs(5);

/// How many findings of one examination are logged one by one.
const LOGGED: usize = 20;

/// What the agent has seen of its device.
pub(super) struct Watching {
    trends: Trends,
    /// When the sample was taken that the trends saw last.
    sampled: Option<Instant>,
    next_examination: Instant,
    /// When the samples were last reported.
    reported: Instant,
    /// Packets that the device dropped, by the reason's name, as of the last sample.
    pub(super) drops: Option<BTreeMap<String, u64>>,
    /// What the last examination found, and when.
    pub(super) judged: Option<(Instant, Judged)>,
    /// What the log has said and is still so.
    found: HashMap<(Discriminant<Finding>, String), Finding>,
    /// What the membership source was told last.
    pub(super) told: Option<telling::State>,
}

impl Default for Watching {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            trends: Trends::default(),
            sampled: None,
            // What is wrong for a moment after a start only is not worth a line.
            next_examination: now + EXAMINE,
            reported: now,
            drops: None,
            judged: None,
            found: HashMap::new(),
            told: None,
        }
    }
}

impl Agent {
    /// Takes the last poll of the device, and judges the machine if it is time to.
    pub(super) fn watch(&mut self) {
        let now = Instant::now();
        if let Some((taken, device)) = self.polling.sample()
            && self.watching.sampled != Some(*taken)
        {
            self.watching.sampled = Some(*taken);
            let peers = device.facts();
            let drops = self.reconciler.kernel_mut().drops().unwrap_or_else(|error| {
                tracing::debug!("{error}");
                None
            });
            let sample = Sample { peers: &peers, drops: drops.as_ref() };
            let Watching { trends, next_examination, .. } = &mut self.watching;
            let before = trends.abnormal();
            trends.sample(self.proving.now(), &sample);
            if trends.abnormal() != before {
                *next_examination = now;
            }
            self.watching.drops = drops;
            self.report_trends(now);
        }
        if now >= self.watching.next_examination && self.polling.knows_device() {
            self.watching.next_examination = now + EXAMINE;
            self.examine();
        }
    }

    /// Puts the trends into the run file if they tell something new: at once when a silence begins or is over,
    /// otherwise not with every sample.
    fn report_trends(&mut self, now: Instant) {
        let trends = self.watching.trends.reported();
        let told = &self.report.trends;
        let is_new = !trends.unanswered.is_empty()
            || trends.unanswered != told.unanswered
            || trends.drops != told.drops;
        let is_urgent = trends.abnormal() != told.abnormal();
        if is_urgent || (is_new && now >= self.watching.reported + REPORT) {
            self.watching.reported = now;
            self.report.trends = trends;
        }
    }

    /// Judges this node, and logs what began to be wrong and what is over.
    fn examine(&mut self) {
        let settings = &self.config.settings;
        let sample = self.polling.sample();
        let peers = sample.map(|(_, device)| device.facts()).unwrap_or_default();
        let endpoints: Vec<IpAddr> = peers.values().filter_map(|peer| Some(peer.endpoint?.ip())).collect();
        let workloads = self.reconciler.cluster().map(Cluster::workloads).unwrap_or_default();
        let (machine, errors) = self.reconciler.kernel_mut().machine(settings, workloads, endpoints);
        errors.iter().for_each(|error| tracing::debug!("{error}"));
        let Some(observed) = self.reconciler.mirror() else { return };
        let now = Duration::from_secs(unix_time());
        // What is still to be done is logged when it fails.
        let plan = Plan { ops: Vec::new(), warnings: self.reconciler.warnings().clone() };
        let health = examine(&Facts {
            cluster: self.reconciler.cluster(),
            settings,
            accounts: &self.report.standing,
            observed,
            plan: Some(&plan),
            device: match (self.polling.silence(), sample) {
                (Some(silence), _) if is_remarkable(silence) => {
                    DeviceFacts::Silent { for_seconds: silence.lasted.as_secs() }
                }
                // Otherwise it is only late.
                (_, Some(_)) => DeviceFacts::Answers { peers: &peers, drops: None },
                (_, None) => DeviceFacts::Absent,
            },
            refused: &BTreeMap::new(),
            trends: Some(&self.watching.trends),
            machine: &machine,
            agent: AgentFacts { running: true, last_pass: Some(now), trouble: None },
            now,
        });
        self.watching.judged = Some((Instant::now(), Judged::of(&health)));
        let found = &mut self.watching.found;
        let before = std::mem::take(found);
        found.extend(health.findings.iter().map(|finding| (finding.subject(), finding.clone())));
        let begun = health.findings.iter().filter(|finding| !before.contains_key(&finding.subject()));
        log_some(begun, "are found", log);
        let over = before.iter().filter(|(subject, _)| !found.contains_key(*subject));
        log_some(over.map(|(_, finding)| finding), "are over", |finding| {
            tracing::info!("no longer so: {finding}");
        });
        self.tell(&health);
    }
}

fn log(finding: &Finding) {
    match finding.severity() {
        Severity::Error => tracing::error!("{finding}"),
        Severity::Warning => tracing::warn!("{finding}"),
        Severity::Info => tracing::info!("{finding}"),
    }
}

/// Logs the first of many, and how many there are.
fn log_some<'a>(findings: impl Iterator<Item = &'a Finding>, what: &str, log: impl Fn(&Finding)) {
    let mut more = 0_usize;
    for (place, finding) in findings.enumerate() {
        if place < LOGGED {
            log(finding);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        tracing::warn!("and {more} more {what} (`wireloom status` shows what is so)");
    }
}
