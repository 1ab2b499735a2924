//! What is known about this node, as [`examine`](wireloom_plan::health::examine) takes it.

use std::{collections::BTreeMap, time::Duration};

use wireloom_kernel::DeviceState;
use wireloom_plan::{
    desired::Owners,
    health::{AgentFacts, DeviceFacts, Facts, PeerFacts, Refused},
    planner::Plan,
};
use wireloom_types::{LinkAddress, PublicKey};

use crate::{
    cli::situation::{InKernel, Situation},
    run_file::unix_time,
};

/// What is worked out from a situation before it can be judged.
pub(super) struct Known {
    peers: BTreeMap<PublicKey, PeerFacts>,
    /// What the firewall refused, by the node's name.
    refused: BTreeMap<String, Refused>,
}

impl Known {
    pub(super) fn new(situation: &Situation) -> Self {
        let device = situation.kernel.as_ref().and_then(|kernel| kernel.device.as_ref());
        Self { peers: device.map(DeviceState::facts).unwrap_or_default(), refused: refused(situation) }
    }

    /// The facts, of a situation whose kernel could be read.
    pub(super) fn facts<'a>(
        &'a self,
        situation: &'a Situation,
        kernel: &'a InKernel,
        plan: Option<&'a Plan>,
    ) -> Facts<'a> {
        let agent = situation.agent.as_ref();
        Facts {
            cluster: situation.cluster.as_ref(),
            settings: &situation.config.settings,
            accounts: &situation.standing,
            observed: &kernel.observed,
            plan,
            device: match (&kernel.device, kernel.silence) {
                (Some(_), _) => DeviceFacts::Answers { peers: &self.peers, drops: kernel.drops.as_ref() },
                (None, Some(silence)) => {
                    // The agent has known it for longer.
                    let since = agent.and_then(|agent| agent.device_silent_since);
                    let known = since.map(|since| unix_time().saturating_sub(since)).unwrap_or_default();
                    DeviceFacts::Silent { for_seconds: known.max(silence.lasted.as_secs()).max(1) }
                }
                (None, None) => DeviceFacts::Absent,
            },
            refused: &self.refused,
            trends: agent.map(|agent| &agent.trends),
            machine: &kernel.machine,
            agent: AgentFacts {
                running: agent.is_some(),
                last_pass: agent.and_then(|agent| agent.last_pass).map(Duration::from_secs),
                trouble: agent.and_then(|agent| agent.trouble.as_deref()),
            },
            now: Duration::from_secs(unix_time()),
        }
    }
}

/// What the guard and the source check refused, by the node's name.
fn refused(situation: &Situation) -> BTreeMap<String, Refused> {
    let mut refused: BTreeMap<String, Refused> = BTreeMap::new();
    let (Some(cluster), Some(kernel)) = (&situation.cluster, &situation.kernel) else { return refused };
    if let Some(guard) = &kernel.guard {
        let owners = Owners::of(cluster, &situation.config.settings);
        for (name, packets) in owners.add_up(&guard.outgoing) {
            refused.entry(name.to_owned()).or_default().plaintext_out = packets;
        }
        for (name, packets) in owners.add_up(&guard.incoming) {
            refused.entry(name.to_owned()).or_default().plaintext_in = packets;
        }
    }
    if let Some(refusals) = &kernel.refusals {
        for (name, node) in &cluster.nodes {
            let of_key = |key| refusals.peers.get(&LinkAddress::of(key)).copied();
            if let Some(packets) = node.public_key.and_then(of_key) {
                refused.entry(name.clone()).or_default().source = Some(packets);
            }
        }
    }
    refused
}
