//! The headline: whether traffic between workloads is encrypted.

use std::fmt;

use serde::Serialize;

use super::{DeviceFacts, Encryption, Facts, Finding, PeerHealth};

/// Whether traffic between the workloads of this node and others is encrypted. Reasons are short clauses, the most
/// important one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "reasons")]
pub enum Verdict {
    /// With every node that there is.
    Encrypted,
    /// With some.
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

pub(super) fn judge(facts: &Facts<'_>, peers: &[PeerHealth], _findings: &[Finding]) -> Verdict {
    let mut reasons = Vec::new();
    if facts.cluster.is_none() {
        reasons.push("the mesh cannot be read".to_owned());
    }
    match facts.device {
        DeviceFacts::Absent => reasons.push("there is no WireGuard device".to_owned()),
        DeviceFacts::Silent { for_seconds } => {
            reasons.push(format!("the WireGuard device has not answered for {for_seconds} s"));
        }
        DeviceFacts::Answers { .. } => {}
    }
    if !reasons.is_empty() {
        return Verdict::NotEncrypted(reasons);
    }
    let in_plaintext: Vec<&PeerHealth> =
        peers.iter().filter(|peer| matches!(peer.encrypted, Encryption::Plaintext { .. })).collect();
    match in_plaintext.len() {
        0 => Verdict::Encrypted,
        some if some == peers.len() => Verdict::NotEncrypted(vec!["all peers are in plaintext".to_owned()]),
        some => Verdict::Partly(vec![format!("{some} peers are in plaintext")]),
    }
}
