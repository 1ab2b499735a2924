//! Finds what is wrong.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{
    DeviceFacts, Facts, Finding, Hook, LeftOut, PeerHealth, PeerState, foreign_rules::Catching, own::Own,
    prefixes::Prefixes,
};
use crate::{paths::overhead, proofs::Account, routing::Family};

/// `RT_TABLE_MAIN` of include/uapi/linux/rtnetlink.h.
const MAIN: u32 = 254;

/// An agent looks at the kernel every 30 s at least.
const STUCK: u64 = 90;

/// How many handshakes of a kind are no accident: a peer that gets no answer repeats its own every 5 s, while scanners
/// of the internet send one.
const HANDSHAKES: u64 = 3;

/// Seconds. Where clocks are slewed, not set, a handshake is never later than now.
const CLOCK_TOLERANCE: u64 = 2;

/// Seconds within which a peer that was asked just now may still answer.
const PATIENCE: u64 = 15;

pub(super) fn of_agent<'a>(facts: &Facts<'a>, own: &Own<'a>) -> Vec<Finding> {
    let agent = facts.agent;
    let idle = agent.last_pass.map(|last| facts.now.saturating_sub(last).as_secs());
    match (agent.running, own.is_bare, idle) {
        (false, true, _) => vec![Finding::NothingProgrammed],
        (false, false, _) => vec![Finding::AgentNotRunning],
        (true, _, Some(seconds @ STUCK..)) => vec![Finding::AgentStuck { seconds }],
        _ => Vec::new(),
    }
}

/// What is not there of what we program. Without any of it, one finding says so.
pub(super) fn of_own<'a>(facts: &Facts<'a>, own: &Own<'a>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if own.is_bare && !facts.agent.running {
        return findings;
    }
    let interface = || facts.settings.interface.clone();
    match (&facts.observed.interface, facts.device) {
        (None, _) => findings.push(Finding::InterfaceMissing { interface: interface() }),
        // A refusal says so.
        (Some(foreign), _) if !foreign.is_ours() => {}
        (Some(_), DeviceFacts::Absent) => findings.push(Finding::DeviceAbsent { interface: interface() }),
        (Some(_), DeviceFacts::Silent { for_seconds }) => {
            findings.push(Finding::DeviceSilent { seconds: for_seconds });
        }
        (Some(ours), DeviceFacts::Answers { .. }) if !ours.up => {
            findings.push(Finding::InterfaceDown { interface: interface() });
        }
        _ => {}
    }
    let first = own.missing_rules.first();
    findings.extend(
        first.map(|rule| Finding::RulesMissing { rule: rule.clone(), count: own.missing_rules.len() }),
    );
    // A way into the tunnel goes with the interface.
    let is_up = facts.observed.interface.as_ref().is_some_and(|ours| ours.is_ours() && ours.up);
    let first = own.astray.missing.first().filter(|_| is_up && facts.plan.is_some());
    findings.extend(first.map(|destination| Finding::RoutesMissing {
        table: facts.settings.table,
        destination: *destination,
        count: own.astray.missing.len(),
    }));
    findings.extend(own.lacks_guard.then_some(Finding::GuardMissing));
    findings
}

pub(super) fn of_rules(own: &Own<'_>, catching: &[Catching<'_>]) -> Vec<Finding> {
    let finding = |catching: &Catching<'_>| Finding::ForeignRule {
        rule: catching.rule.clone(),
        workload: catching.workload,
        sometimes: catching.sometimes,
        refused: own.guards,
    };
    catching.iter().map(finding).collect()
}

pub(super) fn of_peers(facts: &Facts<'_>, peers: &[PeerHealth]) -> Vec<Finding> {
    let ago = |since| facts.now.saturating_sub(since).as_secs();
    let finding = |peer: &PeerHealth| {
        let node = peer.name.clone();
        match peer.state {
            PeerState::NeverAnswered { since } => {
                let seconds = since.map(ago);
                let (endpoint, public_key) = (peer.endpoint, peer.public_key);
                let patience = seconds.is_none_or(|seconds| seconds > PATIENCE);
                patience.then_some(Finding::NeverAnswered { node, endpoint, public_key, seconds })
            }
            PeerState::Silent { since } => {
                Some(Finding::Silent { node, endpoint: peer.endpoint, seconds: ago(since) })
            }
            _ => None,
        }
    };
    peers.iter().filter_map(finding).collect()
}

pub(super) fn of_endpoints(facts: &Facts<'_>, peers: &[PeerHealth]) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The least that ways by an interface carry.
    let mut carried: BTreeMap<&str, u32> = BTreeMap::new();
    for peer in peers {
        let Some(endpoint) = peer.endpoint else { continue };
        let node = peer.name.clone();
        match facts.machine.endpoint_routes.get(&endpoint.ip()) {
            Some(Some(way)) if way.interface == facts.settings.interface => {
                let interface = way.interface.clone();
                findings.push(Finding::EndpointThroughTunnel { node, endpoint, interface });
            }
            Some(Some(way)) => {
                // An IPv4 address inside IPv6 is one of IPv4.
                let outer = Family::of(endpoint.ip().to_canonical());
                let carries = way.mtu.saturating_sub(overhead(outer));
                let least = carried.entry(&way.interface).or_insert(carries);
                *least = carries.min(*least);
            }
            Some(None) => findings.push(Finding::NoRouteToEndpoint { node, endpoint }),
            None => {}
        }
    }
    // An MTU that is not configured follows the ways to peers by itself.
    if let Some(mtu) = facts.settings.mtu {
        let narrow = carried.into_iter().filter(|(_, carries)| *carries < mtu);
        findings.extend(narrow.map(|(interface, carries)| Finding::MtuTooLarge {
            mtu,
            interface: interface.to_owned(),
            carries,
        }));
    }
    findings
}

pub(super) fn of_drops(facts: &Facts<'_>) -> Vec<Finding> {
    let lately = |reason| facts.trends.map_or(0, |trends| trends.dropped_lately(reason));
    let handshakes = |reason| Some(lately(reason)).filter(|packets| *packets >= HANDSHAKES);
    let public_key = facts.observed.device.as_ref().and_then(|device| device.public_key);
    let packets = Some(lately("source-not-allowed")).filter(|packets| *packets > 0);
    [
        packets.map(|packets| Finding::SourceNotAllowed { packets }),
        handshakes("unknown-peer").map(|packets| Finding::UnknownPeer { packets }),
        handshakes("bad-mac1").map(|packets| Finding::BadMac1 { packets, public_key }),
        handshakes("stale-timestamp").map(|packets| Finding::StaleTimestamp { packets }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(super) fn of_clock(facts: &Facts<'_>) -> Option<Finding> {
    let DeviceFacts::Answers { peers, .. } = facts.device else { return None };
    let last = peers.values().filter_map(|peer| peer.last_handshake).max()?;
    let seconds = last.saturating_sub(facts.now).as_secs();
    (seconds > CLOCK_TOLERANCE).then_some(Finding::ClockSetBack { seconds })
}

/// Forwarding, other programs' firewalls and marks, and a transition.
pub(super) fn of_machine(facts: &Facts<'_>, own: &Own<'_>, peers: &[PeerHealth]) -> Vec<Finding> {
    let (machine, settings) = (facts.machine, facts.settings);
    let uses = |family: &Family| {
        let workloads = own.record.into_iter().flat_map(|own| &own.workloads);
        workloads.into_iter().any(|workload| Family::of(workload.addr()) == *family)
    };
    let unforwarded = Family::ALL.into_iter().filter(|family| !machine.forwarding.forwards(*family));
    let forwarding = unforwarded.filter(uses).map(|family| Finding::ForwardingOff { family });
    // A session shows that encrypted packets come in.
    let comes_in = peers.iter().any(|peer| peer.state == PeerState::Up);
    let droppers = machine.droppers.iter().filter(|chain| chain.hook == Hook::Forward || !comes_in);
    let droppers = droppers.map(|chain| Finding::Dropper {
        chain: chain.clone(),
        port: settings.listen_port,
        interface: settings.interface.clone(),
    });
    let mark = settings.fwmark;
    let users = machine.mark_users.iter().filter(|user| user.bits() & mark != 0);
    let users = users.map(|user| Finding::MarkCollision { mark, user: *user });
    let networkd = machine.networkd.then_some(Finding::NetworkdRemovesRules);
    let step = settings.host_transition.map(|step| Finding::HostTransition { step });
    forwarding.chain(droppers).chain(users).chain(networkd).chain(step).collect()
}

/// Routes in the table `main` that whoever runs workloads makes.
pub(super) fn of_routes(facts: &Facts<'_>, own: &Own<'_>, peers: &[PeerHealth]) -> Vec<Finding> {
    let (Some(main), Some(record)) = (facts.machine.tables.get(&MAIN), own.record) else {
        return Vec::new();
    };
    let main = Prefixes::new(main);
    // A default route leads nowhere in particular.
    let local = record.workloads.iter().copied().filter(|workload| !main.any_overlaps(*workload, 1));
    let local = local.map(|workload| Finding::LocalWorkloadWithoutRoute { workload });
    local.chain(of_routes_to_others(facts, &main, peers)).collect()
}

fn of_routes_to_others(facts: &Facts<'_>, main: &Prefixes<'_>, peers: &[PeerHealth]) -> Option<Finding> {
    let gone = PeerState::LeftOut { reason: LeftOut::Gone };
    let gone: BTreeSet<&str> =
        peers.iter().filter(|peer| peer.state == gone).map(|peer| peer.name.as_str()).collect();
    let is_unproven = |name: &str| !matches!(facts.accounts.get(name), Some(Account::Proven { .. }));
    let nodes = facts.cluster.into_iter().flat_map(|cluster| &cluster.nodes);
    let others = nodes.filter(|(name, _)| **name != facts.settings.node && !gone.contains(name.as_str()));
    let missing: Vec<(&String, IpNet, bool)> = others
        .flat_map(|(name, node)| node.workloads.iter().map(move |workload| (name, *workload)))
        .filter(|(_, workload)| !main.any_overlaps(*workload, 0))
        .map(|(name, workload)| (name, workload, is_unproven(name)))
        // In host mode what is proven never goes direct.
        .filter(|(_, _, unproven)| *unproven || !facts.settings.encrypt_host_traffic)
        .collect();
    let (node, workload, unproven) = missing.iter().max_by_key(|(_, _, unproven)| *unproven)?;
    Some(Finding::NoRouteToWorkloads {
        workload: *workload,
        node: (*node).clone(),
        count: missing.len(),
        unproven: *unproven,
    })
}
