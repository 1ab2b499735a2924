//! Each other node: whether it answers, and what becomes of traffic with its workloads.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use serde::Serialize;
use wireloom_types::{PublicKey, limits::REJECT_AFTER_TIME};

use super::{DeviceFacts, Facts, PeerFacts};
use crate::{
    cluster::Node,
    op::{DeviceOp, Op},
    planner::Plan,
    proofs::{Account, Because},
    settings::UnprovenPeers,
};

/// Another node, or a peer of the device that no node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerHealth {
    /// The node's name; of a peer that no node has, its key in base64.
    pub name: String,
    /// The key of its record, or of the peer.
    pub public_key: Option<PublicKey>,
    /// Whether it answers.
    pub state: PeerState,
    /// What becomes of traffic between its workloads and ours.
    pub encrypted: Encryption,
    /// Where the device sends to; without a peer on the device, what the record says.
    pub endpoint: Option<SocketAddr>,
    /// Seconds; `None` without a handshake.
    #[serde(rename = "last_handshake_age_seconds")]
    pub last_handshake_age: Option<u64>,
    /// Bytes.
    pub received: u64,
    /// Bytes.
    pub sent: u64,
    /// What the firewall refused.
    pub refused: Refused,
}

/// Packets that the firewall refused because of one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// From here to its workloads, which would have left in plaintext.
    pub plaintext_out: u64,
    /// From its workloads to here, which came in plaintext.
    pub plaintext_in: u64,
    /// From it through the tunnel, with a source that it may not have; `None` when the firewall checks no sources.
    pub source: Option<u64>,
}

/// Whether a node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum PeerState {
    /// There is a session.
    Up,
    /// There is no session, and nothing was to be sent.
    Idle,
    /// It was asked for a handshake, and there never was one since the device started.
    NeverAnswered {
        /// Since when it is known to be asked, since 1970.
        since: Option<Duration>,
    },
    /// There was a handshake. Now we send, and nothing comes back.
    Silent {
        /// When the first packet was sent to which nothing came back, since 1970.
        since: Duration,
    },
    /// The device's peer differs from what the mesh says.
    OutOfDate {
        /// How.
        what: Difference,
    },
    /// It is no peer, and is not to be one.
    LeftOut {
        /// Why.
        reason: LeftOut,
    },
}

/// How a peer of the device differs from the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The device does not have it.
    Missing,
    /// The device has it, with another configuration.
    Differs,
    /// The device has it, and no node does.
    Unknown,
}

/// Why a node is no peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// Its record has no key.
    NoKey,
    /// Its record has this node's key.
    OwnKey,
    /// Other nodes claim its key, or one that hashes to the same link address.
    SharedKey {
        /// Their names.
        with: Vec<String>,
    },
    /// Its record says `encrypt = false`.
    ItDoesNotEncrypt,
    /// This node's own record says `encrypt = false`.
    WeDoNotEncrypt,
    /// The mesh has no key for this node, or another one than the key file.
    OurKeyUnknown,
    /// The mesh does not say.
    Unexplained,
}

/// What becomes of traffic between the workloads of a node and ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Encryption {
    /// It is encrypted.
    Encrypted,
    /// It goes in plaintext.
    Plaintext {
        /// Why.
        why: Why,
    },
    /// It does not pass, and does not go in plaintext either.
    Refused {
        /// Why.
        why: Why,
    },
}

/// Why traffic with a node is not encrypted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Why {
    /// Our interface is not there, or down.
    NoInterface,
    /// Nothing answers for our interface.
    NoDevice,
    /// Rules of ours are missing.
    NoRules,
    /// The device's key is not the one that the mesh has for this node.
    OurKey,
    /// A rule of somebody else comes first.
    ForeignRule,
    /// The device does not have the peer as the mesh has it.
    OutOfDate,
    /// It is no peer.
    LeftOut,
    /// It has not proved that it encrypts.
    Unproven,
    /// It does not answer.
    NoAnswer,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Idle => "idle",
            Self::NeverAnswered { .. } => "never answered",
            Self::Silent { .. } => "silent",
            Self::OutOfDate { .. } => "out of date",
            Self::LeftOut { .. } => "left out",
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "the device does not have it",
            Self::Differs => "the device has other settings for it than the mesh",
            Self::Unknown => "no node of the mesh has its key",
        })
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("its record has no public key"),
            Self::OwnKey => f.write_str("its record has this node's key"),
            Self::SharedKey { with } if with.is_empty() => f.write_str("another node has the same key"),
            Self::SharedKey { with } => write!(f, "{} has the same key", with.join(", ")),
            Self::ItDoesNotEncrypt => f.write_str("its record says encrypt = false"),
            Self::WeDoNotEncrypt => f.write_str("this node's record says encrypt = false"),
            Self::OurKeyUnknown => f.write_str("the mesh does not have this node's key"),
            Self::Unexplained => f.write_str("the plan leaves it out"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoInterface => "our interface is not up",
            Self::NoDevice => "the WireGuard device does not answer",
            Self::NoRules => "our rules are missing",
            Self::OurKey => "the mesh has another key for this node",
            Self::ForeignRule => "a foreign rule comes before ours",
            Self::OutOfDate => "the device does not have the peer as the mesh has it",
            Self::LeftOut => "it is left out",
            Self::Unproven => "it has not proved that it encrypts",
            Self::NoAnswer => "it does not answer",
        })
    }
}

/// Judges every other node and every other peer.
pub(super) fn examine(facts: &Facts<'_>) -> Vec<PeerHealth> {
    let none = BTreeMap::new();
    let on_device = match facts.device {
        DeviceFacts::Answers { peers, .. } => peers,
        _ => &none,
    };
    let nodes = facts.cluster.iter().flat_map(|cluster| &cluster.nodes);
    let others = nodes.filter(|(name, _)| **name != facts.settings.node);
    let mut peers: Vec<PeerHealth> =
        others.map(|(name, node)| of_node(facts, on_device, name, node)).collect();
    let known: std::collections::BTreeSet<PublicKey> =
        peers.iter().filter_map(|peer| peer.public_key).collect();
    let unknown = on_device.iter().filter(|(key, _)| !known.contains(key));
    peers.extend(unknown.map(|(key, peer)| of_stranger(facts, *key, peer)));
    peers
}

fn of_node(
    facts: &Facts<'_>,
    on_device: &BTreeMap<PublicKey, PeerFacts>,
    name: &str,
    node: &Node,
) -> PeerHealth {
    let peer = node.public_key.and_then(|key| on_device.get(&key));
    let account = facts.accounts.get(name);
    let changes = node.public_key.is_some_and(|key| facts.plan.is_some_and(|plan| sets(plan, key)));
    let state = match (peer, node.public_key) {
        (Some(_), _) if changes => PeerState::OutOfDate { what: Difference::Differs },
        (Some(peer), Some(key)) => state_of(facts, key, peer, account),
        _ if changes => PeerState::OutOfDate { what: Difference::Missing },
        _ => PeerState::LeftOut { reason: left_out(node, account) },
    };
    PeerHealth {
        name: name.to_owned(),
        public_key: node.public_key,
        encrypted: encryption(facts, account, &state),
        state,
        endpoint: peer.and_then(|peer| peer.endpoint).or(node.endpoint),
        last_handshake_age: peer.and_then(|peer| handshake_age(facts, peer)),
        received: peer.map_or(0, |peer| peer.received),
        sent: peer.map_or(0, |peer| peer.sent),
        refused: facts.refused.get(name).copied().unwrap_or_default(),
    }
}

fn of_stranger(facts: &Facts<'_>, key: PublicKey, peer: &PeerFacts) -> PeerHealth {
    PeerHealth {
        name: key.to_string(),
        public_key: Some(key),
        state: PeerState::OutOfDate { what: Difference::Unknown },
        encrypted: Encryption::Refused { why: Why::OutOfDate },
        endpoint: peer.endpoint,
        last_handshake_age: handshake_age(facts, peer),
        received: peer.received,
        sent: peer.sent,
        refused: Refused::default(),
    }
}

fn sets(plan: &Plan, key: PublicKey) -> bool {
    plan.ops.iter().any(|op| matches!(op, Op::Device(DeviceOp::SetPeer(peer)) if peer.public_key == key))
}

/// Zero when the clock was set back since then.
fn handshake_age(facts: &Facts<'_>, peer: &PeerFacts) -> Option<u64> {
    peer.last_handshake.map(|then| facts.now.saturating_sub(then).as_secs())
}

fn state_of(facts: &Facts<'_>, key: PublicKey, peer: &PeerFacts, account: Option<&Account>) -> PeerState {
    let silent = facts.trends.and_then(|trends| trends.silent_since(key, facts.now));
    match (peer.last_handshake, silent) {
        (Some(_), Some(since)) => PeerState::Silent { since },
        (Some(_), None) => match handshake_age(facts, peer) {
            Some(age) if age <= REJECT_AFTER_TIME.as_secs() => PeerState::Up,
            _ => PeerState::Idle,
        },
        (None, _) if peer.sent == 0 => PeerState::Idle,
        (None, _) => PeerState::NeverAnswered {
            since: facts.trends.and_then(|trends| trends.unanswered.get(&key).copied()).or(match account {
                Some(Account::Unproven { since, .. }) => Some(*since),
                _ => None,
            }),
        },
    }
}

fn left_out(node: &Node, account: Option<&Account>) -> LeftOut {
    match account {
        Some(Account::Unproven { because, .. }) => match because {
            Because::NoKey => LeftOut::NoKey,
            Because::OwnKey => LeftOut::OwnKey,
            Because::SharedKey { with } => LeftOut::SharedKey { with: with.clone() },
            Because::ItDoesNotEncrypt => LeftOut::ItDoesNotEncrypt,
            Because::WeDoNotEncrypt => LeftOut::WeDoNotEncrypt,
            Because::OurKeyUnknown => LeftOut::OurKeyUnknown,
            _ => LeftOut::Unexplained,
        },
        _ if node.public_key.is_none() => LeftOut::NoKey,
        _ if !node.encrypt => LeftOut::ItDoesNotEncrypt,
        _ => LeftOut::Unexplained,
    }
}

fn encryption(facts: &Facts<'_>, account: Option<&Account>, state: &PeerState) -> Encryption {
    let proven = matches!(account, Some(Account::Proven { .. }));
    let without_proof = |why| match facts.settings.unproven_peers {
        UnprovenPeers::Plaintext if !proven => Encryption::Plaintext { why },
        _ => Encryption::Refused { why },
    };
    match state {
        PeerState::LeftOut { .. } => without_proof(Why::LeftOut),
        PeerState::NeverAnswered { .. } | PeerState::Silent { .. } if proven => {
            Encryption::Refused { why: Why::NoAnswer }
        }
        PeerState::OutOfDate { .. } => without_proof(Why::OutOfDate),
        _ if !proven => without_proof(Why::Unproven),
        _ => Encryption::Encrypted,
    }
}
