//! What is so on a node: each verdict and each finding, from a sound node in which one thing is made wrong.

mod findings;
mod properties;
mod verdicts;

use std::{collections::BTreeMap, time::Duration};

use wireloom_plan::{
    cluster::Cluster,
    health::{
        Action, AgentFacts, DeviceFacts, Facts, Finding, Forwarding, Health, Machine as Rest, PeerFacts,
        PeerHealth, PolicyRule, Sample, Trends, examine,
    },
    proofs::{Account, Because},
    routing::Rule,
};
use wireloom_types::PublicKey;

use crate::world::{Machine, key, net, proven, three_nodes};

const NOW: Duration = Duration::from_secs(1_700_000_000);

/// `RT_TABLE_MAIN`
const MAIN: u32 = 254;

fn ago(seconds: u64) -> Duration {
    NOW.checked_sub(Duration::from_secs(seconds)).unwrap()
}

/// Node a of three, on which everything is as it should be: both others are proven and in a session.
struct Scene {
    cluster: Option<Cluster>,
    machine: Machine,
    accounts: BTreeMap<String, Account>,
    peers: BTreeMap<PublicKey, PeerFacts>,
    answers: bool,
    silent_for: Option<u64>,
    trends: Trends,
    rest: Rest,
    running: bool,
    last_pass: Duration,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {}, |_| {})
    }

    /// The mesh and the machine are changed before the agent has programmed anything.
    fn with(mesh: impl Fn(&mut Cluster), change: impl Fn(&mut Machine)) -> Self {
        let mut cluster = three_nodes();
        mesh(&mut cluster);
        let mut machine = Machine::new("a", key(1), &cluster);
        change(&mut machine);
        machine.reconcile(&cluster);
        let session =
            PeerFacts { last_handshake: Some(ago(60)), received: 900, sent: 900, ..PeerFacts::default() };
        let on_device = &machine.kernel.device.as_ref().unwrap().peers;
        let peers =
            on_device.iter().map(|(key, peer)| (*key, PeerFacts { endpoint: peer.endpoint, ..session }));
        let routes = ["10.161.1.0/24", "10.161.0.0/16", "fd61:0:0:1::/64", "fd61::/48"].map(net);
        let proven = |name: &str| (name.to_owned(), Account::Proven { since: ago(900), ends: None });
        Self {
            peers: peers.collect(),
            rest: Rest {
                forwarding: Forwarding { v4: true, v6: true },
                tables: [(MAIN, routes.into())].into(),
                rules: machine.kernel.rules.iter().cloned().map(looks_up).collect(),
                ..Rest::default()
            },
            machine,
            cluster: Some(cluster),
            accounts: ["b", "c"].map(proven).into(),
            answers: true,
            silent_for: None,
            trends: Trends::default(),
            running: true,
            last_pass: ago(5),
        }
    }

    fn health(&self) -> Health {
        let cluster = self.cluster.as_ref();
        let plan = cluster.and_then(|mesh| self.machine.planner(mesh).plan(&self.machine.kernel).ok());
        examine(&Facts {
            cluster,
            settings: &self.machine.settings,
            accounts: &self.accounts,
            observed: &self.machine.kernel,
            plan: plan.as_ref(),
            device: match (self.answers, self.silent_for) {
                (true, _) => DeviceFacts::Answers { peers: &self.peers, drops: None },
                (false, Some(for_seconds)) => DeviceFacts::Silent { for_seconds },
                (false, None) => DeviceFacts::Absent,
            },
            refused: &BTreeMap::new(),
            trends: Some(&self.trends),
            machine: &self.rest,
            agent: AgentFacts { running: self.running, last_pass: Some(self.last_pass), trouble: None },
            now: NOW,
        })
    }

    fn verdict(&self) -> String {
        self.health().verdict.to_string()
    }

    fn peer(&self, name: &str) -> PeerHealth {
        self.health().peers.into_iter().find(|peer| peer.name == name).unwrap()
    }

    fn findings(&self) -> Vec<Finding> {
        self.health().findings
    }

    /// The only finding.
    fn finding(&self) -> Finding {
        let findings = self.findings();
        let [one] = &findings[..] else { panic!("{findings:?}") };
        one.clone()
    }

    fn unprove(&mut self, name: &str, because: Because) {
        self.accounts.insert(name.to_owned(), Account::Unproven { since: ago(40), because });
        let standings = self.accounts.iter().filter_map(|(name, account)| {
            let key = self.cluster.as_ref()?.nodes[name].public_key?;
            matches!(account, Account::Proven { .. }).then(|| (name.clone(), proven(key)))
        });
        self.machine.standings = Some(standings.collect());
        self.machine.reconcile(self.cluster.as_ref().unwrap());
    }

    /// Samples of a peer to which something was sent this long before the last one, and from which nothing came.
    fn send_in_vain(&mut self, peer: u8, seconds: u64) {
        // The agent's clock need not be that of the facts.
        for (now, sent) in [(4998, 500), (5000, 648), (5000 + seconds, 648)] {
            let peers = [(key(peer), PeerFacts { sent, ..PeerFacts::default() })].into();
            self.trends.sample(Duration::from_secs(now), &Sample { peers: &peers, drops: None });
        }
    }

    fn drop_packets(&mut self, reason: &str, packets: u64) {
        for (now, total) in [(5000, 70), (5002, 70 + packets)] {
            let drops = [(reason.to_owned(), total)].into();
            let sample = Sample { peers: &self.peers, drops: Some(&drops) };
            self.trends.sample(Duration::from_secs(now), &sample);
        }
    }
}

fn looks_up(rule: Rule) -> PolicyRule {
    PolicyRule { rule, action: Action::Lookup }
}
