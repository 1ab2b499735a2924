//! Removals of many nodes at once are held back for 30 s, under virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::{collection, prelude::*};
use wireloom_plan::{
    cluster::{Cluster, Node},
    holdback::{HOLD, Holdback},
};
use wireloom_types::PublicKey;

const OWN: &str = "own";

/// The mesh in force, with the clock of the one who holds back.
#[derive(Default)]
struct Mesh {
    holdback: Holdback,
    in_force: Option<Cluster>,
}

impl Mesh {
    /// A mesh of this node and peers with these numbers, in force for long.
    fn of(peers: &[u8]) -> Self {
        Self { holdback: Holdback::default(), in_force: Some(cluster(peers)) }
    }

    fn take(&mut self, snapshot: Cluster, now: Duration) {
        self.in_force = Some(self.holdback.take(self.in_force.as_ref(), snapshot, OWN, now));
    }

    /// Takes a mesh of these peers, at this second.
    fn see(&mut self, peers: &[u8], second: u64) {
        self.take(cluster(peers), Duration::from_secs(second));
    }

    fn tick(&mut self, now: Duration) {
        if let Some(rest) = self.in_force.as_ref().and_then(|in_force| self.holdback.let_go(in_force, now)) {
            self.in_force = Some(rest);
        }
    }

    #[track_caller]
    fn is(&self, peers: &[u8]) {
        assert_eq!(self.in_force.as_ref(), Some(&cluster(peers)));
    }

    /// The held nodes, and the second until which they are.
    fn held(&self) -> (Vec<String>, u64) {
        let held = self.holdback.held();
        held.map(|held| (held.nodes, held.until.as_secs())).unwrap_or_default()
    }
}

fn cluster(peers: &[u8]) -> Cluster {
    let nodes = peers.iter().map(|number| (name(*number), node(*number)));
    Cluster {
        pools: BTreeSet::from(["10.161.0.0/16".parse().unwrap()]),
        nodes: nodes.chain([(OWN.to_owned(), node(0))]).collect(),
        ..Cluster::default()
    }
}

fn name(number: u8) -> String {
    format!("n{number}")
}

fn node(number: u8) -> Node {
    Node {
        public_key: Some(PublicKey::from_bytes([number; 32])),
        addresses: [format!("192.168.1.{number}").parse().unwrap()].into(),
        workloads: [format!("10.161.{number}.0/24").parse().unwrap()].into(),
        link_addresses: [format!("100.64.0.{number}").parse().unwrap()].into(),
        ..Node::default()
    }
}

fn names(numbers: &[u8]) -> Vec<String> {
    numbers.iter().copied().map(name).collect()
}

#[test]
fn a_few_removals_are_obeyed_at_once() {
    // Half is not more than half, and two are not three.
    for (before, after) in [(&[1, 2, 3, 4, 5, 6][..], &[1, 2, 3][..]), (&[1, 2, 3], &[1]), (&[1], &[])] {
        let mut mesh = Mesh::of(before);
        mesh.see(after, 0);
        mesh.is(after);
        assert_eq!(mesh.holdback.held(), None);
    }
}

#[test]
fn most_removals_are_held_for_30_s_and_then_obeyed() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5]);
    mesh.see(&[1, 2], 7);
    mesh.is(&[1, 2, 3, 4, 5]);
    assert_eq!(mesh.held(), (names(&[3, 4, 5]), 37));
    assert_eq!(mesh.holdback.due(), Some(Duration::from_secs(37)));
    // The same again does not begin anew.
    mesh.see(&[1, 2], 20);
    assert_eq!(mesh.held(), (names(&[3, 4, 5]), 37));
    mesh.tick(Duration::from_millis(36_999));
    mesh.is(&[1, 2, 3, 4, 5]);
    mesh.tick(Duration::from_secs(37));
    mesh.is(&[1, 2]);
    assert_eq!((mesh.holdback.held(), mesh.holdback.due()), (None, None));
    mesh.see(&[1, 2], 38);
    mesh.is(&[1, 2]);
}

#[test]
fn a_snapshot_that_comes_when_the_time_is_over_does_not_begin_the_hold_anew() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5]);
    mesh.see(&[1, 2], 0);
    mesh.see(&[1, 2], 30);
    mesh.is(&[1, 2]);
    assert_eq!(mesh.holdback.held(), None);
}

#[test]
fn nodes_that_come_back_end_the_hold() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5]);
    mesh.see(&[1], 0);
    mesh.see(&[1, 2, 3, 4, 5], 10);
    assert_eq!(mesh.holdback.held(), None);
    mesh.is(&[1, 2, 3, 4, 5]);
    // The next hold takes its whole time.
    mesh.see(&[1], 20);
    assert_eq!(mesh.held(), (names(&[2, 3, 4, 5]), 50));
    // If most come back, what is still missing are few, and they go.
    mesh.see(&[1, 2, 3, 4], 25);
    mesh.is(&[1, 2, 3, 4]);
    assert_eq!(mesh.holdback.held(), None);
}

#[test]
fn an_operator_who_means_it_is_obeyed_at_once() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5, 6, 7, 8]);
    mesh.see(&[1, 2], 0);
    let now = Duration::from_secs(5);
    let meant = mesh.holdback.take_as_meant(mesh.in_force.as_ref(), cluster(&[1, 2]), now);
    mesh.in_force = Some(meant);
    mesh.is(&[1, 2]);
    assert_eq!((mesh.holdback.held(), mesh.holdback.due()), (None, None));
    // What was meant does not count any more.
    mesh.see(&[1], 6);
    mesh.is(&[1]);
}

#[test]
fn small_steps_are_no_way_around() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5, 6, 7, 8]);
    mesh.see(&[1, 2, 3, 4, 5, 6], 0);
    mesh.is(&[1, 2, 3, 4, 5, 6]);
    mesh.see(&[1, 2, 3, 4], 10);
    mesh.is(&[1, 2, 3, 4]);
    // Five of the eight from second 0.
    mesh.see(&[1, 2, 3], 20);
    mesh.is(&[1, 2, 3, 4]);
    assert_eq!(mesh.held(), (names(&[4]), 50));
    // With time between them, steps are no accident.
    let mut mesh = Mesh::of(&[1, 2, 3, 4, 5, 6, 7, 8]);
    mesh.see(&[1, 2, 3, 4], 0);
    mesh.see(&[1, 2], 30);
    mesh.is(&[1, 2]);
}

#[test]
fn new_nodes_do_not_dilute_the_old_ones() {
    let old: Vec<u8> = (1..=6).collect();
    let new: Vec<u8> = (11..=40).collect();
    // With the removal, or while it is pending.
    for steps in [&[0][..], &[0, 10], &[0, 10, 20]] {
        let mut mesh = Mesh::of(&old);
        for second in steps {
            let added = if *second == 0 && steps.len() > 1 { &[][..] } else { &new };
            mesh.see(&[&[1, 2], added].concat(), *second);
        }
        assert_eq!(mesh.held(), (names(&[3, 4, 5, 6]), 30), "{steps:?}");
        for number in new.iter().chain(&old) {
            assert!(mesh.in_force.as_ref().unwrap().nodes.contains_key(&name(*number)), "{number}");
        }
    }
}

#[test]
fn own_node_is_no_peer_and_never_held() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4]);
    let mut cut = cluster(&[1]);
    cut.nodes.remove(OWN);
    mesh.take(cut, Duration::ZERO);
    assert_eq!(mesh.held(), (names(&[2, 3, 4]), 30));
    assert!(!mesh.in_force.unwrap().nodes.contains_key(OWN));
    // Of two peers both may go, whatever happens to this node.
    let mut mesh = Mesh::of(&[1, 2]);
    mesh.take(Cluster::default(), Duration::ZERO);
    assert_eq!(mesh.in_force, Some(Cluster::default()));
}

#[test]
fn the_first_mesh_of_all_is_obeyed() {
    let mut mesh = Mesh::default();
    mesh.see(&[1, 2, 3], 0);
    mesh.is(&[1, 2, 3]);
    mesh.see(&[], 1);
    mesh.is(&[1, 2, 3]);
}

#[test]
fn what_another_node_claims_goes_to_that_one_and_comes_back() {
    let mut mesh = Mesh::of(&[1, 2, 3, 4]);
    let mut cut = cluster(&[1]);
    let heir = Node {
        public_key: node(2).public_key,
        workloads: node(3).workloads,
        addresses: node(4).addresses,
        link_addresses: node(2).link_addresses,
        ..Node::default()
    };
    cut.nodes.insert("heir".into(), heir.clone());
    mesh.take(cut, Duration::ZERO);
    let nodes = &mesh.in_force.as_ref().unwrap().nodes;
    assert_eq!(nodes["heir"], heir);
    let bare = |node: Node| Node { public_key: None, link_addresses: BTreeSet::new(), ..node };
    assert_eq!(nodes["n2"], bare(node(2)));
    assert_eq!(nodes["n3"], Node { workloads: BTreeSet::new(), ..node(3) });
    assert_eq!(nodes["n4"], Node { addresses: BTreeSet::new(), ..node(4) });
    // The heir goes, and the held nodes are as they were.
    mesh.see(&[1], 5);
    let nodes = &mesh.in_force.as_ref().unwrap().nodes;
    for number in [2, 3, 4] {
        assert_eq!(nodes[&name(number)], node(number));
    }
}

/// What happens next: after so many milliseconds, a snapshot has these peers (of 12), or it is only time that passes.
fn steps() -> impl Strategy<Value = Vec<(u64, Option<BTreeSet<u8>>)>> {
    let peers = prop_oneof![
        collection::btree_set(1..=12_u8, 0..=12),
        // Nearly all, so that small steps come often.
        collection::btree_set(1..=12_u8, 0..=3)
            .prop_map(|without| (1..=12).filter(|number| !without.contains(number)).collect()),
    ];
    collection::vec((0..20_000_u64, prop::option::weighted(0.8, peers)), 1..30)
}

proptest! {
    /// A snapshot is in force at once but for what it lacks, which is in force as it was, and goes when it has been
    /// missing for 30 s.
    #[test]
    fn all_but_removals_is_obeyed_and_removals_are_in_the_end(steps in steps()) {
        let mut mesh = Mesh::of(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut now = Duration::ZERO;
        let mut last = mesh.in_force.clone().unwrap();
        for (pause, snapshot) in steps {
            now += Duration::from_millis(pause);
            let before = mesh.in_force.clone().unwrap();
            if let Some(peers) = snapshot {
                last = cluster(&peers.into_iter().collect::<Vec<_>>());
                mesh.take(last.clone(), now);
            } else {
                mesh.tick(now);
            }
            let in_force = mesh.in_force.clone().unwrap();
            let held = mesh.held().0;
            for (name, node) in &last.nodes {
                prop_assert_eq!(in_force.nodes.get(name), Some(node));
            }
            let extra: Vec<_> =
                in_force.nodes.keys().filter(|name| !last.nodes.contains_key(*name)).cloned().collect();
            prop_assert_eq!(&extra, &held);
            prop_assert!(held.iter().all(|name| before.nodes.contains_key(name)));
            prop_assert!(mesh.holdback.due().is_none_or(|due| now < due && due <= now + HOLD));
        }
        mesh.tick(now + HOLD);
        prop_assert_eq!(mesh.in_force, Some(last));
        prop_assert_eq!(mesh.holdback.held(), None);
    }

    /// Whatever the steps: of the peers that were in force when the first of the missing ones went missing, no more
    /// than half, or two, have gone before their 30 s were over.
    #[test]
    fn most_peers_never_go_before_they_have_been_missing_for_30_s(steps in steps()) {
        let mut mesh = Mesh::of(&[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut now = Duration::ZERO;
        let peers = |mesh: &Mesh| -> BTreeSet<String> {
            let nodes = mesh.in_force.iter().flat_map(|mesh| mesh.nodes.keys());
            nodes.filter(|name| *name != OWN).cloned().collect()
        };
        let mut missing: BTreeMap<String, Duration> = BTreeMap::new();
        // The peers in force before the first step of each moment.
        let mut history: BTreeMap<Duration, BTreeSet<String>> = BTreeMap::new();
        for (pause, snapshot) in steps {
            now += Duration::from_millis(pause);
            history.entry(now).or_insert_with(|| peers(&mesh));
            mesh.tick(now);
            missing.retain(|_, since| *since + HOLD > now);
            let Some(snapshot) = snapshot else { continue };
            let snapshot: Vec<u8> = snapshot.into_iter().collect();
            let listed = names(&snapshot);
            let before = peers(&mesh);
            missing.retain(|name, _| !listed.contains(name));
            for name in before.iter().filter(|name| !listed.contains(name)) {
                missing.entry(name.clone()).or_insert(now);
            }
            mesh.take(cluster(&snapshot), now);
            let after = peers(&mesh);
            let Some(first) = missing.values().min().filter(|_| !before.is_subset(&after)) else { continue };
            let then = &history[first];
            let gone = then.iter().filter(|name| missing.contains_key(*name) && !after.contains(*name)).count();
            prop_assert!(gone < 3 || 2 * gone <= then.len(), "{gone} of {then:?} since {first:?}");
        }
    }
}
