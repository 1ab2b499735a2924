//! Judges each other node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ipnet::IpNet;
use wireloom_types::{PublicKey, limits::REJECT_AFTER_TIME};

use super::{
    DeviceFacts, Difference, Encryption, Facts, LeftOut, PeerFacts, PeerHealth, PeerState, Refused, Why,
    foreign_rules::Catching, own::Own,
};
use crate::{
    address_range::AddressRange,
    cluster::Node,
    firewall::GuardSet,
    op::{DeviceOp, Op, SetPeer},
    proofs::{Account, Because},
    settings::UnprovenPeers,
};

/// By how much the beginning of a silence and a handshake may be off: both are rounded to seconds.
const ROUNDING: Duration = Duration::from_secs(2);

/// What every peer is judged by.
pub(super) struct Judge<'a> {
    facts: &'a Facts<'a>,
    own: &'a Own<'a>,
    /// Rules that take packets away from ours whatever else they have.
    catching: Vec<&'a Catching<'a>>,
    on_device: Option<&'a BTreeMap<PublicKey, PeerFacts>>,
    /// What the guard refuses on its way out, sorted.
    refused_out: Vec<AddressRange>,
    /// The peers that an agent would add or change.
    to_set: BTreeMap<PublicKey, &'a SetPeer>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(facts: &'a Facts<'a>, own: &'a Own<'a>, catching: &'a [Catching<'a>]) -> Self {
        let ops = facts.plan.into_iter().flat_map(|plan| &plan.ops);
        let set = ops.filter_map(|op| match op {
            Op::Device(DeviceOp::SetPeer(peer)) => Some((peer.public_key, peer)),
            _ => None,
        });
        let guarded = facts.observed.guarded.iter();
        let refused_out = guarded.filter(|element| element.set == GuardSet::RefusedOut);
        Self {
            facts,
            own,
            catching: catching.iter().filter(|rule| !rule.sometimes).collect(),
            on_device: match facts.device {
                DeviceFacts::Answers { peers, .. } => Some(peers),
                _ => None,
            },
            refused_out: refused_out.map(|element| element.addresses).collect(),
            to_set: set.collect(),
        }
    }

    /// All other nodes by name, then the peers of the device that no node has.
    pub(super) fn peers(&self) -> Vec<PeerHealth> {
        let nodes = self.facts.cluster.into_iter().flat_map(|cluster| &cluster.nodes);
        let others = nodes.filter(|(name, _)| **name != self.facts.settings.node);
        let mut peers: Vec<_> = others.map(|(name, node)| self.node(name, node)).collect();
        let known: BTreeSet<PublicKey> = peers.iter().filter_map(|peer| peer.public_key).collect();
        let unknown = self.on_device.into_iter().flatten().filter(|(key, _)| !known.contains(key));
        peers.extend(unknown.map(|(key, peer)| self.stranger(*key, peer)));
        peers
    }

    fn node(&self, name: &str, node: &Node) -> PeerHealth {
        let facts = self.facts;
        let account = facts.accounts.get(name);
        let peer = node.public_key.and_then(|key| self.on_device?.get(&key));
        let state = self.state(node, peer, account);
        PeerHealth {
            name: name.to_owned(),
            public_key: node.public_key,
            encrypted: self.encryption(node, account, &state),
            state,
            endpoint: peer.and_then(|peer| peer.endpoint).or(node.endpoint),
            last_handshake_age: peer.and_then(|peer| self.handshake_age(peer)),
            received: peer.map_or(0, |peer| peer.received),
            sent: peer.map_or(0, |peer| peer.sent),
            refused: facts.refused.get(name).copied().unwrap_or_default(),
        }
    }

    fn stranger(&self, key: PublicKey, peer: &PeerFacts) -> PeerHealth {
        PeerHealth {
            name: key.to_string(),
            public_key: Some(key),
            state: PeerState::OutOfDate { what: Difference::Unknown },
            encrypted: Encryption::Refused { why: Why::OutOfDate },
            endpoint: peer.endpoint,
            last_handshake_age: self.handshake_age(peer),
            received: peer.received,
            sent: peer.sent,
            refused: Refused::default(),
        }
    }

    fn state(&self, node: &Node, peer: Option<&PeerFacts>, account: Option<&Account>) -> PeerState {
        let to_set = node.public_key.and_then(|key| self.to_set.get(&key));
        match (peer, node.public_key) {
            // The device's peer with that key is another node.
            _ if has_key_of_another(account) => PeerState::LeftOut { reason: left_out(node, account) },
            (Some(peer), Some(key)) => match to_set {
                Some(to_set) if self.differs(to_set, peer) => {
                    PeerState::OutOfDate { what: Difference::Differs }
                }
                _ => self.answering(key, peer, account),
            },
            _ if to_set.is_some() => PeerState::OutOfDate { what: Difference::Missing },
            (None, Some(_)) if self.on_device.is_none() && may_be_peer(account) => PeerState::Idle,
            _ => PeerState::LeftOut { reason: left_out(node, account) },
        }
    }

    /// Whether the device has other allowed-IPs or another endpoint than it should. Keepalives change with every proof,
    /// and say nothing.
    fn differs(&self, to_set: &SetPeer, peer: &PeerFacts) -> bool {
        let device = self.facts.observed.device.as_ref();
        let has = device.and_then(|device| device.peers.get(&to_set.public_key));
        has.is_none_or(|has| has.allowed_ips != to_set.allowed_ips)
            || to_set.endpoint.is_some_and(|endpoint| peer.endpoint != Some(endpoint))
    }

    fn answering(&self, key: PublicKey, peer: &PeerFacts, account: Option<&Account>) -> PeerState {
        let trends = self.facts.trends;
        // On the clock of the facts: somebody may have set it since.
        let ago = |lasted| self.facts.now.saturating_sub(lasted);
        let silent = trends.and_then(|trends| trends.silence(key));
        // What the agent saw may be some seconds old.
        let silent = silent.filter(|lasted| !self.has_answered_since(ago(*lasted), peer));
        match (self.handshake_age(peer), silent) {
            (Some(_), Some(lasted)) => PeerState::Silent { since: ago(lasted) },
            (Some(age), None) if age <= REJECT_AFTER_TIME.as_secs() => PeerState::Up,
            (Some(_), None) => PeerState::Idle,
            (None, _) if peer.sent == 0 => PeerState::Idle,
            (None, _) => {
                let unanswered = trends.and_then(|trends| trends.unanswered_for(key)).map(ago);
                let awaited = match account {
                    Some(Account::Unproven { since, .. }) => Some(*since),
                    _ => None,
                };
                PeerState::NeverAnswered { since: unanswered.or(awaited) }
            }
        }
    }

    /// Whether a handshake has completed after a silence began. One later than now says nothing: the clock was set
    /// back.
    fn has_answered_since(&self, silent: Duration, peer: &PeerFacts) -> bool {
        peer.last_handshake.is_some_and(|handshake| {
            handshake > silent.saturating_add(ROUNDING) && handshake.as_secs() <= self.facts.now.as_secs()
        })
    }

    /// Seconds; zero when the clock was set back since then.
    fn handshake_age(&self, peer: &PeerFacts) -> Option<u64> {
        peer.last_handshake.map(|then| self.facts.now.saturating_sub(then).as_secs())
    }

    fn encryption(&self, node: &Node, account: Option<&Account>, state: &PeerState) -> Encryption {
        let proven = matches!(account, Some(Account::Proven { .. }));
        let rejects = self.facts.settings.unproven_peers == UnprovenPeers::Reject;
        let is_guarded = self.own.guards && (proven || rejects || self.refuses(node));
        let caught = || {
            let mut remote = node.workloads.iter();
            remote.any(|remote| self.catching.iter().any(|rule| rule.takes(*remote)))
        };
        let astray = self.own.astray.concerns(node);
        let is_led_past = || {
            let lacks_rules = self.own.obstacles.contains(&Why::NoRules);
            lacks_rules || caught() || (astray && !self.own.astray.refuses(node))
        };
        let blocked = |why| match why {
            // What a device or a peer does not take goes nowhere else, if it is led there.
            Why::NoDevice | Why::OurKey | Why::OutOfDate | Why::NoAnswer | Why::NoRoute
                if proven && !is_led_past() =>
            {
                Encryption::Refused { why }
            }
            _ if is_guarded => Encryption::Refused { why },
            _ => Encryption::Plaintext { why },
        };
        match state {
            PeerState::LeftOut { reason: LeftOut::Gone } => blocked(Why::Gone),
            PeerState::LeftOut { .. } => blocked(Why::LeftOut),
            _ if !self.own.obstacles.is_empty() => blocked(self.own.obstacles[0]),
            _ if proven && astray => blocked(Why::NoRoute),
            PeerState::OutOfDate { what: Difference::Missing } => blocked(Why::OutOfDate),
            _ if !proven => blocked(Why::Unproven),
            _ if caught() => blocked(Why::ForeignRule),
            PeerState::OutOfDate { .. } if self.lacks_allowed_ips(node) => blocked(Why::OutOfDate),
            PeerState::NeverAnswered { .. } | PeerState::Silent { .. } => blocked(Why::NoAnswer),
            _ => Encryption::Encrypted,
        }
    }

    /// Whether the guard's sets in the kernel refuse all that is sent to a node in plaintext.
    fn refuses(&self, node: &Node) -> bool {
        let refused = |to: IpNet| {
            let (first, last) = (to.network(), to.broadcast());
            // They do not overlap.
            let after = self.refused_out.partition_point(|range| range.first() <= first);
            let range = after.checked_sub(1).map(|place| self.refused_out[place]);
            range.is_some_and(|range| range.contains(first) && range.contains(last))
        };
        let mut prefixes = self.own.astray.prefixes(node).peekable();
        prefixes.peek().is_some() && prefixes.all(refused)
    }

    /// Whether the device takes less for it than it should.
    fn lacks_allowed_ips(&self, node: &Node) -> bool {
        let Some(key) = node.public_key else { return false };
        let device = self.facts.observed.device.as_ref();
        let has = device.and_then(|device| device.peers.get(&key));
        let to_set = self.to_set.get(&key);
        to_set.is_some_and(|to_set| has.is_none_or(|has| !to_set.allowed_ips.is_subset(&has.allowed_ips)))
    }
}

fn has_key_of_another(account: Option<&Account>) -> bool {
    let Some(Account::Unproven { because, .. }) = account else { return false };
    matches!(because, Because::OwnKey | Because::SharedKey { .. })
}

/// Whether nothing in its record keeps it from being a peer.
fn may_be_peer(account: Option<&Account>) -> bool {
    !matches!(
        account,
        Some(Account::Unproven {
            because: Because::NoKey
                | Because::OwnKey
                | Because::SharedKey { .. }
                | Because::ItDoesNotEncrypt
                | Because::WeDoNotEncrypt
                | Because::OurKeyUnknown,
            ..
        })
    )
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
        // Every node that the mesh has, has an account.
        None if node.public_key.is_none() => LeftOut::Gone,
        _ if node.public_key.is_none() => LeftOut::NoKey,
        _ if !node.encrypt => LeftOut::ItDoesNotEncrypt,
        _ => LeftOut::Unexplained,
    }
}
