//! Peers with more than one endpoint: which one to use.
//!
//! ```text
//!  mesh ──▶ Endpoints::choose ──▶ the mesh in force: the endpoint in use first, the others behind it
//!  device ──▶ Silence::look ──▶ Endpoints::look ──▶ whether another one is to be used
//! ```
//!
//! The next endpoint of a peer is used after 15 s in which something was sent to it and no answer came. Once all of
//! them have been tried in vain, each is tried for twice as long, up to 5 minutes: a node that is down must not cost
//! anything. Times are durations on a clock that nobody sets.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry as Slot},
    net::SocketAddr,
    time::Duration,
};

use wireloom_types::PublicKey;

use crate::{
    cluster::{Cluster, Node},
    names::Heard,
};

/// How long an endpoint is tried at first: three initiations of a device (REKEY_TIMEOUT of the WireGuard paper, section
/// 6.1, is 5 s).
const FIRST_WAIT: Duration = Duration::from_secs(15);

/// The longest time for which one is tried.
const LAST_WAIT: Duration = Duration::from_secs(300);

/// The peers with more than one endpoint, by the names of their nodes. Starts empty.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    /// In the order of the mesh; at least two, no two the same.
    all: Vec<SocketAddr>,
    /// The place of the one in use.
    used: usize,
    /// How many were tried in vain since the last answer.
    failures: u32,
    /// Since when the one in use has been tried, and the bytes that the device had sent to the peer then.
    trying: Option<(Duration, u64)>,
}

impl Entry {
    fn new(all: Vec<SocketAddr>) -> Self {
        Self { all, used: 0, failures: 0, trying: None }
    }

    fn wait(&self) -> Duration {
        let rounds = self.failures as usize / self.all.len();
        (FIRST_WAIT * (1 << rounds.min(8))).min(LAST_WAIT)
    }

    /// Whether it is another one's turn.
    fn look(&mut self, is_silent: bool, sent: u64, now: Duration) -> bool {
        if !is_silent {
            (self.failures, self.trying) = (0, None);
            return false;
        }
        let (since, sent_before) = *self.trying.get_or_insert((now, sent));
        // A device without anything to send has not asked for an answer.
        if now < since + self.wait() || sent <= sent_before {
            return false;
        }
        self.used = (self.used + 1) % self.all.len();
        self.failures = self.failures.saturating_add(1);
        self.trying = Some((now, sent));
        true
    }
}

impl Endpoints {
    /// Whether no peer has more than one endpoint.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes a mesh, with its endpoints in whichever order, and puts those in use first. `own` is this node's name.
    pub fn choose(&mut self, mesh: &mut Cluster, own: &str) {
        let has_choice = |node: &Node| node.endpoint_name.is_none() && !node.other_endpoints.is_empty();
        self.entries.retain(|name, _| mesh.nodes.get(name).is_some_and(has_choice));
        for (name, node) in mesh.nodes.iter_mut().filter(|(name, node)| *name != own && has_choice(node)) {
            let mut known = BTreeSet::new();
            let all = node.endpoint.into_iter().chain(node.other_endpoints.iter().copied());
            let all: Vec<_> = all.filter(|endpoint| known.insert(*endpoint)).collect();
            let entry = match self.entries.entry(name.clone()) {
                Slot::Vacant(vacant) => vacant.insert(Entry::new(all)),
                Slot::Occupied(occupied) => {
                    let entry = occupied.into_mut();
                    if entry.all.iter().copied().collect::<BTreeSet<_>>() != known {
                        *entry = Entry::new(all);
                    }
                    entry
                }
            };
            let mut turned = entry.all.clone();
            turned.rotate_left(entry.used);
            node.endpoint = turned.first().copied();
            node.other_endpoints = turned.split_off(1);
        }
    }

    /// Takes what the device shows of the peers, and which of them do not answer. Returns whether another endpoint is
    /// to be used: then [`choose`](Self::choose) puts it first.
    pub fn look(
        &mut self,
        mesh: &Cluster,
        heard: &BTreeMap<PublicKey, Heard>,
        silent: &BTreeSet<PublicKey>,
        now: Duration,
    ) -> bool {
        let mut turns = false;
        for (name, entry) in &mut self.entries {
            let key = mesh.nodes.get(name).and_then(|node| node.public_key);
            let Some((key, heard)) = key.and_then(|key| Some((key, heard.get(&key)?))) else { continue };
            turns |= entry.look(silent.contains(&key), heard.sent, now);
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PublicKey = PublicKey::from_bytes([7; 32]);

    fn mesh(endpoints: &[&str]) -> Cluster {
        let mut endpoints = endpoints.iter().map(|it| it.parse().unwrap());
        let node = Node {
            public_key: Some(KEY),
            endpoint: endpoints.next(),
            other_endpoints: endpoints.collect(),
            ..Node::default()
        };
        Cluster { nodes: [("n2".to_owned(), node)].into(), ..Cluster::default() }
    }

    struct Peer {
        endpoints: Endpoints,
        mesh: Cluster,
        sent: u64,
    }

    impl Peer {
        fn new(of: &[&str]) -> Self {
            let mut peer = Self { endpoints: Endpoints::default(), mesh: mesh(of), sent: 0 };
            peer.endpoints.choose(&mut peer.mesh, "n1");
            peer
        }

        fn used(&self) -> String {
            self.mesh.nodes["n2"].endpoint.unwrap().to_string()
        }

        /// Looks every second until another endpoint is used, and returns how many seconds that took.
        fn seconds_to_the_next(&mut self, begin: u64, limit: u64, sends: bool) -> Option<u64> {
            let found = (begin..begin + limit).find(|second| {
                self.sent += u64::from(sends);
                let heard = Heard { handshake_age: None, sent: self.sent };
                let silent = [KEY].into();
                let at = Duration::from_secs(*second);
                self.endpoints.look(&self.mesh, &[(KEY, heard)].into(), &silent, at)
            })?;
            self.endpoints.choose(&mut self.mesh, "n1");
            Some(found - begin)
        }
    }

    const BOTH: [&str; 2] = ["192.0.2.1:51820", "[2001:db8::1]:51820"];

    #[test]
    fn the_next_one_is_used_after_15_s_without_an_answer_and_each_longer_later() {
        let mut peer = Peer::new(&BOTH);
        assert_eq!(peer.used(), BOTH[0]);
        assert_eq!(peer.seconds_to_the_next(0, 600, true), Some(15));
        assert_eq!(peer.used(), BOTH[1]);
        assert_eq!(peer.seconds_to_the_next(15, 600, true), Some(15));
        assert_eq!(peer.used(), BOTH[0]);
        assert_eq!(peer.seconds_to_the_next(30, 600, true), Some(30));
        let mut now = 60;
        for _ in 0..20 {
            now += peer.seconds_to_the_next(now, 600, true).unwrap();
        }
        assert_eq!(peer.seconds_to_the_next(now, 600, true), Some(300));
    }

    #[test]
    fn one_that_answers_stays_also_when_the_source_delivers_the_record_again() {
        let mut peer = Peer::new(&BOTH);
        peer.seconds_to_the_next(0, 600, true).unwrap();
        let heard = Heard { handshake_age: Some(Duration::ZERO), sent: 9 };
        let look = |peer: &mut Peer, now| {
            let mesh = peer.mesh.clone();
            peer.endpoints.look(&mesh, &[(KEY, heard)].into(), &BTreeSet::new(), Duration::from_secs(now))
        };
        assert!((16..200).all(|now| !look(&mut peer, now)));
        peer.mesh = mesh(&BOTH);
        peer.endpoints.choose(&mut peer.mesh, "n1");
        assert_eq!(peer.used(), BOTH[1]);
        assert_eq!(peer.mesh.nodes["n2"].other_endpoints, [BOTH[0].parse().unwrap()]);
        // Once it is silent again, the wait is short again.
        assert_eq!(peer.seconds_to_the_next(200, 600, true), Some(15));
        peer.mesh = mesh(&[BOTH[1], "192.0.2.9:1"]);
        peer.endpoints.choose(&mut peer.mesh, "n1");
        assert_eq!(peer.used(), BOTH[1], "another record begins with its first");
    }

    #[test]
    fn nothing_turns_while_nothing_is_sent_or_there_is_no_choice() {
        let mut peer = Peer::new(&BOTH);
        assert_eq!(peer.seconds_to_the_next(0, 600, false), None);
        let mut peer = Peer::new(&BOTH[..1]);
        assert!(peer.endpoints.is_empty());
        assert_eq!(peer.seconds_to_the_next(0, 600, true), None);
        // This node's own record is not touched.
        let mut own = mesh(&BOTH);
        peer.endpoints.choose(&mut own, "n2");
        assert_eq!(own, mesh(&BOTH));
    }
}
