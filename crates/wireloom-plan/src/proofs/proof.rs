//! The proof of one node, and how it ages.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wireloom_types::PublicKey;

use super::{GIVEN_UP, Standing};
use crate::cluster::Node;

/// How long one side waits for the other: after a proof, before it takes nothing in plaintext any more; after
/// `encrypt = false`, before it sends plaintext. The two learn of it at different times: a keepalive can be lost (one
/// is sent every three seconds), and a mesh file reaches its nodes one after the other.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long after a node has become direct its peer stays in the device: the other side may become direct that much
/// later, and encrypts until then.
const LINGER: Duration = Duration::from_secs(60);

/// What outlives the agent: the proven nodes, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The proof of each.
    pub nodes: BTreeMap<String, Proof>,
}

/// The proof of one node. Times are since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The key that it proved last.
    pub(super) key: PublicKey,
    /// When it was proven.
    pub(super) since: Duration,
    /// Whether nothing is taken from it in plaintext any more.
    pub(super) ingress: bool,
    /// When its record or ours began to say `encrypt = false`.
    pub(super) ending: Option<Duration>,
    /// Whether that was long enough ago for it to be direct.
    pub(super) direct: bool,
    /// When its record vanished.
    pub(super) left: Option<Duration>,
    /// What its record said last.
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) workloads: BTreeSet<IpNet>,
    /// What its record said before, and when that ended.
    pub(super) given_up: BTreeMap<IpNet, Duration>,
}

impl Proof {
    pub(super) fn new(key: PublicKey, node: &Node, now: Duration) -> Self {
        Self {
            key,
            since: now,
            ingress: false,
            ending: None,
            direct: false,
            left: None,
            addresses: node.addresses.clone(),
            workloads: node.workloads.clone(),
            given_up: BTreeMap::new(),
        }
    }

    /// When the node was proven, since 1970.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Whether traffic for its workloads is encrypted or refused.
    pub fn holds(&self) -> bool {
        !self.direct
    }

    /// When the node goes direct again, because its record or ours says `encrypt = false`; since 1970.
    pub fn ends(&self) -> Option<Duration> {
        self.ending.map(|ending| ending.saturating_add(PATIENCE))
    }

    pub(super) fn standing(&self) -> Standing {
        let lasts = self.ending.is_none();
        Standing {
            key: self.key,
            egress: !self.direct,
            ingress: lasts && self.ingress,
            fresh: lasts && !self.ingress && self.left.is_none(),
        }
    }

    /// When it next changes by itself.
    pub(super) fn next_change(&self) -> Option<Duration> {
        let taken = (self.ending.is_none() && !self.ingress).then(|| self.since.saturating_add(PATIENCE));
        let released = self.given_up.values().chain(&self.left).map(|time| time.saturating_add(GIVEN_UP));
        let forgotten = self.ends().map(|end| if self.direct { end.saturating_add(LINGER) } else { end });
        released.chain(taken).chain(forgotten).min()
    }

    /// Copes with a clock that was set back.
    pub(super) fn tolerate(&mut self, now: Duration) {
        let times = [&mut self.since].into_iter().chain(&mut self.ending).chain(&mut self.left);
        for time in times.chain(self.given_up.values_mut()) {
            *time = now.min(*time);
        }
    }

    /// Takes what its record and ours say: whether both encrypt. Returns whether there still is a proof.
    pub(super) fn set_encrypt(&mut self, encrypt: bool, now: Duration) -> bool {
        match (encrypt, self.ending) {
            (true, Some(_)) if self.direct => return false,
            (false, None) => {
                self.ending = Some(now);
                self.ingress = false;
                self.given_up.clear();
            }
            (true, Some(_)) => {
                // The other side may already have forgotten us.
                self.ending = None;
                self.since = now;
            }
            _ => {}
        }
        true
    }

    /// Whether something that it gave up need not be refused any longer.
    pub(super) fn releases(&self, now: Duration) -> bool {
        self.given_up.values().chain(&self.left).any(|time| now >= time.saturating_add(GIVEN_UP))
    }

    /// Lets time pass. Returns whether there still is a proof.
    pub(super) fn go_on(&mut self, now: Duration) -> bool {
        if self.ending.is_none() && now >= self.since.saturating_add(PATIENCE) {
            self.ingress = true;
        }
        self.direct = self.ends().is_some_and(|end| now >= end);
        let forgotten = self.ends().is_some_and(|end| now >= end.saturating_add(LINGER));
        let gone = self.left.is_some_and(|left| now >= left + GIVEN_UP);
        !forgotten && !gone
    }
}
