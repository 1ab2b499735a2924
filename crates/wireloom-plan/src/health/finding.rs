//! What is wrong on this node, with the fix.

use std::fmt;

use serde::Serialize;

use super::{DeviceFacts, Facts, PeerHealth, PeerState};
use crate::warning::Severity;

/// Something that is wrong on this node. The text names what, where, why and the fix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "warning")]
pub enum Finding {
    /// There is no WireGuard device.
    DeviceAbsent,
    /// The WireGuard device does not answer.
    DeviceSilent {
        /// For how long, seconds.
        seconds: u64,
    },
    /// No agent runs.
    AgentNotRunning,
    /// A peer was asked for a handshake and never answered.
    NeverAnswered {
        /// Its name.
        node: String,
        /// For how long it has been asked, seconds, if that is known.
        seconds: Option<u64>,
    },
    /// A peer does not answer any more.
    Silent {
        /// Its name.
        node: String,
        /// For how long, seconds.
        seconds: u64,
    },
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::DeviceAbsent | Self::DeviceSilent { .. } => Severity::Error,
            Self::AgentNotRunning | Self::NeverAnswered { .. } | Self::Silent { .. } => Severity::Warning,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceAbsent => {
                f.write_str("there is no WireGuard device: start the agent, or see its errors")
            }
            Self::DeviceSilent { seconds } => write!(
                f,
                "the WireGuard device has not answered for {seconds} s; the agent restarts it, or kill its process",
            ),
            Self::AgentNotRunning => f.write_str(
                "the agent does not run, so nothing is repaired and no change of the mesh is followed; start it",
            ),
            Self::NeverAnswered { node, seconds } => {
                write!(f, "{node} has never answered")?;
                seconds.map_or(Ok(()), |seconds| write!(f, ", asked for {seconds} s"))?;
                f.write_str("; start its agent, and let UDP through to its endpoint and back")
            }
            Self::Silent { node, seconds } => write!(
                f,
                "{node} has not answered for {seconds} s; see whether its agent runs, and UDP gets through",
            ),
        }
    }
}

pub(super) fn of_device(facts: &Facts<'_>) -> impl Iterator<Item = Finding> {
    let device = match facts.device {
        DeviceFacts::Answers { .. } => None,
        DeviceFacts::Silent { for_seconds } => Some(Finding::DeviceSilent { seconds: for_seconds }),
        DeviceFacts::Absent => Some(Finding::DeviceAbsent),
    };
    device.into_iter().chain((!facts.agent.running).then_some(Finding::AgentNotRunning))
}

pub(super) fn of_peers(facts: &Facts<'_>, peers: &[PeerHealth]) -> impl Iterator<Item = Finding> {
    let now = facts.now;
    peers.iter().filter_map(move |peer| {
        let node = peer.name.clone();
        match peer.state {
            PeerState::NeverAnswered { since } => Some(Finding::NeverAnswered {
                node,
                seconds: since.map(|since| now.saturating_sub(since).as_secs()),
            }),
            PeerState::Silent { since } => {
                Some(Finding::Silent { node, seconds: now.saturating_sub(since).as_secs() })
            }
            _ => None,
        }
    })
}
