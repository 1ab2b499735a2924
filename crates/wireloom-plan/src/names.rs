//! Endpoints by name: which name to look up and when, and which address to use.
//!
//! ```text
//!  mesh ──▶ Names::set_mesh ─┐
//!  device ──▶ Silence::look ─┼─▶ Names::next ──▶ the system's resolver ──▶ Names::answer ──▶ Names::addresses
//!                            └── Names::set_silent
//! ```
//!
//! A name is looked up when it is new, and again while a lookup fails or a peer of it does not answer: after 5 s, then
//! after twice as long each time, up to 5 minutes. One name is looked up at a time, so a name server that does not
//! answer gets no crowd of questions. Names that failed wait behind all that did not, so even thousands of bad names do
//! not hold up a good one for longer than one lookup takes.
//!
//! Times are durations on a clock that nobody sets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use wireloom_types::{PublicKey, limits::REJECT_AFTER_TIME};

use crate::{cluster::Cluster, endpoint_name::EndpointName, proofs::scatter, warning::Warning};

/// How long after a lookup the next one of the same name is, at the earliest: as long as a device waits for the answer
/// to an initiation (REKEY_TIMEOUT, section 6.1 of the WireGuard paper).
const FIRST_WAIT: Duration = Duration::from_secs(5);

/// The longest wait.
const LAST_WAIT: Duration = Duration::from_secs(300);

/// Waits are spread over this much more, so that the agents of a fleet do not ask the name server at once: one part of
/// this many.
const SPREAD: u32 = 4;

/// The names of a mesh, and what is known of them. Starts empty.
#[derive(Debug, Clone)]
pub struct Names {
    seed: u64,
    entries: BTreeMap<EndpointName, Entry>,
    /// The addresses that an earlier agent knew, until the first mesh.
    earlier: BTreeMap<EndpointName, SocketAddr>,
    /// The name that is looked up now.
    asked: Option<EndpointName>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// The nodes whose endpoint it is.
    nodes: BTreeSet<String>,
    address: Option<SocketAddr>,
    /// Why the last lookup failed.
    error: Option<String>,
    /// How many lookups failed since the last that did not.
    failures: u32,
    /// A peer of this name does not answer.
    silent: bool,
    /// When the last lookup ended.
    ended: Option<Duration>,
    /// How many lookups there were since all was well.
    times: u32,
}

impl Entry {
    /// When it is to be looked up; `None` while all is well.
    fn next(&self, name: &EndpointName, seed: u64) -> Option<Duration> {
        match self.ended {
            None => Some(Duration::ZERO),
            Some(ended) if self.silent || self.error.is_some() => Some(ended + self.wait(name, seed)),
            Some(_) => None,
        }
    }

    fn wait(&self, name: &EndpointName, seed: u64) -> Duration {
        let doublings = self.times.saturating_sub(1).min(16);
        let wait = (FIRST_WAIT * (1 << doublings)).min(LAST_WAIT);
        let share = scatter(seed, name.host(), self.times.into()) as f64 / u64::MAX as f64;
        wait + (wait / SPREAD).mul_f64(share)
    }
}

impl Names {
    /// Starts without names. Agents with different seeds ask at different times. `recorded` is the mesh that was in
    /// force before: its addresses are used until a lookup succeeds.
    pub fn new(seed: u64, recorded: Option<&Cluster>) -> Self {
        let earlier = recorded.map(Cluster::known_addresses).unwrap_or_default();
        Self { seed, entries: BTreeMap::new(), earlier, asked: None }
    }

    /// Takes the names of a mesh, except that of this node, `own`. Names that are no longer in it are forgotten.
    pub fn set_mesh(&mut self, mesh: &Cluster, own: &str) {
        let mut named: BTreeMap<&EndpointName, BTreeSet<String>> = BTreeMap::new();
        for (node, record) in mesh.nodes.iter().filter(|(node, _)| *node != own) {
            if let Some(name) = &record.endpoint_name {
                named.entry(name).or_default().insert(node.clone());
            }
        }
        self.entries.retain(|name, _| named.contains_key(name));
        for (name, nodes) in named {
            let address = self.earlier.get(name).copied();
            let new = || Entry { address, ..Entry::default() };
            self.entries.entry(name.clone()).or_insert_with(new).nodes = nodes;
        }
        self.earlier.clear();
    }

    /// Takes which of the names have a peer that does not answer.
    pub fn set_silent(&mut self, silent: &BTreeSet<EndpointName>) {
        for (name, entry) in &mut self.entries {
            entry.silent = silent.contains(name);
            if !entry.silent && entry.error.is_none() {
                entry.times = 0;
            }
        }
    }

    /// Has all names looked up again now: somebody knows that they changed.
    pub fn ask_again(&mut self) {
        for entry in self.entries.values_mut() {
            (entry.ended, entry.times) = (None, 0);
        }
    }

    /// Whether there is nothing to look up, ever, until a mesh has names.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The name that is looked up now.
    pub fn asked(&self) -> Option<&EndpointName> {
        self.asked.as_ref()
    }

    /// When a name is to be looked up next; `None` while one is, or when none is to be.
    pub fn due(&self) -> Option<Duration> {
        let times = || self.entries.iter().filter_map(|(name, entry)| entry.next(name, self.seed));
        if self.asked.is_some() { None } else { times().min() }
    }

    /// The name to look up now. The next one is returned after the [`answer`](Self::answer).
    pub fn next(&mut self, now: Duration) -> Option<EndpointName> {
        if self.asked.is_some() {
            return None;
        }
        let times = self.entries.iter().filter_map(|(name, entry)| {
            let next = entry.next(name, self.seed).filter(|next| *next <= now)?;
            Some(((entry.failures, next), name))
        });
        self.asked = times.min().map(|(_, name)| name.clone());
        self.asked.clone()
    }

    /// Takes the answer of the resolver for the name that was returned last: addresses in its order of preference, or
    /// an error. The present address stays if it is among them. Returns whether the address of the name changed.
    pub fn answer(&mut self, found: Result<Vec<SocketAddr>, String>, now: Duration) -> bool {
        let Some(entry) = self.asked.take().and_then(|name| self.entries.get_mut(&name)) else {
            return false;
        };
        entry.ended = Some(now);
        entry.times = entry.times.saturating_add(1);
        let found = found.and_then(|found| match found.first() {
            Some(first) => Ok(entry.address.filter(|present| found.contains(present)).unwrap_or(*first)),
            None => Err("the name has no address".to_owned()),
        });
        match found {
            Ok(address) => {
                (entry.error, entry.failures) = (None, 0);
                entry.address.replace(address) != Some(address)
            }
            Err(error) => {
                entry.error = Some(error);
                entry.failures = entry.failures.saturating_add(1);
                false
            }
        }
    }

    /// The addresses that are known.
    pub fn addresses(&self) -> BTreeMap<EndpointName, SocketAddr> {
        self.entries.iter().filter_map(|(name, entry)| Some((name.clone(), entry.address?))).collect()
    }

    /// The address of a name, if it is known.
    pub fn address(&self, name: &EndpointName) -> Option<SocketAddr> {
        self.entries.get(name)?.address
    }

    /// The names whose last lookup failed, one warning for each node.
    pub fn warnings(&self) -> BTreeSet<Warning> {
        let failed =
            self.entries.iter().filter_map(|(name, entry)| Some((name, entry, entry.error.as_ref()?)));
        let warnings = failed.flat_map(|(name, entry, error)| {
            entry.nodes.iter().map(move |node| Warning::Unresolved {
                node: node.clone(),
                endpoint: name.to_string(),
                error: error.clone(),
            })
        });
        warnings.collect()
    }
}

/// What a device shows of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The time since the last handshake, if there was one.
    pub handshake_age: Option<Duration>,
    /// Bytes sent to the peer, handshakes included.
    pub sent: u64,
}

/// Finds the peers that do not answer. Starts empty.
#[derive(Debug, Clone, Default)]
pub struct Silence {
    /// The peers at the last look: the bytes sent, and whether it was silent.
    peers: BTreeMap<PublicKey, (u64, bool)>,
}

impl Silence {
    /// Takes what the device shows of all its peers, and returns those whose handshake is overdue: those that have
    /// never answered, and those to which something is sent although the session with them has ended.
    pub fn look(&mut self, peers: impl Iterator<Item = (PublicKey, Heard)>) -> BTreeSet<PublicKey> {
        let before = std::mem::take(&mut self.peers);
        let judged = peers.map(|(key, heard)| {
            let silent = match (heard.handshake_age, before.get(&key)) {
                (None, _) => true,
                (Some(age), _) if age <= REJECT_AFTER_TIME => false,
                (Some(_), before) => before.is_some_and(|(sent, silent)| *silent || heard.sent > *sent),
            };
            (key, (heard.sent, silent))
        });
        self.peers = judged.collect();
        self.peers.iter().filter(|(_, (_, silent))| *silent).map(|(key, _)| *key).collect()
    }
}
