//! What people are told about each node: since when it is proven, or why it is not.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Candidate, Proofs};
use crate::{cluster::Node, routing::Family};

/// What a handshake does not prove: that this machine could deliver what comes through the tunnel. Nobody is asked for
/// a handshake before it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preconditions {
    /// Everything is programmed, and our interface is up.
    pub ready: bool,
    /// `net.ipv4.ip_forward`.
    pub forwarding_v4: bool,
    /// `net.ipv6.conf.all.forwarding`.
    pub forwarding_v6: bool,
}

/// Whether a node is proven, since when, and why not. Times are since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Account {
    /// Traffic between its workloads and ours is encrypted, or refused.
    Proven {
        /// When it was proven.
        since: Duration,
        /// When it goes direct again, because its record or ours says `encrypt = false`.
        ends: Option<Duration>,
    },
    /// Its workloads are treated like those of a node without a key.
    Unproven {
        /// Since when this agent waits for a proof.
        since: Duration,
        /// What it waits for.
        because: Because,
    },
}

/// Why a node is not proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// Its record has no key.
    NoKey,
    /// Its record has this node's key.
    OwnKey,
    /// Other nodes claim its key.
    SharedKey {
        /// Their names.
        with: Vec<String>,
    },
    /// Its record says `encrypt = false`.
    ItDoesNotEncrypt,
    /// Our record says `encrypt = false`.
    WeDoNotEncrypt,
    /// Our record has no key, or another one than the key file.
    OurKeyUnknown,
    /// Only it can begin a handshake.
    NoEndpoint,
    /// The name of its endpoint has not led to an address yet.
    NoAddress {
        /// As its record has it.
        name: String,
    },
    /// Something is still to be programmed here, or our interface is down.
    NotReady,
    /// This machine does not forward packets of a family that its workloads use.
    NoForwarding {
        /// The family.
        family: Family,
    },
    /// It does not answer, or its answers do not reach us.
    NoAnswer,
}

impl Proofs {
    /// What to tell people about every other node.
    pub fn accounts(&self, preconditions: &Preconditions) -> BTreeMap<String, Account> {
        let Some(cluster) = &self.cluster else { return BTreeMap::new() };
        let unmet = self.unmet(preconditions);
        let kept = self.keys_of_keyless();
        let others = cluster.nodes.iter().filter(|(name, _)| **name != self.node);
        others
            .map(|(name, node)| {
                let account = match self.memory.nodes.get(name).filter(|proof| proof.holds()) {
                    Some(proof) => Account::Proven { since: proof.since(), ends: proof.ends() },
                    None => Account::Unproven {
                        since: self.awaited.get(name).copied().unwrap_or_default(),
                        because: self
                            .obstacle(name, node, &kept)
                            .or_else(|| self.our_key_is_unknown().then_some(Because::OurKeyUnknown))
                            .or_else(|| no_address(node))
                            .or_else(|| unmet.clone())
                            .unwrap_or(Because::NoAnswer),
                    },
                };
                (name.clone(), account)
            })
            .collect()
    }

    /// Whether the others cannot answer us, because they know no key or another one.
    fn our_key_is_unknown(&self) -> bool {
        let own = self.cluster.as_ref().and_then(|cluster| cluster.nodes.get(&self.node));
        own.is_some_and(|own| own.public_key != Some(self.own_key))
    }

    /// The nodes to ask for a handshake, once nothing is [`unmet`](Self::unmet): those that it would prove and whose
    /// endpoints are known.
    pub fn to_ask(&self) -> impl Iterator<Item = Candidate<'_>> {
        self.provable()
            .filter_map(|(name, node, key)| Some(Candidate { name, key, endpoint: node.endpoint? }))
    }

    /// Why nobody is asked for a handshake, if so.
    pub fn unmet(&self, preconditions: &Preconditions) -> Option<Because> {
        let own = self.cluster.as_ref().and_then(|cluster| cluster.nodes.get(&self.node));
        let uses = |family| {
            own.is_some_and(|own: &Node| own.workloads.iter().any(|it| Family::of(it.addr()) == family))
        };
        let Preconditions { ready, forwarding_v4, forwarding_v6 } = *preconditions;
        if !ready {
            return Some(Because::NotReady);
        }
        let forwards = [(Family::V4, forwarding_v4), (Family::V6, forwarding_v6)];
        let lacking = forwards.into_iter().find(|(family, forwards)| !forwards && uses(*family));
        lacking.map(|(family, _)| Because::NoForwarding { family })
    }
}

fn no_address(node: &Node) -> Option<Because> {
    match (node.endpoint, &node.endpoint_name) {
        (Some(_), _) => None,
        (None, Some(name)) => Some(Because::NoAddress { name: name.to_string() }),
        (None, None) => Some(Because::NoEndpoint),
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey => f.write_str("its record has no public key; publish its key"),
            Self::OwnKey => f.write_str("its record has this node's key; give each node a key of its own"),
            Self::SharedKey { with } => {
                write!(f, "{} claims the same key; give each node a key of its own", with.join(", "))
            }
            Self::ItDoesNotEncrypt => f.write_str("its record says encrypt = false"),
            Self::WeDoNotEncrypt => f.write_str("this node's own record says encrypt = false"),
            Self::OurKeyUnknown => f.write_str(
                "the mesh does not have this node's key; publish the key that `wireloom key public` prints",
            ),
            Self::NoEndpoint => {
                f.write_str("its record has no endpoint, so only it can begin; add one, or start its agent")
            }
            Self::NoAddress { name } => {
                write!(f, "no address of its endpoint {name} is known yet; see the warning about it")
            }
            Self::NotReady => {
                f.write_str("this node itself is not ready; start its agent, or see the errors here")
            }
            Self::NoForwarding { family: Family::V4 } => {
                f.write_str("this machine does not forward IPv4; set net.ipv4.ip_forward=1")
            }
            Self::NoForwarding { family: Family::V6 } => {
                f.write_str("this machine does not forward IPv6; set net.ipv6.conf.all.forwarding=1")
            }
            Self::NoAnswer => f.write_str(
                "it has not answered; start its agent, and let UDP through to its endpoint and back",
            ),
        }
    }
}
