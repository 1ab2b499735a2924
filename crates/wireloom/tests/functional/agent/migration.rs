//! From the WireGuard of Calico's Felix to ours, node by node, and back.

use std::{collections::BTreeSet, fmt, iter, thread, time::Duration};

use serde_json::Value;
use wireloom_lab::{
    Layout, Pinger, Promise,
    agent::{self, Agent},
    control,
    felix::{Felix, Keys},
    mesh::{KeyPair, Member},
};
use wireloom_plan::routing::Family;

use super::felix::OWN_TABLE;
use crate::{
    fixtures::fleet::{Fleet, run},
    wireloom,
};

/// The time between two pings of a pair. The queue of a device that is away for a second holds those of all pairs.
/// docs/calico.md has figures with 10 ms, of six nodes.
const INTERVAL: Duration = Duration::from_millis(40);

/// How long pings between the node that moves and those with Felix are lost at most: what it takes on a busy machine,
/// and 5 s for a handshake that is lost (`REKEY_TIMEOUT`, WireGuard paper 6.1).
const OUTAGE: Duration = Duration::from_secs(3 + 5);

/// How many nodes move. Six take two minutes.
const NODES: u8 = if cfg!(feature = "soak") { 6 } else { 3 };

#[test]
fn a_fleet_moves_from_felix_to_wireloom_and_back() {
    let mut move_ = Move::new(NODES);
    for node in 0..usize::from(NODES) {
        let step = move_.measure(node, |move_| {
            move_.switch_felix_off(node);
            move_.start_agent(node);
        });
        println!("figure: node {} of {NODES}: {step}", node + 1);
        assert_eq!(step.others.lost, 0, "between other nodes\n{}", move_.fleet.logs());
        assert!(step.with_felix.outage < OUTAGE, "{step}\n{}", move_.fleet.logs());
    }
    // From 15 s after the proofs on, nothing is taken in plaintext any more.
    let settled = move_.measure(0, |move_| {
        thread::sleep(Duration::from_secs(16));
        move_.fleet.wait_for_proofs();
    });
    println!("figure: all moved, 16 s: {settled}");
    assert_eq!(settled.total(), 0, "{settled}\n{}", move_.fleet.logs());
    move_.fleet.settle(Promise::SCOPED);

    let leave = move_.measure(0, |move_| move_.leave(0));
    println!("figure: back: the agent leaves: {leave}");
    assert_eq!(leave.total(), 0, "{leave}\n{}", move_.fleet.logs());
    let back = move_.measure(0, |move_| move_.switch_felix_on(0));
    println!("figure: back: Felix on: {back}");
    assert_eq!(back.others.lost, 0, "{back}");
}

/// A fleet that moves. The records that the nodes' source would make of WireloomNodes and annotations are in its file.
struct Move {
    fleet: Fleet,
    published: Keys,
    felixes: Vec<Option<Felix>>,
    /// The nodes that have a record of their own.
    moved: BTreeSet<usize>,
    /// The node that leaves.
    leaving: Option<usize>,
}

/// What pings lost during a step at one node.
#[derive(Default)]
struct Loss {
    /// Between that node and those with Felix.
    with_felix: Lost,
    /// Between that node and those with Wireloom.
    with_wireloom: Lost,
    /// Between two other nodes.
    others: Lost,
}

#[derive(Default)]
struct Lost {
    pairs: usize,
    lost: usize,
    outage: Duration,
}

impl Loss {
    fn total(&self) -> usize {
        self.with_felix.lost + self.with_wireloom.lost + self.others.lost
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("Felix", &self.with_felix), ("Wireloom", &self.with_wireloom), ("others", &self.others)];
        for (with, lost) in all.into_iter().filter(|(_, lost)| lost.pairs > 0) {
            let (pairs, count, outage) = (lost.pairs, lost.lost, lost.outage.as_millis());
            write!(f, "{with}: {count} pings of {pairs} pairs, at most {outage} ms; ")?;
        }
        Ok(())
    }
}

impl Move {
    /// All nodes have Felix with its WireGuard on.
    fn new(nodes: u8) -> Self {
        let fleet = Fleet::without_agents(Layout { nodes, ..Layout::default() }, OWN_TABLE);
        let published = Keys::default();
        let felixes = iter::repeat_with(|| None).take(nodes.into()).collect();
        let mut this = Self { fleet, published, felixes, moved: BTreeSet::new(), leaving: None };
        (0..nodes.into()).for_each(|node| this.switch_felix_on(node));
        this
    }

    /// Pings between all pods during a step at `node`, and until every ping is answered again.
    fn measure(&mut self, node: usize, step: impl FnOnce(&mut Self)) -> Loss {
        let moved = self.moved.clone();
        let mut pingers = Vec::new();
        for from in 0..self.fleet.lab.nodes.len() {
            for to in (0..self.fleet.lab.nodes.len()).filter(|to| *to != from) {
                let [a, b] = [from, to].map(|node| &self.fleet.lab.nodes[node].pods[0]);
                pingers.push((from, to, Pinger::steady(a, b, Family::V4, INTERVAL).unwrap()));
            }
        }
        self.fleet.wait("the pings", |_| pingers.iter().all(|(.., pinger)| pinger.answered() > 0));
        step(self);
        let before: Vec<usize> = pingers.iter().map(|(.., pinger)| pinger.answered()).collect();
        self.fleet.wait("all pings to be answered", |_| {
            pingers.iter().zip(&before).all(|((.., pinger), before)| pinger.answered() > before + 20)
        });
        let mut loss = Loss::default();
        for (from, to, pinger) in pingers {
            let report = pinger.stop().unwrap();
            let class = match (from == node, to == node) {
                (false, false) => &mut loss.others,
                (is_from, _) if moved.contains(if is_from { &to } else { &from }) => &mut loss.with_wireloom,
                _ => &mut loss.with_felix,
            };
            class.pairs += 1;
            class.lost += report.lost;
            class.outage = class.outage.max(report.outage);
        }
        loss
    }

    fn switch_felix_on(&mut self, node: usize) {
        self.moved.remove(&node);
        self.leaving = None;
        self.run_felix(node, true);
        let name = self.fleet.lab.nodes[node].name.clone();
        self.fleet.wait("its key", |_| self.published.all().contains_key(&name));
        self.hand_out();
    }

    fn switch_felix_off(&mut self, node: usize) {
        self.run_felix(node, false);
        self.hand_out();
    }

    /// As calico-node does when its settings change: it starts anew.
    fn run_felix(&mut self, node: usize, encrypts: bool) {
        self.felixes[node].take().into_iter().for_each(|felix| felix.stop().unwrap());
        let pair = encrypts.then(|| KeyPair::generate(wireloom(), &self.fleet.lab.nodes[node]).unwrap());
        let refresh = Duration::from_secs(1);
        let felix = Felix::start(wireloom(), &self.fleet.lab, node, pair, refresh, &self.published).unwrap();
        self.felixes[node] = Some(felix);
    }

    /// Starts the agent, which publishes its record, and a little later its key among Felix's.
    fn start_agent(&mut self, node: usize) {
        self.fleet.agents.push(Agent::start(wireloom(), &self.fleet.lab.nodes[node]).unwrap());
        self.moved.insert(node);
        self.hand_out();
        let others = self.fleet.lab.nodes.len() - 1;
        let lab = &self.fleet.lab.nodes[node];
        self.fleet.wait("the device to have all peers", |_| {
            let shown = control::request(&lab.host.space, "wg0", b"get=1\n\n").unwrap_or_default();
            shown.matches("public_key=").count() == others
        });
        self.published.set(&lab.name, Some(&self.fleet.keys[node].public));
        self.fleet.wait(&format!("every peer of {} to be proven", lab.name), |_| {
            run(lab, "status --json").1.matches("\"proven\"").count() >= others
        });
    }

    /// The agent leaves the mesh: it clears its key, and says that it does not encrypt. It is taken down when all peers
    /// go direct, which is 15 s after they have heard.
    fn leave(&mut self, node: usize) {
        let name = self.fleet.lab.nodes[node].name.clone();
        self.published.set(&name, None);
        self.leaving = Some(node);
        self.hand_out();
        thread::sleep(Duration::from_secs(15));
        let is_direct = |peer: &Value| peer["name"] == name && peer["traffic"] == "plaintext";
        self.fleet.wait("all peers to go direct", |fleet| {
            let mut peers =
                self.moved.iter().filter(|peer| **peer != node).map(|peer| &fleet.lab.nodes[*peer]);
            peers.all(|peer| {
                let status: Value = serde_json::from_str(&run(peer, "status --json").1).unwrap_or_default();
                status["peers"].as_array().is_some_and(|peers| peers.iter().any(is_direct))
            })
        });
        let agent = self.fleet.agents.remove(node);
        agent.terminate().unwrap();
        agent::down(wireloom(), &self.fleet.lab.nodes[node]).unwrap();
    }

    /// Writes what the nodes' source would deliver.
    fn hand_out(&mut self) {
        let keys = self.published.all();
        let (moved, leaving, own) = (&self.moved, self.leaving, &self.fleet.keys);
        let nodes = self.fleet.lab.nodes.iter().enumerate();
        let members = nodes.map(|(n, node)| {
            let is_moved = moved.contains(&n);
            let key = if is_moved { Some(&own[n].public) } else { keys.get(&node.name) };
            Member {
                name: node.name.clone(),
                public_key: key.cloned(),
                endpoint: Some(node.endpoint(Family::V4)),
                addresses: node.host.addresses.both().to_vec(),
                // Felix's record has its IPv4 half only.
                workloads: node.block[..if is_moved { 2 } else { 1 }].to_vec(),
                link_addresses: Vec::new(),
                tunnel_addresses: Vec::new(),
                encrypt: leaving != Some(n),
            }
        });
        let members: Vec<Member> = members.collect();
        self.fleet.edit(|mesh| mesh.nodes = members);
    }
}
