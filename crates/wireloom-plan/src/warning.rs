//! What the operator should know although the plan goes on; each text names the mend.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use serde::Serialize;
use wireloom_types::{LinkAddress, PublicKey};

use crate::kernel::{Family, Route};

/// Something about the cluster, the settings or the kernel that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case", tag = "warning")]
pub enum Warning {
    /// The membership has no key for this node: it takes no part in encryption.
    OwnNodeKeyless,
    /// The membership has another key for this node than its key file: no peer will answer it.
    OwnKeyDiffers {
        /// Of the key file.
        key_file: PublicKey,
        /// As the other nodes see it.
        membership: PublicKey,
    },
    /// Several nodes claim one key: none of them is a peer.
    SharedKey {
        /// The key.
        public_key: PublicKey,
        /// By name.
        nodes: Vec<String>,
    },
    /// The keys of several nodes lead to one link address: none of them is a peer.
    SharedLinkAddress {
        /// The link address.
        link_address: LinkAddress,
        /// By name.
        nodes: Vec<String>,
    },
    /// A node does not encrypt.
    KeylessNode {
        /// Its name.
        node: String,
    },
    /// A local workload that no rule's source holds: its packets leave in plaintext.
    UncoveredWorkload {
        /// Often a single address, which never becomes a rule.
        workload: IpNet,
    },
    /// Scoped mode, and a rule takes what the host itself sends from this address for a
    /// workload's: it enters the tunnel, and the far end refuses it.
    AddressInScope {
        /// Own address.
        address: IpAddr,
        /// The rule's source that holds it.
        source: IpNet,
    },
    /// Host mode, and no own address of this family that the machine really has.
    NoOwnAddress {
        /// The family that the mesh uses.
        family: Family,
    },
    /// An own address of the membership that no interface of this machine has.
    AddressNotHere {
        /// The address.
        address: IpAddr,
    },
    /// Several nodes claim the very same prefix.
    ContestedPrefix {
        /// The prefix.
        prefix: IpNet,
        /// Who gets it.
        taken_by: String,
        /// Who does not.
        refused: Vec<String>,
    },
    /// A node's prefix holds prefixes (not only single addresses) of other nodes.
    NestedPrefixes {
        /// The wider prefix.
        prefix: IpNet,
        /// Whose it is.
        node: String,
        /// The first narrower one of another node; the narrower wins.
        inner: IpNet,
        /// How many there are.
        count: usize,
    },
    /// A route in our table that somebody else made.
    ForeignRoute {
        /// The route.
        route: Route,
        /// It stands where a route of ours should be.
        blocks_ours: bool,
    },
    /// A peer whose endpoint nobody declared.
    NoEndpoint {
        /// Its name.
        node: String,
    },
}

/// How much a warning matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; may be meant so.
    Info,
    /// Traffic is or may be treated otherwise than the operator wants.
    Warning,
    /// Traffic certainly fails or leaves in plaintext.
    Error,
}

impl Warning {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoEndpoint { .. } | Self::AddressNotHere { .. } => Severity::Info,
            Self::OwnNodeKeyless
            | Self::KeylessNode { .. }
            | Self::NestedPrefixes { .. }
            | Self::ForeignRoute { blocks_ours: false, .. } => Severity::Warning,
            Self::OwnKeyDiffers { .. }
            | Self::SharedKey { .. }
            | Self::SharedLinkAddress { .. }
            | Self::UncoveredWorkload { .. }
            | Self::AddressInScope { .. }
            | Self::NoOwnAddress { .. }
            | Self::ContestedPrefix { .. }
            | Self::ForeignRoute { blocks_ours: true, .. } => Severity::Error,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnNodeKeyless => f.write_str(
                "the membership has no public key for this node, so it neither encrypts nor is encrypted to; \
                 publish the key that `wireloom key public` prints",
            ),
            Self::OwnKeyDiffers { key_file, membership } => write!(
                f,
                "this node's key file holds {key_file} but the membership says {membership}: \
                 no peer will answer; publish the first, or put the private key of the second in place",
            ),
            Self::SharedKey { public_key, nodes } => write!(
                f,
                "nodes {} claim the same key {public_key} and are left out of the mesh; \
                 generate a key of its own for each of them",
                nodes.join(", "),
            ),
            Self::SharedLinkAddress { link_address, nodes } => write!(
                f,
                "the keys of nodes {} lead to the same link address {link_address}, so that they are left out of \
                 the mesh; generate a new key for one of them",
                nodes.join(", "),
            ),
            Self::KeylessNode { node } => write!(
                f,
                "node {node} has no public key, so traffic with it is not encrypted; \
                 publish its key, or refuse such traffic with keyless_peers = \"reject\"",
            ),
            Self::UncoveredWorkload { workload } => write!(
                f,
                "local workload {workload} is covered by no rule: what it sends leaves in plaintext; \
                 declare a pool that holds it (or, with scope = \"node\", give this node a block that does)",
            ),
            Self::AddressInScope { address, source } => write!(
                f,
                "this node's own address {address} lies in {source}, so a rule takes the host's traffic for a \
                 workload's and other nodes refuse it; narrow the pool, or set encrypt_host_traffic",
            ),
            Self::NoOwnAddress { family } => write!(
                f,
                "this node declares no {family} address that it really has: with encrypt_host_traffic the \
                 kernel picks the source itself, and the far end may refuse it; \
                 add the address to this node's `addresses`",
            ),
            Self::AddressNotHere { address } => write!(
                f,
                "the membership gives this node the address {address}, which no interface here has; \
                 remove it from `addresses`, or configure it",
            ),
            Self::ContestedPrefix { prefix, taken_by, refused } => write!(
                f,
                "{prefix} is claimed by {taken_by} and by {}; {taken_by} gets it; \
                 remove it from the other's `workloads`",
                refused.join(", "),
            ),
            Self::NestedPrefixes { prefix, node, inner, count } => write!(
                f,
                "{prefix} of node {node} holds {count} prefixes of other nodes, for example {inner}, which win; \
                 narrow {prefix}, or remove what lies in it",
            ),
            Self::ForeignRoute { route, blocks_ours } => {
                write!(
                    f,
                    "route {} (protocol {}, metric {}) in our table is not ours and stays; ",
                    route.destination, route.protocol, route.metric,
                )?;
                f.write_str(if *blocks_ours {
                    "it stands in the place of a route of ours: move it to a table of its own"
                } else {
                    "move it to a table of its own"
                })
            }
            Self::NoEndpoint { node } => write!(
                f,
                "node {node} declares no endpoint: it must speak first; \
                 declare one if others shall reach it at any time",
            ),
        }
    }
}
