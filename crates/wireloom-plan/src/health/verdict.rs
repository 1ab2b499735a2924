//! The headline: whether traffic between workloads is encrypted.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::{DeviceFacts, Encryption, Facts, PeerHealth, Why, own::Own};
use crate::warning::{Warning, first_of};

/// Whether traffic between the workloads of this node and others is encrypted. Reasons are short clauses, the most
/// important one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "reasons")]
pub enum Verdict {
    /// With every node that there is.
    Encrypted,
    /// With some; or with all, and something that should refuse plaintext is missing.
    Partly(Vec<String>),
    /// With none.
    NotEncrypted(Vec<String>),
}

impl Verdict {
    /// The reasons; none when everything is encrypted.
    pub fn reasons(&self) -> &[String] {
        match self {
            Self::Encrypted => &[],
            Self::Partly(reasons) | Self::NotEncrypted(reasons) => reasons,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = self.reasons().join("; ");
        match self {
            Self::Encrypted => f.write_str("encrypted"),
            Self::Partly(_) => write!(f, "partly: {reasons}"),
            Self::NotEncrypted(_) => write!(f, "NOT encrypted: {reasons}"),
        }
    }
}

pub(super) fn judge(facts: &Facts<'_>, own: &Own<'_>, peers: &[PeerHealth]) -> Verdict {
    let matters = |peer: &&PeerHealth| {
        let node = facts.cluster.and_then(|cluster| cluster.nodes.get(&peer.name));
        node.is_some_and(|node| {
            !node.workloads.is_empty()
                || !node.link_addresses.is_empty()
                || facts.settings.encrypt_host_traffic
        })
    };
    let peers: Vec<&PeerHealth> = peers.iter().filter(matters).collect();
    let mut reasons: Vec<String> = own.obstacles.iter().map(|why| of_node(facts, *why)).collect();
    if own.lacks_guard {
        reasons.push("the guard is missing, so nothing refuses plaintext".to_owned());
    }
    let uncovered = uncovered(facts);
    if !uncovered.is_empty() {
        reasons.push(format!("what {} here sends is in plaintext (no rule covers it)", first_of(&uncovered)));
    }
    let encrypted = peers.iter().filter(|peer| peer.encrypted == Encryption::Encrypted).count();
    if !own.obstacles.is_empty() {
        reasons.extend(fates(&peers));
        return Verdict::NotEncrypted(reasons);
    }
    reasons.extend(by_reason(&peers));
    match reasons.is_empty() {
        true => Verdict::Encrypted,
        false if encrypted == 0 && !peers.is_empty() => Verdict::NotEncrypted(reasons),
        false => Verdict::Partly(reasons),
    }
}

/// The local workload CIDRs that no rule of ours leads to our table.
fn uncovered(facts: &Facts<'_>) -> Vec<String> {
    let warnings = facts.plan.into_iter().flat_map(|plan| &plan.warnings);
    let uncovered = warnings.filter_map(|warning| match warning {
        Warning::UncoveredWorkload { workload } => Some(workload.to_string()),
        _ => None,
    });
    uncovered.collect()
}

/// Why nothing is encrypted with anybody.
fn of_node(facts: &Facts<'_>, why: Why) -> String {
    let interface = &facts.settings.interface;
    match (why, facts.device) {
        (Why::NotInMesh, _) => format!("the mesh has no node {}", facts.settings.node),
        (Why::NoInterface, _) => match &facts.observed.interface {
            None => format!("interface {interface} does not exist"),
            Some(foreign) if !foreign.is_ours() => format!("interface {interface} is not Wireloom's"),
            Some(_) => format!("interface {interface} is down"),
        },
        (Why::NoDevice, DeviceFacts::Silent { for_seconds }) => {
            format!("the WireGuard device has not answered for {for_seconds} s")
        }
        (Why::NoDevice, _) => format!("there is no WireGuard device behind {interface}"),
        (why, _) => why.to_string(),
    }
}

/// What becomes of traffic with everybody, where one reason is enough.
fn fates(peers: &[&PeerHealth]) -> Option<String> {
    let of = |is: fn(&Encryption) -> bool| peers.iter().filter(|peer| is(&peer.encrypted)).count();
    let plaintext = of(|fate| matches!(fate, Encryption::Plaintext { .. }));
    let refused = of(|fate| matches!(fate, Encryption::Refused { .. }));
    match (plaintext, refused) {
        (0, 0) => None,
        (0, _) => Some("nothing passes, nothing in plaintext either".to_owned()),
        (_, 0) => Some("traffic between workloads is in plaintext".to_owned()),
        _ => Some(format!("{plaintext} nodes in plaintext, {refused} refused")),
    }
}

/// The nodes with which traffic is not encrypted, by reason: those in plaintext first.
fn by_reason(peers: &[&PeerHealth]) -> Vec<String> {
    let mut groups: BTreeMap<(bool, Why), Vec<String>> = BTreeMap::new();
    for peer in peers {
        let group = match peer.encrypted {
            Encryption::Encrypted => continue,
            Encryption::Plaintext { why } => (false, why),
            Encryption::Refused { why } => (true, why),
        };
        groups.entry(group).or_default().push(peer.name.clone());
    }
    let clause = |((refused, why), names): ((bool, Why), Vec<String>)| {
        let fate = if refused { "nothing passes to" } else { "plaintext with" };
        format!("{fate} {} ({why})", first_of(&names))
    };
    groups.into_iter().map(clause).collect()
}
