//! Each other node: whether it answers, and what becomes of traffic with its workloads.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::Serialize;
use wireloom_types::PublicKey;

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
    /// The mesh does not have it any more. What it had is still its own for a while.
    Gone,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The mesh cannot be read.
    NoMesh,
    /// The mesh does not have this node.
    NotInMesh,
    /// Our interface is not there, or down.
    NoInterface,
    /// Nothing answers for our interface.
    NoDevice,
    /// This node's own record says `encrypt = false`.
    WeDoNotEncrypt,
    /// The device's key is not the one that the mesh has for this node.
    OurKey,
    /// Rules of ours are missing.
    NoRules,
    /// In our table, not all routes to its workloads lead into the tunnel.
    NoRoute,
    /// A rule of somebody else comes first.
    ForeignRule,
    /// The device does not have the peer as the mesh has it.
    OutOfDate,
    /// It is no peer.
    LeftOut,
    /// The mesh does not have it any more.
    Gone,
    /// It has not proved that it encrypts.
    Unproven,
    /// It does not answer.
    NoAnswer,
}

impl PeerState {
    /// All names, as in [`Self::name`].
    pub const NAMES: [&'static str; 6] =
        ["up", "idle", "never_answered", "silent", "out_of_date", "left_out"];

    /// Its name in JSON and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let [up, idle, never_answered, silent, out_of_date, left_out] = Self::NAMES;
        match self {
            Self::Up => up,
            Self::Idle => idle,
            Self::NeverAnswered { .. } => never_answered,
            Self::Silent { .. } => silent,
            Self::OutOfDate { .. } => out_of_date,
            Self::LeftOut { .. } => left_out,
        }
    }
}

impl Encryption {
    /// All names, as in [`Self::name`].
    pub const NAMES: [&'static str; 3] = ["encrypted", "plaintext", "refused"];

    /// Its name in JSON and in metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let [encrypted, plaintext, refused] = Self::NAMES;
        match self {
            Self::Encrypted => encrypted,
            Self::Plaintext { .. } => plaintext,
            Self::Refused { .. } => refused,
        }
    }
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
            Self::Gone => f.write_str("it is gone from the mesh; for a minute the guard refuses what it had"),
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

/// A short clause that fits one node and many.
impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoMesh => "the mesh cannot be read",
            Self::NotInMesh => "the mesh does not have this node",
            Self::NoInterface => "our interface is not up",
            Self::NoDevice => "the WireGuard device does not answer",
            Self::WeDoNotEncrypt => "this node's record says encrypt = false",
            Self::OurKey => "the mesh does not have this node's key",
            Self::NoRules => "our rules are missing",
            Self::NoRoute => "our routes are not in place",
            Self::ForeignRule => "a foreign rule comes before ours",
            Self::OutOfDate => "the device is out of date",
            Self::LeftOut => "left out of the mesh",
            Self::Gone => "gone from the mesh",
            Self::Unproven => "unproven",
            Self::NoAnswer => "no answer",
        })
    }
}
