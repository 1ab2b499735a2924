//! A mesh of four nodes as node `a` sees it, and its proofs.

use std::{collections::BTreeSet, time::Duration};

use ipnet::IpNet;
use wireloom_plan::{
    cluster::{Cluster, Node},
    proofs::{Memory, Proofs},
    standing::Standing,
};
use wireloom_types::PublicKey;

/// Saturday, 28 November 2026.
pub(crate) const START: Duration = Duration::from_secs(1_795_824_000);

pub(crate) fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// Nodes `a`, `b`, `c` and `d`, with the keys 1 to 4 and the workloads `10.161.1.0/24` to `10.161.4.0/24`.
pub(crate) fn mesh() -> Cluster {
    let node = |number: u8| Node {
        public_key: Some(key(number)),
        endpoint: Some(format!("192.0.2.{number}:51820").parse().unwrap()),
        addresses: [format!("192.0.2.{number}").parse().unwrap()].into(),
        workloads: [net(&format!("10.161.{number}.0/24"))].into(),
        ..Node::default()
    };
    let nodes = ["a", "b", "c", "d"].into_iter().zip(1..);
    Cluster {
        pools: [net("10.161.0.0/16")].into(),
        nodes: nodes.map(|(name, number)| (name.to_owned(), node(number))).collect(),
        ..Cluster::default()
    }
}

/// Node `a`.
pub(crate) struct World {
    pub(crate) proofs: Proofs,
    /// What its membership says.
    pub(crate) mesh: Cluster,
    /// What its planner gets.
    pub(crate) effective: Cluster,
    pub(crate) handshakes: BTreeSet<PublicKey>,
    pub(crate) now: Duration,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut proofs = Proofs::new("a".to_owned(), key(1), Memory::default());
        let effective = proofs.set_cluster(mesh(), START);
        Self { proofs, mesh: mesh(), effective, handshakes: BTreeSet::new(), now: START }
    }

    /// With a proof of `b` that is old enough for everything.
    pub(crate) fn with_b() -> Self {
        let mut world = Self::new();
        world.handshake(2);
        world.pass(20.0);
        assert!(world.standing("b").unwrap().ingress);
        world
    }

    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut Cluster)) {
        change(&mut self.mesh);
        self.effective = self.proofs.set_cluster(self.mesh.clone(), self.now);
    }

    pub(crate) fn edit_node(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        self.edit(|mesh| change(mesh.nodes.get_mut(name).unwrap()));
    }

    pub(crate) fn handshake(&mut self, number: u8) {
        self.handshakes.insert(key(number));
        self.pass(0.0);
    }

    /// Lets seconds pass, and looks.
    pub(crate) fn pass(&mut self, passed: f64) {
        self.now += seconds(passed);
        self.look();
    }

    pub(crate) fn look(&mut self) {
        if let Some(effective) = self.proofs.look(&self.handshakes, self.now) {
            self.effective = effective;
        }
    }

    /// The agent is killed and starts again with the device as it was.
    pub(crate) fn restart(&mut self) {
        let remembered = serde_json::to_string(self.proofs.memory()).unwrap();
        let memory: Memory = serde_json::from_str(&remembered).unwrap();
        assert_eq!(&memory, self.proofs.memory());
        self.proofs = Proofs::new("a".to_owned(), key(1), memory);
        self.effective = self.proofs.set_cluster(self.mesh.clone(), self.now);
    }

    pub(crate) fn standing(&self, name: &str) -> Option<Standing> {
        self.proofs.standings().get(name).copied()
    }

    /// Whether traffic for and from a node is encrypted or refused.
    pub(crate) fn refuses(&self, name: &str) -> [bool; 2] {
        self.standing(name).map_or([false; 2], |standing| [standing.egress, standing.ingress])
    }

    pub(crate) fn has(&self, name: &str, block: &str) -> bool {
        self.effective.nodes.get(name).is_some_and(|node| node.workloads.contains(&net(block)))
    }
}
